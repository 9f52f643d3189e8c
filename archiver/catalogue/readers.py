"""Who read which media, and when. Written in batches, never while serving."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

ADD = """
INSERT INTO reading (reader, via, server_name, media_id, times, first_at, last_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[],
                     $6::timestamptz[], $7::timestamptz[])
"""
# One statement for each way to ask, so that each has the index that it needs.
_COLUMNS = "SELECT id, reader, via, server_name, media_id, times, first_at, last_at FROM reading"
_WITHIN = """
  last_at >= coalesce($1::timestamptz, '-infinity')
  AND last_at < coalesce($2::timestamptz, 'infinity')
  AND (last_at, id) < (coalesce($3::timestamptz, 'infinity'), $4::bigint)
"""
_NEWEST = "ORDER BY last_at DESC, id DESC LIMIT $5"
PAGE = _COLUMNS + " WHERE" + _WITHIN + _NEWEST
PAGE_OF_READER = _COLUMNS + " WHERE reader = $6 AND" + _WITHIN + _NEWEST
PAGE_OF_MEDIA = _COLUMNS + " WHERE server_name = $6 AND media_id = $7 AND" + _WITHIN + _NEWEST
PAGE_OF_BOTH = (
    _COLUMNS + " WHERE server_name = $6 AND media_id = $7 AND reader = $8 AND" + _WITHIN + _NEWEST
)
# A trigger writes into custody how many there were, and refuses what is not as old as we say.
DELETE_OLD = """
WITH gone AS (
    DELETE FROM reading WHERE id = ANY (ARRAY(
        SELECT id FROM reading WHERE last_at < now() - $1::interval
        ORDER BY last_at LIMIT $2 FOR UPDATE SKIP LOCKED
    )) RETURNING id
)
SELECT count(*), set_config('archiver.keep_reads', $1::interval::text, true) FROM gone
"""

LAST_ID = 2**63 - 1


class Read(NamedTuple):
    """Somebody (`reader`, by the key `via` of a signed URL or by none) and a media."""

    reader: str
    via: str | None
    mxc: Mxc


class Reads(NamedTuple):
    """What one reader read of one media since the last batch."""

    times: int
    first: datetime
    last: datetime


class After(NamedTuple):
    """The last row of a page: the next one begins behind it."""

    at: datetime
    id: int


class Asked(NamedTuple):
    """Which reads are wanted; None: all. From `since` on, and before `until`."""

    reader: str | None = None
    mxc: Mxc | None = None
    since: datetime | None = None
    until: datetime | None = None


async def add(conn: Connection, reads: Mapping[Read, Reads]) -> None:
    """Adds a batch of reads, in one statement."""
    await conn.execute(
        ADD,
        [read.reader for read in reads],
        [read.via for read in reads],
        [read.mxc.server_name for read in reads],
        [read.mxc.media_id for read in reads],
        *zip(*reads.values(), strict=True),
    )


async def page(conn: Connection, asked: Asked, after: After | None, limit: int) -> list[Row]:
    """Reads, newest first, behind `after`."""
    place = after or After(None, LAST_ID)  # type: ignore[arg-type]  # NULL is the end of time
    within = (asked.since, asked.until, *place, limit)
    match asked:
        case Asked(reader=None, mxc=None):
            return await conn.fetch(PAGE, *within)
        case Asked(reader=str(reader), mxc=None):
            return await conn.fetch(PAGE_OF_READER, *within, reader)
        case Asked(reader=None, mxc=Mxc() as mxc):
            return await conn.fetch(PAGE_OF_MEDIA, *within, *mxc)
    return await conn.fetch(PAGE_OF_BOTH, *within, *(asked.mxc or ()), asked.reader)


async def delete_old(conn: Connection, age: timedelta, limit: int) -> int:
    """Deletes reads that are older, at most `limit`, and returns how many there were."""
    return int(await conn.fetchval(DELETE_OLD, age, limit))
