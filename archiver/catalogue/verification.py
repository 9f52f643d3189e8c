"""Which blobs were hashed anew, when, and what came out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue import present
from archiver.catalogue.counting import OVERDUE, PATIENCE, Count, recent
from archiver.catalogue.targets import LONG_AGO
from archiver.model import Blob, Mxc, Place

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool, Row

AT_ONCE = 200
NAMES = 5  # of a blob, shown

# In the order of the index `blob_verified`: first what never was verified, then the oldest. What
# is right leaves the list, because it is verified later than the beginning; what is not is passed
# over.
NEVER = """
SELECT sha256, size, place, verified_at FROM blob
WHERE verified_at IS NULL AND sha256 > $1
ORDER BY verified_at NULLS FIRST, sha256 LIMIT $2
"""
OLDEST = """
SELECT sha256, size, place, verified_at FROM blob
WHERE (verified_at, sha256) > ($1, $2) AND verified_at < $3
ORDER BY verified_at NULLS FIRST, sha256 LIMIT $4
"""
# By itself, what is known to be damaged is left to who repairs it.
LIVE_NEVER, LIVE_OLDEST = (
    statement.replace("ORDER BY", "  AND damaged_at IS NULL ORDER BY")
    for statement in (NEVER, OLDEST)
)
OF_MEDIA = """
SELECT m.state, b.sha256, b.size, b.place FROM media AS m
LEFT JOIN blob AS b ON b.sha256 = m.blob_sha256
WHERE m.server_name = $1 AND m.media_id = $2
"""
# Sorted, because several may verify at once.
RIGHT = """
WITH mine AS (
    SELECT sha256, damaged_at IS NOT NULL AS mended FROM blob
    WHERE sha256 = ANY($1::bytea[]) ORDER BY sha256 FOR NO KEY UPDATE
)
UPDATE blob AS b SET verified_at = now(), damaged_at = NULL
FROM mine WHERE b.sha256 = mine.sha256
RETURNING b.sha256, mine.mended
"""
DAMAGED = """
WITH mine AS (SELECT sha256, damaged_at FROM blob WHERE sha256 = $1 FOR NO KEY UPDATE)
UPDATE blob AS b SET
    damaged_at = coalesce(b.damaged_at, now()),
    repair_due = CASE WHEN b.damaged_at IS NULL THEN now() ELSE b.repair_due END,
    repair_attempts = CASE WHEN b.damaged_at IS NULL THEN 0 ELSE b.repair_attempts END,
    repair_reason = CASE WHEN b.damaged_at IS NOT NULL THEN b.repair_reason END
FROM mine WHERE b.sha256 = mine.sha256
RETURNING mine.damaged_at IS NULL AS news
"""
SHARERS = """
SELECT server_name, media_id FROM media WHERE blob_sha256 = $1
UNION
SELECT m.server_name, m.media_id
FROM variant AS v JOIN media AS m ON m.blob_sha256 = v.blob_sha256 WHERE v.sha256 = $1
ORDER BY server_name, media_id LIMIT $2
"""
ALL = "SELECT count(*) AS blobs, coalesce(sum(size), 0)::bigint AS size FROM blob"
STANDING = """
SELECT count(*) AS blobs, count(*) FILTER (WHERE verified_at IS NULL) AS never,
       min(verified_at) AS oldest,
       count(*) FILTER (WHERE repaired_at IS NOT NULL) AS repaired, max(repaired_at) AS last_repair
FROM blob
"""
KNOWN_DAMAGED = """
SELECT sha256, repair_reason, repair_due FROM blob
WHERE damaged_at IS NOT NULL ORDER BY damaged_at LIMIT $1
"""


class Standing(NamedTuple):
    """How many blobs there are, how many never were verified, when the one was that waits
    longest of the others, how many were repaired, the last one when, and how old all that is; how
    many are damaged now, for which `present.MOST` stands for as many or more."""

    blobs: int
    never: int
    oldest: datetime | None
    repaired: int
    last_repair: datetime | None
    seconds_old: float
    damaged: int


class Known(NamedTuple):
    """A blob that is known to be damaged, why it could not be repaired, and when that is tried
    again; without a reason it was not tried yet."""

    sha256: bytes
    reason: str | None
    due_at: datetime


async def pages(pool: Pool, every: timedelta | None = None) -> AsyncGenerator[list[Blob], None]:
    """Every blob that was not verified since this began, a page at a time; with `every`, those
    that were not verified for so long and are not known to be damaged."""
    never, oldest = (LIVE_NEVER, LIVE_OLDEST) if every else (NEVER, OLDEST)
    began: datetime = await pool.fetchval("SELECT clock_timestamp()")
    began -= every or timedelta()
    last = b""
    while rows := await pool.fetch(never, last, AT_ONCE):
        last = rows[-1]["sha256"]
        yield [_blob(row) for row in rows]
    at, last = LONG_AGO, b""
    while rows := await pool.fetch(oldest, at, last, began, AT_ONCE):
        at, last = rows[-1]["verified_at"], rows[-1]["sha256"]
        yield [_blob(row) for row in rows]


async def blob_of(conn: Connection, mxc: Mxc) -> tuple[str | None, Blob | None]:
    """A media's state, None where nobody ever named it, and its blob."""
    row = await conn.fetchrow(OF_MEDIA, *mxc)
    if row is None:
        return None, None
    return row["state"], _blob(row) if row["sha256"] is not None else None


async def right(conn: Connection, digests: Sequence[bytes]) -> list[bytes]:
    """These are what their names say; returns those that were damaged before."""
    rows = await conn.fetch(RIGHT, digests)
    return [row["sha256"] for row in rows if row["mended"]]


async def damaged(conn: Connection, sha256: bytes) -> bool | None:
    """This one is not what its name says; True when it is news, None when the blob is gone."""
    news: bool | None = await conn.fetchval(DAMAGED, sha256)
    return news


async def sharers(conn: Connection, sha256: bytes) -> list[Mxc]:
    """Some of the media that have a blob, or a thumbnail that it is."""
    return [Mxc(*row) for row in await conn.fetch(SHARERS, sha256, NAMES)]


async def total(pool: Pool) -> tuple[int, int]:
    """How many blobs there are, and their bytes."""
    blobs, size = await pool.fetchrow(ALL) or (0, 0)
    return blobs, size


async def _verified(conn: Connection) -> dict[str, object]:
    return dict(await conn.fetchrow(STANDING, timeout=PATIENCE) or {})


VERIFIED = Count("verified", _verified)


async def standing(conn: Connection) -> Standing:
    """When everything was last verified, and what came out."""
    counted = await recent(conn, VERIFIED, OVERDUE)
    told = counted.value
    for key in ("oldest", "last_repair"):
        told[key] = told[key] and datetime.fromisoformat(told[key])
    known = await present.damage(conn)
    return Standing(**told, seconds_old=counted.age.total_seconds(), damaged=known.blobs)


async def known_damaged(conn: Connection, limit: int) -> list[Known]:
    """Blobs that are damaged, the longest first."""
    return [Known(*row) for row in await conn.fetch(KNOWN_DAMAGED, limit)]


def _blob(row: Row) -> Blob:
    return Blob(row["sha256"], row["size"], Place(row["place"]))
