"""Rows beside what the stores have: what is not in both.

An object without a row is let go through `garbage`, and not before a day: somebody who found it
there may be about to record it. Inline bytes without a row can be recorded by nobody who does not
first insert a blob of that name, so for a moment we do that ourselves.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from archiver.catalogue.garbage import BYTES_AFTER
from archiver.model import Blob, Place

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

AT_ONCE = 2000

# Of both places: passing over the others in here could take longer than a statement may.
ROWS = "SELECT sha256, size, place FROM blob WHERE sha256 > $1 ORDER BY sha256 LIMIT $2"
# What rests inline has no use for an object; of bytes that were moved the other way, `leftover`
# knows.
UNKNOWN = """
SELECT sha256 FROM unnest($1::bytea[]) AS found(sha256)
WHERE NOT EXISTS (SELECT FROM blob AS b
                  WHERE b.sha256 = found.sha256 AND (b.place = 'object' OR $2 = 'inline'))
  AND NOT EXISTS (SELECT FROM garbage AS g WHERE g.sha256 = found.sha256)
"""
DISCARD = """
INSERT INTO garbage (sha256, due_at)
SELECT sha256, now() + $2::interval FROM unnest($1::bytea[]) AS found(sha256)
WHERE NOT EXISTS (SELECT FROM blob AS b
                  WHERE b.sha256 = found.sha256 AND b.place = 'object')
ORDER BY sha256
ON CONFLICT (sha256) DO NOTHING RETURNING sha256
"""
TAKE_NAMES = """
INSERT INTO blob (sha256, size, place)
SELECT sha256, octet_length(data), 'inline' FROM blob_data
WHERE sha256 = ANY($1::bytea[]) ORDER BY sha256
ON CONFLICT (sha256) DO NOTHING RETURNING sha256
"""
DELETE_DATA = "DELETE FROM blob_data WHERE sha256 = ANY($1::bytea[])"
GIVE_NAMES_BACK = "DELETE FROM blob WHERE sha256 = ANY($1::bytea[])"
LOCK = "SELECT true FROM blob WHERE sha256 = $1 AND place = $2 FOR NO KEY UPDATE"


async def rows(pool: Pool) -> AsyncGenerator[list[Blob], None]:
    """Every blob in the order of its SHA-256, a page at a time."""
    last = b""
    while page := await pool.fetch(ROWS, last, AT_ONCE):
        last = page[-1]["sha256"]
        yield [Blob(row["sha256"], row["size"], Place(row["place"])) for row in page]


async def unknown(conn: Connection, digests: Sequence[bytes], place: Place) -> set[bytes]:
    """Those in a place that no row has, and that are not let go already."""
    return {row["sha256"] for row in await conn.fetch(UNKNOWN, digests, place)}


async def discard(conn: Connection, digests: Sequence[bytes]) -> set[bytes]:
    """Lets objects go that still have no row, in a day; returns which."""
    return {row["sha256"] for row in await conn.fetch(DISCARD, digests, BYTES_AFTER)}


async def delete_data(conn: Connection, digests: Sequence[bytes]) -> set[bytes]:
    """Deletes inline bytes that still have no row; returns which. For a transaction of its own."""
    mine = {row["sha256"] for row in await conn.fetch(TAKE_NAMES, digests)}
    await conn.execute(DELETE_DATA, list(mine))
    await conn.execute(GIVE_NAMES_BACK, list(mine))
    return mine


async def lock(conn: Connection, blob: Blob) -> bool:
    """Locks a blob's row; False where it was deleted, or is somewhere else by now."""
    return bool(await conn.fetchval(LOCK, blob.sha256, blob.place))
