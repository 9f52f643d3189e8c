"""Blobs as a scanner sees them: which are to be looked at, when, and what was said of each.

`scan_due` is schedule, back-off and lease in one. Whoever claimed a blob knows the moment their
lease ends, and who claims or schedules it after them sets another: so it tells whose the blob is.
While the table `scanning` has its row, what is newly archived is due at once (`queue`); what was
archived before is made due page by page, in the order of its name. Thumbnails are made by us of
what is looked at itself, and are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.model import Blob, Mxc, Place

if TYPE_CHECKING:
    from archiver.db.pool import Connection

AT_ONCE = 1_000  # older blobs made due in a commit
ENOUGH = 500  # due ones, while which no more are made due

# The lock waits for those who are inserting a blob: whoever comes later sees the row, and who
# came earlier is seen by who schedules what is older.
IS_ON = "SELECT EXISTS (SELECT FROM scanning)"
LOCK_BLOBS = "LOCK TABLE blob IN SHARE ROW EXCLUSIVE MODE"
# Who wants to insert meanwhile waits behind us. Longer than a vacuum takes to make way.
BRIEFLY = "SET LOCAL lock_timeout = '2s'"
SWITCH_ON = "INSERT INTO scanning DEFAULT VALUES ON CONFLICT (only_one) DO NOTHING"
SWITCH_OFF = "DELETE FROM scanning"
ALL_AGAIN = "UPDATE scanning SET since = now(), reached = '' RETURNING true"

# The newest first: what was archived long ago has waited long already.
CLAIM = """
WITH due AS (
    SELECT sha256 FROM blob WHERE scan_due <= now()
    ORDER BY scan_due DESC LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE blob AS b SET scan_due = now() + $1::interval, scan_attempts = b.scan_attempts + 1
FROM due WHERE b.sha256 = due.sha256
RETURNING b.sha256, b.size, b.place, b.scan_due, b.scan_attempts, b.scan, b.scan_reason
"""
# What everybody who posted it encrypted; what nobody posted any more is not.
IS_ENCRYPTED = """
SELECT coalesce(bool_and(r.encryption IS NOT NULL), false)
FROM media AS m JOIN reference AS r USING (server_name, media_id) WHERE m.blob_sha256 = $1
"""
# What was known to be infected is no news.
SETTLE = """
UPDATE blob SET scan = $3, scan_reason = $4, scan_engine = $5,
                scanned_at = CASE WHEN scan = 'infected' AND $3 = 'infected' AND scan_reason = $4
                             THEN scanned_at ELSE now() END,
                scan_due = NULL, scan_attempts = 0
WHERE sha256 = $1 AND scan_due = $2
RETURNING true
"""
# What was found earlier stays: it is not less true while nobody can look again.
PUT_OFF = """
UPDATE blob SET scan_due = now() + $3::interval,
                scan = coalesce(scan, 'unscanned'), scanned_at = coalesce(scanned_at, now()),
                scan_reason = CASE WHEN scan IS NULL OR scan = 'unscanned' THEN $4
                              ELSE scan_reason END
WHERE sha256 = $1 AND scan_due = $2
"""
GIVE_BACK = """
UPDATE blob SET scan_due = now(), scan_attempts = scan_attempts - 1
WHERE sha256 = $1 AND scan_due = $2
"""
IS_REFUSED = "SELECT EXISTS (SELECT FROM refused WHERE sha256 = $1)"

HAS_ENOUGH = """
SELECT count(*) >= $1 FROM (SELECT FROM blob WHERE scan_due <= now() LIMIT $1) AS due
"""
REACHED = """
SELECT since, reached FROM scanning WHERE reached IS NOT NULL FOR UPDATE SKIP LOCKED
"""
PAGE = "SELECT sha256 FROM blob WHERE sha256 > $1 ORDER BY sha256 LIMIT $2"
MAKE_DUE = """
WITH mine AS (
    SELECT sha256 FROM blob AS b
    WHERE sha256 = ANY($1::bytea[]) AND scan_due IS NULL
      AND (scanned_at IS NULL OR scanned_at < $2)
      AND EXISTS (SELECT FROM media AS m WHERE m.blob_sha256 = b.sha256)
    ORDER BY sha256 FOR NO KEY UPDATE
)
UPDATE blob AS b SET scan_due = b.created_at, scan_attempts = 0
FROM mine WHERE b.sha256 = mine.sha256
"""
MOVE_ON = "UPDATE scanning SET reached = $1"

AGAIN = """
WITH mine AS (
    SELECT b.sha256 FROM blob AS b
    WHERE b.sha256 IN (SELECT m.blob_sha256
                       FROM unnest($1::text[], $2::text[]) AS named(server_name, media_id)
                       JOIN media AS m USING (server_name, media_id))
    ORDER BY b.sha256 FOR NO KEY UPDATE
)
UPDATE blob AS b SET scan_due = now(), scan_attempts = 0 FROM mine WHERE b.sha256 = mine.sha256
"""


class Claimed(NamedTuple):
    """A blob that this process has looked at until a moment, how often that was tried, and what
    was found before: the outcome, and the signature's name."""

    blob: Blob
    until: datetime
    attempts: int
    scan: str | None
    reason: str | None


class Found(NamedTuple):
    """What is to be said of a blob: clean, infected or unscanned, why, and who says so."""

    scan: str
    reason: str | None
    engine: str | None


async def switch_on(conn: Connection) -> None:
    """What is archived from now on is to be looked at, and then what is there. Repeatable.

    Raises asyncpg.LockNotAvailableError while somebody takes long to change blobs.
    """
    if await conn.fetchval(IS_ON):
        return
    async with conn.transaction():
        await conn.execute(BRIEFLY)
        await conn.execute(LOCK_BLOBS)
        await conn.execute(SWITCH_ON)


async def switch_off(conn: Connection) -> None:
    """Nothing more is made due. What is due stays so, until somebody looks."""
    if await conn.fetchval(IS_ON):
        await conn.execute(SWITCH_OFF)


async def claim(conn: Connection, lease: timedelta) -> Claimed | None:
    """Takes the blob that became due last."""
    row = await conn.fetchrow(CLAIM, lease)
    if row is None:
        return None
    blob = Blob(row["sha256"], row["size"], Place(row["place"]))
    return Claimed(blob, *row[3:])


async def is_encrypted(conn: Connection, sha256: bytes) -> bool:
    """Whether nobody but its readers can open it, if its senders are right: then a scanner sees
    noise."""
    return bool(await conn.fetchval(IS_ENCRYPTED, sha256))


async def settle(conn: Connection, claimed: Claimed, found: Found) -> bool:
    """Says what was found, for good; False where it was deleted or is somebody else's by now."""
    key = claimed.blob.sha256, claimed.until
    return bool(await conn.fetchval(SETTLE, *key, *found))


async def put_off(conn: Connection, claimed: Claimed, delay: timedelta, reason: str) -> None:
    """Lets it wait, as not scanned for this reason, unless more was found before."""
    await conn.execute(PUT_OFF, claimed.blob.sha256, claimed.until, delay, reason)


async def give_back(conn: Connection, claimed: Claimed) -> None:
    """As if nobody had looked."""
    await conn.execute(GIVE_BACK, claimed.blob.sha256, claimed.until)


async def is_released(conn: Connection, claimed: Claimed, signature: str) -> bool:
    """Whether somebody released it after this very signature was found in it."""
    if (claimed.scan, claimed.reason) != ("infected", signature):
        return False
    return not await conn.fetchval(IS_REFUSED, claimed.blob.sha256)


async def make_due(conn: Connection) -> bool:
    """Makes a page of what is older due, as soon as little else is; False where nothing was to do.
    To be called in a transaction."""
    if await conn.fetchval(HAS_ENOUGH, ENOUGH):
        return False
    row = await conn.fetchrow(REACHED)
    if row is None:
        return False
    page = [one["sha256"] for one in await conn.fetch(PAGE, row["reached"], AT_ONCE)]
    await conn.execute(MAKE_DUE, page, row["since"])
    await conn.execute(MOVE_ON, page[-1] if page else None)
    return bool(page)


async def again(conn: Connection, media: Sequence[Mxc]) -> int:
    """These are looked at again, at once; returns how many blobs that is."""
    names = [mxc.server_name for mxc in media], [mxc.media_id for mxc in media]
    return _count(await conn.execute(AGAIN, *names))


async def all_again(conn: Connection) -> bool:
    """Everything is looked at again; False where there is no scanner."""
    return bool(await conn.fetchval(ALL_AGAIN))


def _count(status: str) -> int:
    return int(status.rpartition(" ")[2])
