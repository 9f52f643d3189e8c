"""Finds what has no row and rows that have nothing, in whatever store, a page of each in memory.

Nothing is said of what came within the last day: whoever brought it may be about to record it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue import custody, sweeping, verification
from archiver.catalogue.garbage import BYTES_AFTER
from archiver.keep.abreast import abreast
from archiver.keep.quarantine import Who
from archiver.model import Blob, Place
from archiver.store.base import Stored

if TYPE_CHECKING:
    from archiver.db.pool import Pool
    from archiver.store.hybrid import HybridStore


class Heap(NamedTuple):
    """So many, and their bytes."""

    number: int = 0
    size: int = 0

    def plus(self, sizes: Sequence[int]) -> Heap:
        """With these."""
        return Heap(self.number + len(sizes), self.size + sum(sizes))


class Swept(NamedTuple):
    """What was found so far: bytes that are in order, objects and inline bytes without rows, rows
    without their bytes, and what was left half written."""

    right: Heap = Heap()
    objects: Heap = Heap()
    inline: Heap = Heap()
    lost: Heap = Heap()
    leftovers: Heap = Heap()


class Sweep:
    """Goes through everything once. Without `delete` it only tells; with it, what has no row is
    let go, and a row without its bytes is noted as damaged."""

    def __init__(self, pool: Pool, store: HybridStore, who: Who, *, delete: bool) -> None:
        self._pool = pool
        self._store = store
        self._who = who
        self._delete = delete
        self._swept = Swept()

    async def run(self) -> AsyncGenerator[Swept, None]:
        """Tells after each page how far it is. Raises StoreUnavailable and OperationError."""
        for place in Place:
            both = abreast(sweeping.rows(self._pool), self._store.pages(place))
            async with aclosing(both):
                async for rows, stored in both:
                    await self._find_strays(place, rows, stored)
                    await self._find_lost(place, rows, stored)
                    yield self._swept
        if former := self._store.former:
            both = abreast(sweeping.rows(self._pool), former.pages())
            async with aclosing(both):
                async for rows, stored in both:
                    await self._find_strays(Place.OBJECT, rows, stored)
                    yield self._swept
        bucket = self._store.bucket
        if bucket is not None and (await bucket.look()).versioned:
            both = abreast(sweeping.rows(self._pool), bucket.hidden())
            async with aclosing(both):
                async for rows, stored in both:
                    await self._find_strays(Place.OBJECT, rows, stored)
                    yield self._swept
        left = await self._store.leftovers(remove=self._delete)
        self._swept = self._swept._replace(leftovers=Heap(*left))
        yield self._swept

    async def _find_strays(
        self, place: Place, rows: Sequence[Blob], stored: Sequence[Stored]
    ) -> None:
        # What rests inline has no use for an object; the other way round, `leftover` knows.
        known = {row.sha256 for row in rows if place in (Place.INLINE, row.place)}
        oldest = datetime.now(UTC) - BYTES_AFTER
        strays = {
            one.sha256: one.size
            for one in stored
            if one.sha256 not in known and (one.modified_at is None or one.modified_at < oldest)
        }
        if strays:
            await self._let_go(place, strays)

    async def _find_lost(
        self, place: Place, rows: Sequence[Blob], stored: Sequence[Stored]
    ) -> None:
        there = {one.sha256: one.size for one in stored}
        promised = [row for row in rows if row.place is place]
        lost = [row for row in promised if there.get(row.sha256) != row.size]
        sizes = [row.size for row in lost if await self._is_lost(row)]
        right = [row.size for row in promised if there.get(row.sha256) == row.size]
        self._swept = self._swept._replace(
            right=self._swept.right.plus(right), lost=self._swept.lost.plus(sizes)
        )

    async def _let_go(self, place: Place, strays: dict[bytes, int]) -> None:
        async with self._pool.acquire() as conn, conn.transaction():
            gone = await sweeping.unknown(conn, list(strays), place)
            if gone and self._delete:
                let_go = sweeping.discard if place is Place.OBJECT else sweeping.delete_data
                gone = await let_go(conn, sorted(gone))
            sizes = [strays[sha256] for sha256 in gone]
            if gone and self._delete:
                names = sorted(sha256.hex() for sha256 in gone)
                await custody.note(
                    conn, *self._who, "sweep", sha256=names, rested=str(place), bytes=sum(sizes)
                )
        if place is Place.OBJECT:
            self._swept = self._swept._replace(objects=self._swept.objects.plus(sizes))
        else:
            self._swept = self._swept._replace(inline=self._swept.inline.plus(sizes))

    async def _is_lost(self, blob: Blob) -> bool:
        """Looks once more: it may have come, gone or moved since the list was made."""
        size = await self._store.size(blob)
        if size == blob.size:
            return False
        async with self._pool.acquire() as conn, conn.transaction():
            if not await sweeping.lock(conn, blob):
                return False
            if self._delete and await verification.damaged(conn, blob.sha256):
                found = "missing" if size is None else "different"
                media = [str(mxc) for mxc in await verification.sharers(conn, blob.sha256)]
                name = blob.sha256.hex()
                await custody.note(conn, *self._who, "sweep", name, found=found, media=media)
        return True
