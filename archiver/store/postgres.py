"""Inline blobs: rows of `blob_data`, so that a backup of the database has them too."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg

from archiver.db.pool import DATABASE_AWAY
from archiver.errors import BlobMissing, StoreUnavailable
from archiver.store.base import MIB, Body, Leftovers, Stored
from archiver.store.spool import in_thread

if TYPE_CHECKING:
    from archiver.db.pool import Pool

PUT = "INSERT INTO blob_data (sha256, data) VALUES ($1, $2) ON CONFLICT (sha256) DO NOTHING"
REPLACE = """
INSERT INTO blob_data (sha256, data) VALUES ($1, $2)
ON CONFLICT (sha256) DO UPDATE SET data = EXCLUDED.data
"""
# The length of an external bytea is known without reading it.
READ = """
SELECT octet_length(data), substring(data FROM $2::integer FOR $3::integer)
FROM blob_data WHERE sha256 = $1
"""
SIZE = "SELECT octet_length(data) FROM blob_data WHERE sha256 = $1"
DELETE = "DELETE FROM blob_data WHERE sha256 = $1"
PAGE = """
SELECT sha256, octet_length(data) FROM blob_data WHERE sha256 > $1 ORDER BY sha256 LIMIT $2
"""
CHECK = "SELECT FROM blob_data LIMIT 1"

CHUNK = MIB  # larger than a file's: each is a round trip, and most blobs need but one
KEYS_AT_ONCE = 1000
LARGEST = 1 << 30  # no bytea is longer


class PostgresStore:
    """A `BlobStore` in the table `blob_data`, for blobs that may be in memory whole."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def open(self) -> None:
        """Nothing to make: the table comes with the migrations."""

    async def put(self, body: Body) -> None:
        """See `BlobStore.put`. Where a row is written too, do it in one commit, without this."""
        with _database_away():
            await self._pool.execute(PUT, body.sha256, await _whole(body))

    async def replace(self, body: Body) -> None:
        """See `BlobStore.replace`."""
        with _database_away():
            await self._pool.execute(REPLACE, body.sha256, await _whole(body))

    async def read(
        self, sha256: bytes, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See `BlobStore.read`."""
        end = LARGEST if stop is None else min(stop, LARGEST)
        while start < end:
            with _database_away():
                row = await self._pool.fetchrow(READ, sha256, start + 1, min(CHUNK, end - start))
            if row is None:
                raise BlobMissing(f"blob {sha256.hex()} is not in blob_data")
            end = min(end, row[0])
            if row[1]:
                yield row[1]
            start += CHUNK

    async def size(self, sha256: bytes) -> int | None:
        """See `BlobStore.size`."""
        with _database_away():
            size: int | None = await self._pool.fetchval(SIZE, sha256)
        return size

    async def delete(self, sha256: bytes) -> None:
        """See `BlobStore.delete`."""
        with _database_away():
            await self._pool.execute(DELETE, sha256)

    async def pages(self) -> AsyncGenerator[list[Stored], None]:
        """See `BlobStore.pages`. A row does not tell when it came."""
        last: bytes | None = b""
        while last is not None:
            with _database_away():
                rows = await self._pool.fetch(PAGE, last, KEYS_AT_ONCE)
            if rows:
                yield [Stored(*row) for row in rows]
            last = rows[-1][0] if len(rows) == KEYS_AT_ONCE else None

    async def leftovers(self, *, remove: bool) -> Leftovers:
        """None ever: a row is there as a whole or not at all."""
        del remove
        return Leftovers()

    async def check(self) -> None:
        """See `BlobStore.check`."""
        with _database_away():
            await self._pool.execute(CHECK)

    async def close(self) -> None:
        """The pool is its maker's to close."""


async def _whole(body: Body) -> bytes:
    return (
        body.data if body.data is not None else await in_thread(None, body.read_at, 0, body.size)
    )


@contextmanager
def _database_away() -> Iterator[None]:
    try:
        yield
    except asyncpg.UndefinedTableError as error:
        raise StoreUnavailable(
            "the database has no table blob_data: run `archiver migrate`"
        ) from error
    except DATABASE_AWAY as error:
        reason = str(error) or type(error).__name__
        raise StoreUnavailable(
            f"the database does not answer ({reason}): check database.url and that PostgreSQL runs"
        ) from error
