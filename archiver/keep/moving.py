"""Moves blobs between the database and the object store, and from one object store to another,
while the archive runs.

Every blob is copied, hashed on the way, made durable in the new place, and only then said to be
there. A crash between leaves the blob where it was, and garbage. A second run goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Sequence,
)
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue import custody, moves
from archiver.keep.copying import copied
from archiver.keep.quarantine import Who
from archiver.model import Blob, Place
from archiver.store.base import MIB
from archiver.store.spool import in_thread

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool
    from archiver.store.hybrid import HybridStore
    from archiver.store.spool import Spool

AT_ONCE = 8
MOST_BYTES = 64 * MIB  # of several that are moved at once; one alone may be larger

_Say = Callable[["Connection", Sequence[bytes]], Awaitable[None]]


class Moved(NamedTuple):
    """How many blobs were moved so far, their bytes, and those whose bytes were not to be had as
    they should be: they stay where they are."""

    blobs: int = 0
    size: int = 0
    damaged: tuple[bytes, ...] = ()


class Sizes(NamedTuple):
    """Blobs of more than `over` bytes and less than `under`."""

    over: int
    under: int


class Mover:
    """Any number of them may work at once. Everything raises StoreUnavailable."""

    def __init__(self, pool: Pool, store: HybridStore, spool: Spool, who: Who) -> None:
        self._pool = pool
        self._store = store
        self._spool = spool
        self._who = who
        self._moved = Moved()

    async def to_objects(self, sizes: Sizes) -> AsyncIterator[Moved]:
        """Inline blobs become objects; tells of each handful."""
        async for blobs in self._handfuls(Place.INLINE, sizes):
            digests = [blob.sha256 for blob in blobs]
            async with self._pool.acquire() as conn:
                await moves.expect_object(conn, digests)
            good = await self._each(blobs, self._put)
            await self._commit(good, Place.INLINE, moves.to_objects, "objects")
            yield self._moved

    async def to_inline(self, sizes: Sizes) -> AsyncIterator[Moved]:
        """Objects become inline blobs; tells of each."""
        async for blobs in self._handfuls(Place.OBJECT, sizes):
            for blob in blobs:
                await self._into_database(blob)
                yield self._moved

    async def from_former(self, name: str, sizes: Sizes) -> AsyncIterator[Moved]:
        """Objects that are only in the former store, which is called `name`, are copied to where
        objects are kept now; tells of each handful."""

        async def leave(conn: Connection, digests: Sequence[bytes]) -> None:
            await moves.leave(conn, digests, name)

        async for blobs in self._handfuls(Place.OBJECT, sizes):
            async with self._pool.acquire() as conn:
                unmoved = set(await moves.unmoved(conn, [blob.sha256 for blob in blobs], name))
            left = [blob for blob in blobs if blob.sha256 in unmoved]
            there = await self._each(left, self._is_in_former, count=False)
            good = await self._each(there, self._put)
            await self._commit(good, Place.OBJECT, leave, f"objects, from {name}")
            yield self._moved

    async def _handfuls(self, place: Place, sizes: Sizes) -> AsyncIterator[list[Blob]]:
        async for page in moves.pages(self._pool, place, *sizes):
            for handful in _handfuls(page):
                yield handful

    async def _each(
        self, blobs: Sequence[Blob], work: Callable[[Blob], Awaitable[bool]], *, count: bool = True
    ) -> list[Blob]:
        """Those for which the work went well; all of it is over when one of them fails."""
        went = await asyncio.gather(*map(work, blobs), return_exceptions=True)
        for outcome in went:
            if isinstance(outcome, BaseException):
                raise outcome
        if count:
            await self._damaged([blob for blob, well in zip(blobs, went, strict=True) if not well])
        return [blob for blob, well in zip(blobs, went, strict=True) if well]

    async def _is_in_former(self, blob: Blob) -> bool:
        former = self._store.former
        return former is not None and await former.size(blob.sha256) is not None

    async def _put(self, blob: Blob) -> bool:
        """False where the bytes are not what they were. What is there already is hashed too."""
        anew = blob.place is Place.OBJECT and await self._store.has_object(blob)
        if anew:
            async with copied(self._spool, blob, self._store.read(blob)) as body:
                if body is not None:
                    return True
        former = self._store.former if blob.place is Place.OBJECT else None
        source = former.read(blob.sha256) if former else self._store.read(blob)
        async with copied(self._spool, blob, source) as body:
            if body is not None:
                await self._store.put_object(body, anew=anew)
            return body is not None

    async def _into_database(self, blob: Blob) -> None:
        async with copied(self._spool, blob, self._store.read(blob)) as body:
            if body is None:
                await self._damaged([blob])
                return
            data = body.data
            if data is None:
                data = await in_thread(None, body.read_at, 0, body.size)
            given = data

            async def say(conn: Connection, digests: Sequence[bytes]) -> None:
                await moves.to_inline(conn, digests[0], given)

            await self._commit([blob], Place.OBJECT, say, "inline")

    async def _damaged(self, blobs: Sequence[Blob]) -> None:
        """What was deleted meanwhile, or moved by somebody else, is not damaged."""
        if not blobs:
            return
        places = {blob.sha256: blob.place for blob in blobs}
        async with self._pool.acquire() as conn:
            bad = await moves.still(conn, places, blobs[0].place)
        self._moved = self._moved._replace(damaged=(*self._moved.damaged, *sorted(bad)))

    async def _commit(self, blobs: Sequence[Blob], place: Place, say: _Say, to: str) -> None:
        """Those that somebody else has locked come last, one by one."""
        sizes = {blob.sha256: blob.size for blob in blobs}
        if not sizes:
            return
        done = await self._try(sizes, place, say, to, wait=False)
        for sha256 in sorted(sizes.keys() - done):
            await self._try({sha256: sizes[sha256]}, place, say, to, wait=True)

    async def _try(
        self, sizes: dict[bytes, int], place: Place, say: _Say, to: str, *, wait: bool
    ) -> Collection[bytes]:
        async with self._pool.acquire() as conn, conn.transaction():
            locked = await moves.lock(conn, sizes, place, wait=wait)
            if not locked:
                return set()
            await say(conn, locked)
            told = [sha256.hex() for sha256 in locked]
            await custody.note(conn, *self._who, "storage move", to, blobs=told)
        size = sum(sizes[sha256] for sha256 in locked)
        blobs, before, damaged = self._moved
        self._moved = Moved(blobs + len(locked), before + size, damaged)
        return set(locked)


def _handfuls(page: Sequence[Blob]) -> Iterator[list[Blob]]:
    handful: list[Blob] = []
    for blob in page:
        size = sum(other.size for other in handful) + blob.size
        if handful and (len(handful) == AT_ONCE or size > MOST_BYTES):
            yield handful
            handful = []
        handful.append(blob)
    if handful:
        yield handful
