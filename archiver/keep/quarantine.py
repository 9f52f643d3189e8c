"""What is set aside, so that nobody but administrators sees it, and given back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from archiver.catalogue import custody, refused, telling
from archiver.catalogue import quarantine as catalogue
from archiver.catalogue.quarantine import Changed
from archiver.catalogue.targets import Target, media_of
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

# What was changed, and of how many media the homeserver is told.
_Outcome = tuple[Changed, int]
_Change = Callable[["Connection", Sequence[Mxc]], Awaitable[_Outcome]]


class Who(NamedTuple):
    """`actor` is @user:server or shell:NAME; `place` the room it was said in, or `shell`."""

    actor: str
    place: str


OURSELVES = Who("archiver", "worker")  # what is done by itself


class Done(NamedTuple):
    """How many media were changed so far, their bytes, and of how many media the homeserver is
    told."""

    media: int = 0
    size: int = 0
    told: int = 0

    def plus(self, changed: Changed, told: int) -> Done:
        """With these."""
        media, size = self.media + len(changed.media), self.size + changed.size
        return Done(media, size, self.told + told)


async def quarantine(
    pool: Pool, target: Target, reason: str, who: Who, *, tell: bool = False
) -> AsyncGenerator[Done, None]:
    """Sets aside all that the target names, in small commits, and tells after each how far it is.

    May be repeated: what is in quarantine already keeps its reason. What is left out or deleted
    stays so. Bytes (`hash`) are refused from then on, whoever posts them. With `tell` the
    homeserver is told to hide it, too, in its own time (`keep.telling`), and what was in
    quarantine before as well.
    """
    words = f"quarantined by {who.actor}" + (f": {reason}" if reason else "")
    if target.kind == "hash":
        async with pool.acquire() as conn, conn.transaction():
            if await refused.refuse(conn, target.sha256, words, tell=tell):
                await custody.note(conn, *who, "quarantine", target.value, refused=True)

    async def change(conn: Connection, media: Sequence[Mxc]) -> _Outcome:
        changed = await catalogue.set_aside(conn, media, words)
        return changed, await telling.hide(conn, media) if tell else 0

    async for done in _each(pool, target, who, "quarantine", change, again=tell):
        yield done


async def release(pool: Pool, target: Target, who: Who) -> AsyncGenerator[Done, None]:
    """Gives back all that the target names: ready, or queued where there are no bytes yet.

    Media whose bytes are refused stays hidden until the bytes themselves are released. Where the
    homeserver was told to hide it, it is told to show it again.
    """
    if target.kind == "hash":
        async with pool.acquire() as conn, conn.transaction():
            if await refused.accept(conn, target.sha256):
                await custody.note(conn, *who, "release", target.value, refused=False)

    async def change(conn: Connection, media: Sequence[Mxc]) -> _Outcome:
        changed = await catalogue.give_back(conn, media)
        return changed, await telling.show(conn, changed.media)

    async for done in _each(pool, target, who, "release", change):
        yield done


async def _each(
    pool: Pool, target: Target, who: Who, action: str, change: _Change, *, again: bool = False
) -> AsyncGenerator[Done, None]:
    """What somebody else has locked is done last, one by one, waiting for them. `again`: also
    what needs no change may have to be told of."""

    async def commit(conn: Connection, media: Sequence[Mxc], *, wait: bool = False) -> _Outcome:
        async with conn.transaction():
            if wait:
                await catalogue.lock(conn, media[0])
            changed, told = await change(conn, media)
            if changed.media or told:
                detail: dict[str, Any] = {"media": [str(mxc) for mxc in changed.media]}
                detail["bytes"] = changed.size
                if told:
                    detail["homeserver"] = told
                await custody.note(conn, *who, action, target.value, **detail)
            return changed, told

    done = Done()
    async for media in media_of(pool, target):
        async with pool.acquire() as conn:
            wanted = await catalogue.left(conn, media, quarantined=action == "release")
            if wanted or (again and media):
                outcome = await commit(conn, media if again else wanted)
                done = done.plus(*outcome)
                for mxc in set(wanted).difference(outcome[0].media):
                    done = done.plus(*await commit(conn, [mxc], wait=True))
        yield done
