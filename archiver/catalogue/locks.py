"""Objects that are locked in their bucket because somebody holds them.

A row of `object_lock` is committed before the bucket is asked to lock, and goes after it was asked
to unlock: so what the archive has locked is always known, also once its blob is deleted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.holds import IS_IN_SPAN, MEDIA_IS_HELD, span_of
from archiver.catalogue.targets import LONG_AGO, PAGE, Target

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

AT_ONCE = 300  # events
PIECE = 2_000  # events that are looked at for one page of a span
BATCH = 200  # objects

# A hold is on a media, whose bytes the database has where they are no object.
ENLIST = """
INSERT INTO object_lock (sha256)
SELECT DISTINCT b.sha256 FROM media AS m JOIN blob AS b ON b.sha256 = m.blob_sha256
WHERE IS_MEANT AND b.place = 'object'
  AND NOT EXISTS (SELECT FROM object_lock AS l WHERE l.sha256 = b.sha256) AND MEDIA_IS_HELD
ORDER BY b.sha256
ON CONFLICT (sha256) DO NOTHING
""".replace("MEDIA_IS_HELD", MEDIA_IS_HELD)
ENLIST_MEDIA = ENLIST.replace("IS_MEANT", "(m.server_name, m.media_id) = ($1, $2)")
ENLIST_BYTES = ENLIST.replace("IS_MEANT", "m.blob_sha256 = $1")
ENLIST_EVENTS = ENLIST.replace(
    "IS_MEANT",
    """(m.server_name, m.media_id) IN (SELECT r.server_name, r.media_id FROM reference AS r
                                    WHERE r.event_id = ANY($1::text[]))""",
)
WALKS = {
    "event": PAGE.replace("IS_WANTED", "(e.event_id = $1 OR e.replaces = $1)"),
    "user": PAGE.replace("IS_WANTED", "e.sender = $1 AND e.has_media"),
    "room": PAGE.replace("IS_WANTED", "e.room_id = $1 AND e.has_media"),
}
# What was pushed in a span may say that it is of any time before: all are passed over.
IN_SPAN = """
SELECT e.sent_at, e.event_id, IS_IN_SPAN AS wanted
FROM event AS e CROSS JOIN
    (SELECT 'span' AS kind, $1::timestamptz AS begins_at, $2::timestamptz AS ends_at) AS h
WHERE e.has_media AND (e.sent_at, e.event_id) > ($3, $4) AND e.sent_at < $2
ORDER BY e.sent_at, e.event_id LIMIT $5
""".replace("IS_IN_SPAN", IS_IN_SPAN)

# OFFSET 0: asked of each row along the indexes, never for all rows at once.
IS_HELD = """(
    EXISTS (SELECT FROM blob AS b WHERE b.sha256 = l.sha256 AND b.place = 'object' OFFSET 0)
    AND EXISTS (SELECT FROM media AS m WHERE m.blob_sha256 = l.sha256 AND MEDIA_IS_HELD OFFSET 0)
)""".replace("MEDIA_IS_HELD", MEDIA_IS_HELD)
DUE = """
SELECT l.sha256 FROM object_lock AS l
WHERE l.locked_at IS NULL AND l.due_at <= now() AND IS_HELD ORDER BY l.due_at LIMIT $1
""".replace("IS_HELD", IS_HELD)
LISTED = """
SELECT l.sha256, IS_HELD AS held FROM object_lock AS l
WHERE l.sha256 > $1 ORDER BY l.sha256 LIMIT $2
""".replace("IS_HELD", IS_HELD)
LOCKED = "UPDATE object_lock SET locked_at = now(), bucket = $2 WHERE sha256 = $1"
# What is locked in another bucket than is used now is not locked in this one.
ANEW = """
WITH page AS (
    SELECT sha256, locked_at, bucket FROM object_lock WHERE sha256 > $1 ORDER BY sha256 LIMIT $3
), elsewhere AS (
    UPDATE object_lock SET locked_at = NULL, due_at = now()
    WHERE sha256 = ANY(ARRAY(
        SELECT sha256 FROM page WHERE locked_at IS NOT NULL AND bucket IS DISTINCT FROM $2))
)
SELECT sha256 FROM page ORDER BY sha256 DESC LIMIT 1
"""
PUT_OFF = "UPDATE object_lock SET due_at = now() + $2::interval WHERE sha256 = $1"
FORGET = "DELETE FROM object_lock WHERE sha256 = $1"
IS_OURS = "SELECT EXISTS (SELECT FROM object_lock WHERE sha256 = $1)"
WANTED = """
SELECT EXISTS (SELECT FROM hold WHERE released_at IS NULL) OR EXISTS (SELECT FROM object_lock)
"""
RELEASED = "SELECT count(*) FROM hold WHERE released_at IS NOT NULL"


class Listed(NamedTuple):
    """An object that is locked, or to be; and whether a live hold is still on it."""

    sha256: bytes
    held: bool


async def wanted(conn: Connection) -> bool:
    """Whether something is held, or may be locked."""
    return bool(await conn.fetchval(WANTED))


async def enlist(
    pool: Pool, kind: str, target: str, since: datetime = LONG_AGO
) -> AsyncIterator[None]:
    """Notes what a live hold is on and is not noted yet; a step of some hundreds at a time. Of a
    span, what is said to have been sent from `since` on."""
    if kind == "mxc":
        await pool.execute(ENLIST_MEDIA, *Target(kind, target).mxc)
    elif kind == "hash":
        await pool.execute(ENLIST_BYTES, Target(kind, target).sha256)
    else:
        pages = _in_span(pool, target, since) if kind == "span" else _named(pool, kind, target)
        async for events in pages:
            await pool.execute(ENLIST_EVENTS, events)
            yield
    yield


async def due(conn: Connection) -> list[bytes]:
    """Objects that are held and not locked yet, those first that wait longest."""
    return [row["sha256"] for row in await conn.fetch(DUE, BATCH)]


async def listed(pool: Pool) -> AsyncIterator[list[Listed]]:
    """All that is locked or to be, in the order of the names, some hundreds at a time."""
    last = b""
    while rows := await pool.fetch(LISTED, last, BATCH):
        last = rows[-1]["sha256"]
        yield [Listed(*row) for row in rows]


async def anew(pool: Pool, bucket: str) -> AsyncIterator[None]:
    """Lets all be locked in this bucket that was locked in others; some hundreds at a time."""
    last: bytes | None = b""
    while last is not None:
        last = await pool.fetchval(ANEW, last, bucket, BATCH)
        yield


async def locked(conn: Connection, sha256: bytes, bucket: str) -> None:
    """The bucket has locked it."""
    await conn.execute(LOCKED, sha256, bucket)


async def put_off(conn: Connection, sha256: bytes, delay: timedelta) -> None:
    """It cannot be locked now."""
    await conn.execute(PUT_OFF, sha256, delay)


async def forget(conn: Connection, sha256: bytes) -> None:
    """The bucket has unlocked it."""
    await conn.execute(FORGET, sha256)


async def is_ours(conn: Connection, sha256: bytes) -> bool:
    """Whether the archive may have locked it."""
    return bool(await conn.fetchval(IS_OURS, sha256))


async def released(conn: Connection) -> int:
    """How many holds were released so far."""
    return int(await conn.fetchval(RELEASED))


async def _named(pool: Pool, kind: str, target: str) -> AsyncIterator[Sequence[str]]:
    at, event_id = LONG_AGO, ""
    while rows := await pool.fetch(WALKS[kind], target, at, event_id, AT_ONCE):
        at, event_id = rows[-1]
        yield [row["event_id"] for row in rows]


async def _in_span(pool: Pool, target: str, since: datetime) -> AsyncIterator[Sequence[str]]:
    span = span_of(target)
    at, event_id = since, ""
    while span and (rows := await pool.fetch(IN_SPAN, *span, at, event_id, PIECE)):
        at, event_id, _ = rows[-1]
        yield [row["event_id"] for row in rows if row["wanted"]]
