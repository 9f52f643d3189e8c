"""What is deleted after its redaction: rows first, in one commit; of objects, the bytes later.

A blob is locked before it is asked who else has it. Whoever records the same bytes meanwhile waits
at the foreign key, finds the blob gone, and starts over.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from archiver.catalogue.garbage import discard_all
from archiver.catalogue.holds import EVENT_IS_HELD, HOLDS_WAIT, MEDIA_IS_HELD
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# `RECORD` queues what was deleted for this reason when somebody posts it again.
REASON = "capture.on_redaction: every event that names it was redacted"
# Longer than any statement of ours runs: whoever named the media meanwhile is to be seen.
LOOK_AGAIN_AFTER = timedelta(minutes=2)

IS_LIVE = """EXISTS (
    SELECT FROM reference AS r JOIN event AS e USING (event_id)
    WHERE r.server_name = m.server_name AND r.media_id = m.media_id AND e.redacted_by IS NULL
)"""
DUE = """
SELECT m.server_name, m.media_id FROM media AS m
WHERE m.redacted_at < now() - $1::interval AND m.state <> 'deleted' AND NOT MEDIA_IS_HELD
ORDER BY m.redacted_at LIMIT $2
""".replace("MEDIA_IS_HELD", MEDIA_IS_HELD)
# FOR UPDATE, so that a new reference, which checks its key, has to wait.
LOCK = """
SELECT blob_sha256 FROM media
WHERE server_name = $1 AND media_id = $2 AND state <> 'deleted'
  AND redacted_at < now() - $3::interval
FOR UPDATE
"""
JUDGE = """
SELECT IS_LIVE AS live, MEDIA_IS_HELD AS held FROM media AS m
WHERE m.server_name = $1 AND m.media_id = $2
""".replace("IS_LIVE", IS_LIVE).replace("MEDIA_IS_HELD", MEDIA_IS_HELD)
SPARE = "UPDATE media SET redacted_at = NULL WHERE server_name = $1 AND media_id = $2"
# `redacted_at` begins anew: it says when to look once more whether somebody named it meanwhile.
DELETE_MEDIA = """
UPDATE media SET state = 'deleted', reason = $3, blob_sha256 = NULL, declared_type = NULL,
                 upload_name = NULL, due_at = NULL, paced_at = NULL, charged = NULL,
                 unfinished = 0, settled_at = now(), redacted_at = now()
WHERE server_name = $1 AND media_id = $2
"""
LOCK_BLOBS = "SELECT FROM blob WHERE sha256 = ANY($1::bytea[]) ORDER BY sha256 FOR UPDATE"
# A blob that goes takes along what was made of it, which may be the very same bytes.
DELETE_VARIANTS = """
WITH gone AS (
    DELETE FROM variant AS mine
    WHERE mine.blob_sha256 = ANY($1::bytea[])
      AND NOT EXISTS (SELECT FROM media AS m WHERE m.blob_sha256 = mine.blob_sha256)
      AND NOT EXISTS (SELECT FROM variant AS v
                      WHERE v.sha256 = mine.blob_sha256 AND v.blob_sha256 <> v.sha256)
    RETURNING mine.blob_sha256, mine.sha256
)
SELECT DISTINCT sha256 FROM gone WHERE sha256 <> blob_sha256
"""
# What was a variant of another of them until just now still has its own: its turn is next.
DELETE_BLOBS = """
DELETE FROM blob AS b
WHERE b.sha256 = ANY($1::bytea[])
  AND NOT EXISTS (SELECT FROM media AS m WHERE m.blob_sha256 = b.sha256)
  AND NOT EXISTS (SELECT FROM variant AS v WHERE v.sha256 = b.sha256)
  AND NOT EXISTS (SELECT FROM variant AS v WHERE v.blob_sha256 = b.sha256)
RETURNING sha256, size, place
"""
DELETE_DATA = "DELETE FROM blob_data WHERE sha256 = ANY($1::bytea[])"
# What was moved out of the database stays there for a while.
DELETE_LEFTOVERS = """
WITH gone AS (
    DELETE FROM leftover WHERE sha256 = ANY($1::bytea[]) AND store = 'inline' RETURNING sha256
)
DELETE FROM blob_data WHERE sha256 IN (SELECT sha256 FROM gone)
"""
REVIVE = """
UPDATE media AS m
SET redacted_at = NULL,
    state = CASE WHEN judged.live THEN 'pending' ELSE m.state END,
    reason = CASE WHEN NOT judged.live THEN m.reason END,
    due_at = CASE WHEN judged.live THEN now() END
FROM (SELECT m.server_name, m.media_id, IS_LIVE AS live FROM media AS m
      WHERE m.state = 'deleted' AND m.redacted_at < now() - $1::interval
      FOR NO KEY UPDATE) AS judged
WHERE m.server_name = judged.server_name AND m.media_id = judged.media_id
RETURNING judged.live
""".replace("IS_LIVE", IS_LIVE)
# The grace period counts from when the redaction came: its sender may say any time of it. Who may
# do what in a room outlives a redaction (https://spec.matrix.org/v1.16/client-server-api/#redactions).
WORDY = """
SELECT e.event_id FROM event AS e
WHERE e.redacted_at < now() - $1::interval AND (e.content <> '{}' OR e.raw IS NOT NULL)
  AND e.type IS DISTINCT FROM 'm.room.create' AND e.type IS DISTINCT FROM 'm.room.power_levels'
  AND EXISTS (SELECT FROM event AS by WHERE by.event_id = e.redacted_by
                AND by.received_at < now() - $1::interval)
  AND NOT EVENT_IS_HELD
ORDER BY e.redacted_at LIMIT $2
""".replace("EVENT_IS_HELD", EVENT_IS_HELD)
LOCK_EVENTS = """
SELECT FROM event WHERE event_id = ANY($1::text[]) ORDER BY event_id FOR NO KEY UPDATE
"""
EMPTY_EVENTS = "UPDATE event SET content = '{}', raw = NULL WHERE event_id = ANY($1::text[])"
EMPTY_REFERENCES = """
UPDATE reference SET filename = NULL, caption = NULL, declared_type = NULL, declared_size = NULL,
                     encryption = NULL, words = NULL
WHERE event_id = ANY($1::text[])
"""


async def due(conn: Connection, grace: timedelta, limit: int) -> list[Mxc]:
    """Media that only redacted events have named for longer than `grace`, and nobody holds."""
    return [Mxc(*row) for row in await conn.fetch(DUE, grace, limit)]


async def delete_media(conn: Connection, mxc: Mxc, grace: timedelta) -> bool:
    """Deletes a media in one commit, with its blob if no other media has it; a tombstone stays.

    False: it is held, was deleted already, or somebody names it again.
    """
    async with conn.transaction():
        await conn.execute(HOLDS_WAIT)
        row = await conn.fetchrow(LOCK, *mxc, grace)
        if row is None:
            return False
        live, held = await conn.fetchrow(JUDGE, *mxc) or (True, True)
        if live:
            await conn.execute(SPARE, *mxc)
        if live or held:
            return False
        await conn.execute(DELETE_MEDIA, *mxc, REASON)
        if row["blob_sha256"] is not None:
            await drop_blobs(conn, [row["blob_sha256"]])
        return True


async def drop_blobs(conn: Connection, digests: Sequence[bytes]) -> int:
    """Deletes those blobs that no media has any more and that are no variants of others, and
    their own variants; the bytes of objects become garbage. Returns how many bytes that freed.

    To be called in the transaction that took them from their media.
    """
    freed = 0
    while digests:
        await conn.execute(LOCK_BLOBS, digests)
        variants = [row["sha256"] for row in await conn.fetch(DELETE_VARIANTS, digests)]
        gone = await conn.fetch(DELETE_BLOBS, digests)
        freed += sum(row["size"] for row in gone)
        if inline := [row["sha256"] for row in gone if row["place"] == "inline"]:
            await conn.execute(DELETE_DATA, inline)
        if objects := [row["sha256"] for row in gone if row["place"] == "object"]:
            await conn.execute(DELETE_LEFTOVERS, objects)
            await discard_all(conn, objects)
        digests = variants
    return freed


async def revive(conn: Connection) -> int:
    """Queues deleted media that an event named while they were being deleted; returns how many."""
    rows = await conn.fetch(REVIVE, LOOK_AGAIN_AFTER)
    return sum(row["live"] for row in rows)


async def empty_words(conn: Connection, grace: timedelta, limit: int) -> int:
    """Takes the words from events redacted longer than `grace` ago, unless held; returns how many.

    What is left says who posted which media in which role, and who redacted it.
    """
    async with conn.transaction():
        await conn.execute(HOLDS_WAIT)
        events = [row["event_id"] for row in await conn.fetch(WORDY, grace, limit)]
        await conn.execute(LOCK_EVENTS, events)
        await conn.execute(EMPTY_EVENTS, events)
        await conn.execute(EMPTY_REFERENCES, events)
        return len(events)
