"""Media with their bytes from a bag: many in a commit, with a line of custody that tells it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from archiver.catalogue import export as catalogue
from archiver.catalogue import garbage, queue
from archiver.catalogue.queue import Job, Said
from archiver.errors import OperationError
from archiver.export.check import BadBag
from archiver.export.lines import Brought
from archiver.export.reading import copy
from archiver.model import Blob, Facts, Mxc, Place, State
from archiver.store.base import MIB, Body

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool, Row
    from archiver.export.check import Bag
    from archiver.store.hybrid import HybridStore
    from archiver.store.spool import Spool, SpooledBody

TOGETHER, BYTES_TOGETHER = 50, 8 * MIB
TRIES = 5
# The blob was known and is deleted just now, or two waited for each other: it is begun again.
AGAIN = (
    asyncpg.ForeignKeyViolationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)
Note = Callable[["Connection", dict[str, object]], Awaitable[None]]


class _Arrived(NamedTuple):
    brought: Brought
    blob: Blob
    body: SpooledBody


class Arrivals:
    """Takes media in. Raises OperationError and StoreUnavailable."""

    def __init__(
        self,
        pool: Pool,
        store: HybridStore,
        spool: Spool,
        inspect: Callable[[Body], Awaitable[Facts]],
        fillable: Collection[State],
    ) -> None:
        """`inspect` tells what bytes are; `fillable`: states that bytes of a bag may end."""
        self._pool = pool
        self._store = store
        self._spool = spool
        self._inspect = inspect
        self._fillable = list(fillable)

    async def take(
        self, bag: Bag, some: Sequence[tuple[Brought, int]], note: Note
    ) -> tuple[dict[Mxc, bool], dict[Mxc, str]]:
        """Takes in media, each with the size of its file; returns which of them it did, with
        whether their bytes are refused here, and what is wrong with the files of others. `note`
        writes to custody, in the same commit."""
        damaged: dict[Mxc, str] = {}
        async with AsyncExitStack() as bodies:
            arrived = []
            for brought, size in some:
                try:
                    arrived.append(await self._read(bag, brought, size, bodies))
                except BadBag as error:
                    damaged[brought.mxc] = str(error)
            for _ in range(TRIES):
                try:
                    return await self._keep(arrived, note), damaged
                except AGAIN:
                    continue
        raise OperationError("the same bytes are deleted again and again: import the rest later")

    async def _read(
        self, bag: Bag, brought: Brought, size: int, bodies: AsyncExitStack
    ) -> _Arrived:
        await self._store.expect(size)
        body = await bodies.enter_async_context(self._spool.body(size))
        await copy(bag, brought.path, brought.sha256 or b"", body)
        facts = await self._inspect(body)
        place = self._store.place_for(body.size)
        return _Arrived(brought, Blob(body.sha256, body.size, place, facts), body)

    async def _keep(self, arrived: list[_Arrived], note: Note) -> dict[Mxc, bool]:
        """Bytes first, rows after: they are durable before anything says so."""
        settled = {blob.sha256: await self._settle(blob, body) for _, blob, body in arrived}
        taken: dict[Mxc, bool] = {}
        async with self._pool.acquire() as conn, conn.transaction():
            names = [one.brought.mxc for one in arrived]
            claims = await catalogue.enlist(conn, names, self._fillable)
            for brought, blob, _ in arrived:
                if brought.mxc not in claims:
                    continue
                job = Job(brought.mxc, claims[brought.mxc], datetime.now(UTC))
                said = Said(brought.declared_type, brought.upload_name)
                inline, known = settled[blob.sha256]
                done = await queue.complete(
                    conn, job, blob, said, inline, known=known, imported=True
                )
                taken[brought.mxc] = done.refused
            left = {
                one.blob.sha256
                for one in arrived
                if one.brought.mxc not in taken and one.blob.place is Place.OBJECT
            }
            await garbage.discard_all(conn, sorted(left))
            if taken:
                await note(conn, {"media": _told(arrived, taken)})
        return taken

    async def _settle(self, blob: Blob, body: SpooledBody) -> tuple[bytes | None, bool]:
        known = False
        if blob.place is Place.OBJECT:
            async with self._pool.acquire() as conn:
                known = await queue.is_known(conn, blob.sha256)
        return (None if known else await self._store.settle(body)), known


def in_batches(some: Sequence[tuple[Brought, int]]) -> list[list[tuple[Brought, int]]]:
    """Few enough to be read together; a large one is alone, or nearly so."""
    batches: list[list[tuple[Brought, int]]] = []
    size = 0
    for one in some:
        if not batches or size + one[1] > BYTES_TOGETHER or len(batches[-1]) == TOGETHER:
            batches.append([])
            size = 0
        batches[-1].append(one)
        size += one[1]
    return batches


def is_what_senders_said(row: Row, sha256: bytes) -> bool:
    """False where all events here that name the media name another hash of its bytes."""
    claims = {claim and claim.rstrip("=") for claim in row["hashes"] or ()}
    return not claims or None in claims or b64encode(sha256).decode().rstrip("=") in claims


def _told(arrived: list[_Arrived], taken: dict[Mxc, bool]) -> list[list[object]]:
    return [
        [str(brought.mxc), blob.sha256.hex(), blob.size] + ["quarantined"] * taken[brought.mxc]
        for brought, blob, _ in arrived
        if brought.mxc in taken
    ]
