"""What is set aside, so that nobody but administrators sees it, and given back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue import custody, refused
from archiver.catalogue import quarantine as catalogue
from archiver.catalogue.quarantine import Changed
from archiver.catalogue.targets import Target, media_of
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

_Change = Callable[["Connection", Sequence[Mxc]], Awaitable[Changed]]


class Who(NamedTuple):
    """`actor` is @user:server or shell:NAME; `place` the room it was said in, or `shell`."""

    actor: str
    place: str


class Done(NamedTuple):
    """How many media were changed so far, and their bytes."""

    media: int = 0
    size: int = 0

    def plus(self, changed: Changed) -> Done:
        """With these."""
        return Done(self.media + len(changed.media), self.size + changed.size)


async def quarantine(pool: Pool, target: Target, reason: str, who: Who) -> AsyncIterator[Done]:
    """Sets aside all that the target names, in small commits, and tells after each how far it is.

    May be repeated: what is in quarantine already keeps its reason. What is left out or deleted
    stays so. Bytes (`hash`) are refused from then on, whoever posts them.
    """
    words = f"quarantined by {who.actor}" + (f": {reason}" if reason else "")
    if target.kind == "hash":
        async with pool.acquire() as conn, conn.transaction():
            if await refused.refuse(conn, target.sha256, words):
                await custody.note(conn, *who, "quarantine", target.value, refused=True)

    async def change(conn: Connection, media: Sequence[Mxc]) -> Changed:
        return await catalogue.set_aside(conn, media, words)

    async for done in _each(pool, target, who, "quarantine", change):
        yield done


async def release(pool: Pool, target: Target, who: Who) -> AsyncIterator[Done]:
    """Gives back all that the target names: ready, or queued where there are no bytes yet.

    Media whose bytes are refused stays hidden until the bytes themselves are released.
    """
    if target.kind == "hash":
        async with pool.acquire() as conn, conn.transaction():
            if await refused.accept(conn, target.sha256):
                await custody.note(conn, *who, "release", target.value, refused=False)
    async for done in _each(pool, target, who, "release", catalogue.give_back):
        yield done


async def _each(
    pool: Pool, target: Target, who: Who, action: str, change: _Change
) -> AsyncIterator[Done]:
    """What somebody else has locked is done last, one by one, waiting for them."""

    async def commit(conn: Connection, media: Sequence[Mxc], *, wait: bool = False) -> Changed:
        async with conn.transaction():
            if wait:
                await catalogue.lock(conn, media[0])
            changed = await change(conn, media)
            if changed.media:
                names = [str(mxc) for mxc in changed.media]
                size = changed.size
                await custody.note(conn, *who, action, target.value, media=names, bytes=size)
            return changed

    done = Done()
    async for media in media_of(pool, target):
        async with pool.acquire() as conn:
            wanted = await catalogue.left(conn, media, quarantined=action == "release")
            if wanted:
                changed = await commit(conn, wanted)
                done = done.plus(changed)
                for mxc in set(wanted).difference(changed.media):
                    done = done.plus(await commit(conn, [mxc], wait=True))
        yield done
