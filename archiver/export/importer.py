"""Brings a bag into an archive: first the media with their bytes, then the events that name them.

A bag is a stranger's: every file is hashed before anything of it counts, the type of bytes is told
by themselves, and nothing that the archive knows is overwritten. The same bag once more goes on
where it ended, and changes nothing in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import asyncpg

from archiver.capture.record import record
from archiver.capture.rows import Kept
from archiver.catalogue import custody, garbage, queue
from archiver.catalogue import export as catalogue
from archiver.catalogue.queue import Job, Said
from archiver.errors import OperationError
from archiver.export import check
from archiver.export.check import BadBag, Bag
from archiver.export.lines import BadLine, Brought, brought_of, kept_of
from archiver.model import Blob, Facts, Mxc, Place, Source, State
from archiver.store.base import MIB, Body
from archiver.store.spool import in_thread

if TYPE_CHECKING:
    from archiver.capture.policy import CapturePolicy
    from archiver.db.pool import Connection, Pool
    from archiver.store.hybrid import HybridStore
    from archiver.store.spool import Spool, SpooledBody

LONGEST = 64 * MIB  # a line with an event and all its references has a fraction of that
EVENTS_AT_ONCE = 100
MEDIA, EVENTS = "data/media.jsonl", "data/events.jsonl"
TRIES = 3
# States in which `RECORD` would queue a media again that is named once more.
ENDED = frozenset({State.DELETED, State.EXCLUDED})
# What comes without bytes and is over, so that nobody asks the homeserver for it.
OVER = frozenset({State.FAILED, State.EXCLUDED, State.QUARANTINED, State.DELETED})


class Imported(NamedTuple):
    """What came: events and media that are new, and media that were there or stay as they are."""

    events: int = 0
    media: int = 0
    known: int = 0


class Importer:
    """One import. Raises OperationError and StoreUnavailable."""

    def __init__(
        self,
        pool: Pool,
        store: HybridStore,
        spool: Spool,
        policy: CapturePolicy,
        inspect: Callable[[Body], Awaitable[Facts]],
        who: tuple[str, str],
        tell: Callable[[str], None],
    ) -> None:
        """`inspect` tells what bytes are; `tell` gets a sentence for each media that stays."""
        self._pool = pool
        self._store = store
        self._spool = spool
        self._policy = policy
        self._inspect = inspect
        self._who = who
        self._tell = tell

    async def import_(self, path: Path) -> Imported:
        """Brings in the bag in a folder or a ZIP."""
        try:
            with closing(await asyncio.to_thread(check.open_bag, path)) as bag:
                digest = await asyncio.to_thread(_trusted, bag)
                await self._note(path, manifest=digest, state="begun")
                media, known = await self._media(bag)
                events = await self._events(bag)
        except (BadBag, BadLine, *check.UNREADABLE) as error:
            raise OperationError(
                f"{path} cannot be imported: {error}"
                " `archiver export --check` tells all that is wrong with it"
            ) from error
        done = Imported(events, media, known)
        await self._note(path, manifest=digest, state="done", **done._asdict())
        return done

    async def _note(self, path: Path, **detail: Any) -> None:
        actor, place = self._who
        async with self._pool.acquire() as conn:
            await custody.note(conn, actor, place, "import", path.name, **detail)

    async def _media(self, bag: Bag) -> tuple[int, int]:
        new = known = 0
        async for text in _lines(bag, MEDIA):
            brought = brought_of(text)
            if await self._one(bag, brought):
                new += 1
            else:
                known += 1
        return new, known

    async def _one(self, bag: Bag, brought: Brought) -> bool:
        """Whether the media is new here. One whose bytes nobody has is queued with its event."""
        mxc = brought.mxc
        async with self._pool.acquire() as conn:
            row = (await catalogue.states(conn, [mxc])).get(mxc)
        if row is not None and row["state"] not in {State.PENDING, State.FAILED}:
            other = brought.sha256 is not None and row["blob_sha256"] != brought.sha256
            if row["state"] != brought.state or other:
                self._stays(mxc, row["state"], row["reason"])
            return False
        if brought.sha256 is not None:
            return await self._bytes(bag, brought, brought.sha256)
        if brought.state in OVER and row is None:
            reason = brought.reason or "it was so where it was exported"
            async with self._pool.acquire() as conn:
                return bool(await catalogue.note(conn, [(mxc, brought.state, reason)]))
        return False

    def _stays(self, mxc: Mxc, state: str, reason: str | None) -> None:
        why = f" ({reason})" if reason else ""
        self._tell(f"{mxc} is {state} here{why}, and stays as it is.")

    async def _bytes(self, bag: Bag, brought: Brought, sha256: bytes) -> bool:
        size = bag.size(brought.path)
        await self._store.expect(size)
        async with self._spool.body(size) as body:
            await _read(bag, brought.path, body)
            if body.sha256 != sha256:
                raise BadBag(f"{brought.path} was changed: its SHA-256 is {body.sha256.hex()}.")
            facts = await self._inspect(body)
            blob = Blob(body.sha256, body.size, self._store.place_for(body.size), facts)
            for _ in range(TRIES):
                try:
                    return await self._keep(brought, blob, body)
                except asyncpg.ForeignKeyViolationError:
                    continue  # the blob was known, and deleted just now
        raise OperationError(f"the bytes of {brought.mxc} are deleted again and again: try later")

    async def _keep(self, brought: Brought, blob: Blob, body: SpooledBody) -> bool:
        """Bytes first, rows after: they are durable before anything says so."""
        known = False
        if blob.place is Place.OBJECT:
            async with self._pool.acquire() as conn:
                known = await queue.is_known(conn, blob.sha256)
        inline = None if known else await self._store.settle(body)
        said = Said(brought.declared_type, brought.upload_name)
        async with self._pool.acquire() as conn, conn.transaction():
            attempts = await catalogue.enlist(conn, brought.mxc)
            if attempts is not None:
                job = Job(brought.mxc, attempts, datetime.now(UTC))
                done = await queue.complete(conn, job, blob, said, inline, known=known)
                if done.refused:
                    self._tell(f"{brought.mxc} is in quarantine: its bytes are refused here.")
                return True
            if blob.place is Place.OBJECT:
                await garbage.discard(conn, blob.sha256)
        return False

    async def _events(self, bag: Bag) -> int:
        new, batch = 0, []
        async for text in _lines(bag, EVENTS):
            batch.append(kept_of(text))
            if len(batch) == EVENTS_AT_ONCE:
                new += await self._record(batch)
                batch = []
        return new + (await self._record(batch) if batch else 0)

    async def _record(self, kept: list[Kept]) -> int:
        named = sorted({reference.mxc for found in kept for reference in found.references})
        async with self._pool.acquire() as conn, conn.transaction():
            ended = await self._ended(conn, named)
            recorded = await record(conn, kept, Source.BACKFILL, self._policy)
            await catalogue.stay(conn, ended)
        recorded.add_to_metrics(Source.BACKFILL)
        return recorded.events

    async def _ended(
        self, conn: Connection, named: list[Mxc]
    ) -> list[tuple[Mxc, str, str | None]]:
        return [
            (mxc, row["state"], row["reason"])
            for mxc, row in (await catalogue.states(conn, named)).items()
            if row["state"] in ENDED
        ]


def _trusted(bag: Bag) -> str:
    """Checks what tells of the bag, and the lists in it; returns the SHA-256 of its manifest."""
    tags = dict(check.entries(bag, check.TAG_MANIFEST))
    expected = {name: tags.get(name) for name in ("bagit.txt", check.MANIFEST)}
    lists = {MEDIA, EVENTS}
    expected |= {name: told for name, told in check.entries(bag, check.MANIFEST) if name in lists}
    for name in (check.MANIFEST, "bagit.txt", MEDIA, EVENTS):
        with bag.open(name) as file:
            found = check.hash_of(file)
        if found != expected.get(name):
            raise BadBag(f"{name} is not what the bag's manifest says.")
    return tags[check.MANIFEST]


async def _lines(bag: Bag, name: str) -> AsyncIterator[bytes]:
    with bag.open(name) as file:
        number = 0
        while lines := await in_thread(None, _some, file):
            for text in lines:
                number += 1
                if not text.endswith(b"\n"):
                    raise BadLine(f"line {number} of {name} has no end or is too long.")
                yield text


def _some(file: IO[bytes]) -> list[bytes]:
    """The next lines, up to a MiB of them; the last may be longer."""
    lines: list[bytes] = []
    size = 0
    while size < MIB and (text := file.readline(LONGEST)):
        lines.append(text)
        size += len(text)
    return lines


async def _read(bag: Bag, name: str, body: SpooledBody) -> None:
    with await asyncio.to_thread(bag.open, name) as file:
        while piece := await in_thread(None, file.read, MIB):
            await body.write(piece)
    await body.finish()
