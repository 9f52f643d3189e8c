"""Blobs on their way from one store to another, and the copies that they leave behind.

The bytes are durable in the new place before a commit says so. Where they were they stay for a
day, because somebody may be reading them: an object as garbage, else as a row of `leftover`.
Whoever changes a blob's place, or takes a leftover away, has the blob locked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.garbage import BYTES_AFTER, discard, discard_all
from archiver.model import Blob, Place

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

PIECE = 2_000  # blobs that are looked at for one page
# A piece of all blobs in the order of their names, whatever of it is wanted: so a page is found
# in steady time where hardly any is.
PAGE = """
SELECT sha256, size, place, place = $3 AND size > $4 AND size < $5 AS wanted FROM blob
WHERE sha256 > $1 ORDER BY sha256 LIMIT $2
"""
LOCK = """
SELECT sha256 FROM blob WHERE sha256 = ANY($1::bytea[]) AND place = $2
ORDER BY sha256 FOR NO KEY UPDATE
"""
LOCK_FREE = LOCK + "SKIP LOCKED"
STILL = "SELECT sha256 FROM blob WHERE sha256 = ANY($1::bytea[]) AND place = $2"
PLACE = "UPDATE blob SET place = $2 WHERE sha256 = ANY($1::bytea[])"
RESCUE = "DELETE FROM garbage WHERE sha256 = ANY($1::bytea[])"
LEAVE = """
INSERT INTO leftover (sha256, store, due_at)
SELECT sha256, $2, now() + $3::interval FROM unnest($1::bytea[]) AS moved(sha256)
ON CONFLICT (sha256, store) DO UPDATE SET due_at = EXCLUDED.due_at
"""
PUT = """
INSERT INTO blob_data (sha256, data) VALUES ($1, $2)
ON CONFLICT (sha256) DO UPDATE SET data = EXCLUDED.data
"""
NONE_LEFT = "DELETE FROM leftover WHERE sha256 = ANY($1::bytea[]) AND store = 'inline'"
DUE = """
SELECT sha256, store FROM leftover WHERE due_at <= now() AND store = ANY($1::text[])
ORDER BY due_at LIMIT 1
"""
LOCK_ONE = "SELECT size, place FROM blob WHERE sha256 = $1 FOR UPDATE"
TAKE = """
DELETE FROM leftover WHERE sha256 = $1 AND store = $2 AND due_at <= now() RETURNING true
"""
NOT_HERE = """
DELETE FROM leftover WHERE sha256 = ANY($1::bytea[]) AND store NOT IN ('inline', $2)
"""
DELETE_DATA = "DELETE FROM blob_data WHERE sha256 = $1"


UNMOVED = """
SELECT sha256 FROM unnest($1::bytea[]) AS named(sha256) WHERE NOT EXISTS
    (SELECT FROM leftover AS l WHERE l.sha256 = named.sha256 AND l.store = $2)
"""


class Leftover(NamedTuple):
    """A copy whose time has come. `blob` is None where all of it was deleted meanwhile."""

    sha256: bytes
    store: str
    blob: Blob | None


async def pages(pool: Pool, place: Place, over: int, under: int) -> AsyncIterator[list[Blob]]:
    """The blobs of a place with more than `over` and less than `under` bytes, in the order of
    their names. A page may be empty, where looking took long and nothing was found."""
    last = b""
    while rows := await pool.fetch(PAGE, last, PIECE, place, over, under):
        last = rows[-1]["sha256"]
        yield [
            Blob(row["sha256"], row["size"], Place(row["place"])) for row in rows if row["wanted"]
        ]


async def lock(
    conn: Connection, digests: Collection[bytes], place: Place, *, wait: bool
) -> list[bytes]:
    """Locks those that rest in `place`, and either waits for the others or leaves out what
    somebody else has. To be called first in the transaction that moves them."""
    rows = await conn.fetch(LOCK if wait else LOCK_FREE, list(digests), place)
    return [row["sha256"] for row in rows]


async def still(conn: Connection, digests: Collection[bytes], place: Place) -> list[bytes]:
    """Those that rest in `place`."""
    return [row["sha256"] for row in await conn.fetch(STILL, list(digests), place)]


async def expect_object(conn: Connection, digests: Sequence[bytes]) -> None:
    """Before objects are put: whoever removes old ones is waited for, and what is put becomes
    garbage unless `to_objects` says otherwise."""
    await discard_all(conn, digests)


async def to_objects(conn: Connection, digests: Sequence[bytes]) -> None:
    """Locked inline blobs are objects from now on."""
    await conn.execute(PLACE, digests, Place.OBJECT)
    await conn.execute(RESCUE, digests)
    await leave(conn, digests, Place.INLINE)


async def to_inline(conn: Connection, sha256: bytes, data: bytes) -> None:
    """A locked object is inline from now on."""
    await conn.execute(PUT, sha256, data)
    await conn.execute(PLACE, [sha256], Place.INLINE)
    await conn.execute(NONE_LEFT, [sha256])
    await discard(conn, sha256)


async def unmoved(conn: Connection, digests: Sequence[bytes], store: str) -> list[bytes]:
    """Those of whose copies in a store `leave` was not told."""
    return [row["sha256"] for row in await conn.fetch(UNMOVED, digests, store)]


async def leave(conn: Connection, digests: Sequence[bytes], store: str) -> None:
    """The copies of locked blobs in a store that they do not rest in are not needed any more."""
    await conn.execute(LEAVE, digests, store, BYTES_AFTER)
    if store != Place.INLINE:  # where they rest now they may have been left before
        await conn.execute(NOT_HERE, digests, store)


async def take(conn: Connection, stores: Sequence[str]) -> Leftover | None:
    """Takes a copy whose time has come from one of the stores, or None; a rollback puts it back.

    Its blob is locked, and an inline copy is gone with the commit.
    """
    found = await conn.fetchrow(DUE, stores)
    if found is None:
        return None
    sha256, store = found
    row = await conn.fetchrow(LOCK_ONE, sha256)
    blob = Blob(sha256, row["size"], Place(row["place"])) if row else None
    if not await conn.fetchval(TAKE, sha256, store):
        return None  # somebody else has, or it was moved again: look later
    if store == Place.INLINE and (blob is None or blob.place is not Place.INLINE):
        await conn.execute(DELETE_DATA, sha256)
    return Leftover(sha256, store, blob)
