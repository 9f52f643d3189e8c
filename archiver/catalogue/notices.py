"""What the control room was told, or is still to be told.

Whatever decides that something is told now is to be committed together with its sending, so that
nothing counts as said that was not, and no second process says it meanwhile.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection

SEEN = """
INSERT INTO notice (cause) VALUES ($1) ON CONFLICT (cause) DO UPDATE SET last_at = now()
"""
SAY = """
UPDATE notice SET said_at = now()
WHERE cause = $1 AND said_at IS NULL AND last_at - begun_at >= $2::interval
RETURNING begun_at, last_at, true AS told
"""
OVER = """
DELETE FROM notice WHERE cause = $1
RETURNING begun_at, last_at,
          said_at IS NOT NULL OR coalesce(last_at - begun_at >= $2::interval, false) AS told
"""
# Who saw the same outage begins it before the others' end.
DATABASE_BACK = """
INSERT INTO notice AS known (cause, begun_at, last_at, said_at)
VALUES ('database', now() - $1::interval, now() - $2::interval, now())
ON CONFLICT (cause) DO UPDATE SET
    begun_at = EXCLUDED.begun_at, last_at = EXCLUDED.last_at, said_at = EXCLUDED.said_at
WHERE known.last_at < EXCLUDED.begun_at
RETURNING begun_at, last_at, true AS told
"""
# Gaps that were filled before anybody watched are no news; what failed, is damaged or
# infected still is.
WATCH = """
INSERT INTO notice (cause, last_at)
VALUES ('gaps', now()), ('failed', 'epoch'), ('damage', 'epoch'), ('custody', 'epoch'),
       ('infected', 'epoch')
ON CONFLICT (cause) DO NOTHING
"""
# The newest are left for the next time: a commit may show what is older than what is counted.
NEXT_GAPS = """
UPDATE notice AS n SET begun_at = last_at, last_at = now() - $2::interval, said_at = now()
WHERE cause = 'gaps' AND (said_at IS NULL OR said_at <= now() - $1::interval)
  AND EXISTS (SELECT FROM event WHERE source = 'reconcile' AND received_at > n.last_at
              AND received_at <= now() - $2::interval)
RETURNING begun_at, last_at
"""
NEXT_DAMAGE = """
UPDATE notice AS n SET begun_at = last_at, last_at = now() - $2::interval, said_at = now()
WHERE cause = 'damage' AND (said_at IS NULL OR said_at <= now() - $1::interval)
  AND EXISTS (SELECT FROM blob WHERE damaged_at > n.last_at
              AND damaged_at <= now() - $2::interval)
RETURNING begun_at, last_at
"""
# Counted once a day even where nothing failed: finding that out reads all that ever did.
NEXT_FAILED = """
UPDATE notice SET begun_at = last_at, last_at = now() - $1::interval, said_at = now()
WHERE cause = 'failed'
  AND (said_at IS NULL
       OR (said_at AT TIME ZONE 'UTC')::date < (now() AT TIME ZONE 'UTC')::date)
RETURNING begun_at, last_at
"""
# Once a day in UTC, after it: where something was sealed since the end that was told last.
NEXT_CUSTODY = """
UPDATE notice AS n SET begun_at = last_at, said_at = now(),
                       last_at = date_trunc('day', now() - $1::interval, 'UTC')
WHERE cause = 'custody' AND EXISTS (
    SELECT FROM custody_seal WHERE sealed_at >= n.last_at
      AND sealed_at < date_trunc('day', now() - $1::interval, 'UTC'))
RETURNING begun_at, last_at
"""
CUSTODY = """
SELECT s.hash, s.id, (SELECT sum(count) FROM custody_seal WHERE id <= s.id)::bigint AS lines
FROM custody_seal AS s WHERE s.sealed_at < $1 ORDER BY s.id DESC LIMIT 1
"""
GAPS = """
SELECT count(*) AS events, count(DISTINCT room_id) AS rooms FROM event
WHERE source = 'reconcile' AND received_at > $1 AND received_at <= $2
"""
FAILED = """
SELECT left(split_part(reason, ':', 1), 100) AS head, count(*) AS number,
       (sum(count(*)) OVER ())::bigint AS total
FROM media WHERE state = 'failed' AND settled_at > $1 AND settled_at <= $2
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $3
"""
DAMAGED = """
SELECT count(*) AS every,
       count(*) FILTER (WHERE damaged_at > $1 AND damaged_at <= $2) AS grown
FROM blob WHERE damaged_at IS NOT NULL
"""
FIRST_DAMAGED = """
SELECT m.server_name, m.media_id FROM
    (SELECT sha256, damaged_at FROM blob WHERE damaged_at > $1 AND damaged_at <= $2
     ORDER BY damaged_at LIMIT $3) AS b
JOIN media AS m ON m.blob_sha256 = b.sha256 LIMIT $3
"""


class Spell(NamedTuple):
    """From when to when a trouble was seen. `told`: it lasted, or the room knows of it already."""

    begun_at: datetime
    last_at: datetime
    told: bool = True


class Failed(NamedTuple):
    """How many media failed for good, and the most frequent reasons."""

    total: int
    reasons: list[tuple[str, int]]


class Damaged(NamedTuple):
    """How many blobs were found damaged now, are in all, and the first of the former."""

    grown: int
    every: int
    first: list[Mxc]


class Head(NamedTuple):
    """The hash of a day's last seal, its id, and how many lines are sealed up to it."""

    hash: bytes
    seal: int
    lines: int


async def seen(conn: Connection, cause: str) -> None:
    """The trouble is there, now."""
    await conn.execute(SEEN, cause)


async def say(conn: Connection, cause: str, patience: timedelta) -> Spell | None:
    """The trouble, when it has lasted for so long and is to be told now."""
    row = await conn.fetchrow(SAY, cause, patience)
    return Spell(*row) if row else None


async def over(conn: Connection, cause: str, patience: timedelta | None) -> Spell | None:
    """The trouble that is over, once; None where there was none.

    What lasted for `patience` is to be told even if it never was; for None it is not.
    """
    row = await conn.fetchrow(OVER, cause, patience)
    return Spell(*row) if row else None


async def database_back(conn: Connection, begun: timedelta, ended: timedelta) -> Spell | None:
    """An outage that began and ended so long ago; None when it was told already."""
    row = await conn.fetchrow(DATABASE_BACK, begun, ended)
    return Spell(*row) if row else None


async def watch(conn: Connection) -> None:
    """From now on what was not told yet of gaps, failures and damage is known. Repeatable."""
    await conn.execute(WATCH)


async def next_gaps(conn: Connection, every: timedelta, settling: timedelta) -> Spell | None:
    """The time to tell of, where events were found that nobody pushed and `every` is over."""
    row = await conn.fetchrow(NEXT_GAPS, every, settling)
    return Spell(*row) if row else None


async def next_damage(conn: Connection, every: timedelta, settling: timedelta) -> Spell | None:
    """The time to tell of, where more blobs are damaged and `every` is over."""
    row = await conn.fetchrow(NEXT_DAMAGE, every, settling)
    return Spell(*row) if row else None


async def next_failed(conn: Connection, settling: timedelta) -> Spell | None:
    """The time to tell of, once a day of the database's clock in UTC."""
    row = await conn.fetchrow(NEXT_FAILED, settling)
    return Spell(*row) if row else None


async def next_custody(conn: Connection, settling: timedelta) -> Spell | None:
    """The time to tell of, once a day of the database's clock in UTC, if anything was sealed."""
    row = await conn.fetchrow(NEXT_CUSTODY, settling)
    return Spell(*row) if row else None


async def head(conn: Connection, spell: Spell) -> Head:
    """Where the chain of custody stood at the end of that time."""
    [row] = await conn.fetch(CUSTODY, spell.last_at)
    return Head(*row)


async def gaps(conn: Connection, spell: Spell) -> tuple[int, int]:
    """How many events were found that nobody pushed, and in how many rooms."""
    [row] = await conn.fetch(GAPS, spell.begun_at, spell.last_at)
    return row["events"], row["rooms"]


async def failed(conn: Connection, spell: Spell, limit: int) -> Failed:
    """What failed for good, with up to `limit` reasons. Reads all that ever did."""
    rows = await conn.fetch(FAILED, spell.begun_at, spell.last_at, limit)
    total = rows[0]["total"] if rows else 0
    return Failed(total, [(row["head"], row["number"]) for row in rows])


async def damaged(conn: Connection, spell: Spell, limit: int) -> Damaged:
    """What was found damaged, with up to `limit` media of it."""
    [row] = await conn.fetch(DAMAGED, spell.begun_at, spell.last_at)
    first = await conn.fetch(FIRST_DAMAGED, spell.begun_at, spell.last_at, limit)
    return Damaged(row["grown"], row["every"], [Mxc(*mxc) for mxc in first])
