"""How scanning stands, in figures and in words."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.notices import Spell
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# By an index of its own, which an archive without a scanner leaves empty.
WAITING = "SELECT count(*) FROM blob WHERE scan_due IS NOT NULL"
FOUND_SO_FAR = """
SELECT count(*) FILTER (WHERE scan = 'clean') AS clean,
       count(*) FILTER (WHERE scan = 'infected') AS infected,
       count(*) FILTER (WHERE scan = 'unscanned') AS unscanned
FROM blob WHERE scan IS NOT NULL
"""
# Thumbnails are not looked at. Apart from the others, so that two tables are joined as a whole:
# asked of blob by blob it takes four times as long.
NEVER = """
SELECT count(*) FROM blob AS b
WHERE scan IS NULL AND EXISTS (SELECT FROM media AS m WHERE m.blob_sha256 = b.sha256)
"""
REASONS = """
SELECT scan, left(scan_reason, 200) AS reason, count(*) AS blobs FROM blob
WHERE scan IN ('infected', 'unscanned') GROUP BY 1, 2 ORDER BY 1, 3 DESC, 2 LIMIT $1
"""
WHOLE_TABLE_SECONDS = 600.0
# The newest are left for the next time: a commit may show what is older than what is counted.
NEXT = """
UPDATE notice AS n SET begun_at = last_at, last_at = now() - $2::interval, said_at = now()
WHERE cause = 'infected' AND (said_at IS NULL OR said_at <= now() - $1::interval)
  AND EXISTS (SELECT FROM blob WHERE scan = 'infected' AND scanned_at > n.last_at
              AND scanned_at <= now() - $2::interval)
RETURNING begun_at, last_at
"""
FOUND = """
SELECT count(*) FROM blob WHERE scan = 'infected' AND scanned_at > $1 AND scanned_at <= $2
"""
FIRST = """
SELECT b.scan_reason, m.server_name, m.media_id FROM
    (SELECT sha256, scan_reason, scanned_at FROM blob
     WHERE scan = 'infected' AND scanned_at > $1 AND scanned_at <= $2
     ORDER BY scanned_at LIMIT $3) AS b
JOIN media AS m ON m.blob_sha256 = b.sha256 ORDER BY b.scanned_at LIMIT $3
"""


class Standing(NamedTuple):
    """How many blobs of media were found what; `never`: nobody looked yet. Of all of them,
    `waiting` are to be looked at, by what is scheduled so far."""

    clean: int
    infected: int
    unscanned: int
    never: int
    waiting: int


class Reason(NamedTuple):
    """A signature's name, or why blobs are not scanned, and how many there are of them."""

    scan: str
    reason: str
    blobs: int


class Infected(NamedTuple):
    """How many blobs were found infected, and the first of them: signature and a media."""

    total: int
    first: list[tuple[str, Mxc]]


async def waiting(conn: Connection) -> int:
    """How many blobs are to be looked at."""
    return int(await conn.fetchval(WAITING))


async def standing(conn: Connection) -> Standing:
    """How scanning stands. Reads whole tables."""
    [found] = await conn.fetch(FOUND_SO_FAR, timeout=WHOLE_TABLE_SECONDS)
    never = await conn.fetchval(NEVER, timeout=WHOLE_TABLE_SECONDS)
    return Standing(**found, never=never, waiting=await waiting(conn))


async def reasons(conn: Connection, limit: int) -> list[Reason]:
    """What was found, and why the rest is not scanned. Reads the whole table."""
    rows = await conn.fetch(REASONS, limit, timeout=WHOLE_TABLE_SECONDS)
    return [Reason(*row) for row in rows]


async def next_infected(conn: Connection, every: timedelta, settling: timedelta) -> Spell | None:
    """The time to tell of, where something infected was found and `every` is over."""
    row = await conn.fetchrow(NEXT, every, settling)
    return Spell(*row) if row else None


async def infected(conn: Connection, spell: Spell, limit: int) -> Infected:
    """What was found infected, with up to `limit` media of it."""
    total = await conn.fetchval(FOUND, spell.begun_at, spell.last_at)
    first = await conn.fetch(FIRST, spell.begun_at, spell.last_at, limit)
    return Infected(int(total), [(row[0], Mxc(row[1], row[2])) for row in first])
