"""What a redaction is about: marks on events, and on the media that only redacted events name.

Events are locked before media, and the worklist is held by a lease instead of a lock, in the order
in which recording takes them: so neither waits for the other in a circle.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# Longer than any statement of ours runs: by then whatever was under way is there to be seen.
UNSEEN = timedelta(minutes=2)

CLAIM = """
WITH due AS (
    SELECT redaction FROM redaction_due WHERE due_at <= now()
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE redaction_due AS d SET due_at = now() + $2::interval
FROM due WHERE d.redaction = due.redaction
RETURNING d.redaction, d.due_at
"""
# Without the claim nothing is said of it: it was claimed anew, or there is more to look at.
DONE = """
WITH young AS (
    UPDATE redaction_due SET due_at = now() + $3::interval
    WHERE redaction = $1 AND due_at = $2
      AND EXISTS (SELECT FROM event WHERE event_id = $1 AND received_at > now() - $3::interval)
    RETURNING redaction
)
DELETE FROM redaction_due
WHERE redaction = $1 AND due_at = $2 AND NOT EXISTS (SELECT FROM young)
"""
# The event and its edits, in the redaction's own room. An edit by somebody else is none; where the
# archive has no original (a text, as most are), nobody can tell, and it may be the author's.
MARK = """
WITH meant AS (
    SELECT e.event_id, e.redacted_by IS NULL AS fresh,
           r.event_id AS redaction, r.sent_at
    FROM event AS r JOIN event AS e ON e.event_id = r.redacts OR e.replaces = r.redacts
    WHERE r.event_id = $1 AND r.type = 'm.room.redaction' AND e.room_id = r.room_id
      AND (e.event_id = r.redacts OR NOT EXISTS (
              SELECT FROM event AS o WHERE o.event_id = r.redacts
                AND (o.room_id, o.sender) IS DISTINCT FROM (e.room_id, e.sender)))
    ORDER BY e.event_id FOR NO KEY UPDATE OF e
), marked AS (
    UPDATE event AS e SET redacted_by = m.redaction, redacted_at = m.sent_at
    FROM meant AS m
    WHERE e.event_id = m.event_id
      AND (m.fresh OR (e.redacted_at, e.redacted_by) > (m.sent_at, m.redaction))
)
SELECT event_id, fresh FROM meant
"""
LOCK_MEDIA = """
SELECT server_name, media_id FROM media
WHERE (server_name, media_id) IN
      (SELECT server_name, media_id FROM reference WHERE event_id = ANY($1::text[]))
ORDER BY server_name, media_id FOR NO KEY UPDATE
"""
# A statement of its own, after the locks: it sees what another redaction did meanwhile.
HINT = """
WITH seen AS (
    SELECT m.server_name, m.media_id,
           CASE WHEN EXISTS (
                    SELECT FROM reference AS r JOIN event AS e USING (event_id)
                    WHERE r.server_name = m.server_name AND r.media_id = m.media_id
                      AND e.redacted_by IS NULL) THEN NULL
                WHEN $3 THEN now()
                ELSE coalesce(m.redacted_at, now()) END AS redacted_at
    FROM unnest($1::text[], $2::text[]) AS named(server_name, media_id)
    JOIN media AS m USING (server_name, media_id)
    WHERE m.state <> 'deleted'
)
UPDATE media AS m SET redacted_at = seen.redacted_at FROM seen
WHERE m.server_name = seen.server_name AND m.media_id = seen.media_id
  AND m.redacted_at IS DISTINCT FROM seen.redacted_at
"""
WANTED = """
SELECT event_id, source FROM event
WHERE original = 'wanted' AND event_id > $1 ORDER BY event_id LIMIT 1
"""
LOST = "UPDATE event SET original = 'lost' WHERE event_id = $1 AND original = 'wanted'"
FORGET = "DELETE FROM event WHERE event_id = $1 AND original = 'wanted'"


class Due(NamedTuple):
    """A redaction, by its event id, claimed until `due_at`."""

    redaction: str
    due_at: datetime


async def claim(conn: Connection, limit: int, lease: timedelta) -> list[Due]:
    """Takes up to `limit` redactions whose effect is to be worked out."""
    return [Due(*row) for row in await conn.fetch(CLAIM, limit, lease)]


async def done(conn: Connection, due: Due) -> None:
    """Ends a claim. A young redaction is looked at once more: its event may be on its way."""
    await conn.execute(DONE, *due, UNSEEN)


async def work_out(conn: Connection, redaction: str) -> bool:
    """Marks what the redaction is about. True when an event was redacted by it only now.

    To be called in a transaction. May be repeated; of several redactions the earliest counts.
    """
    meant = await conn.fetch(MARK, redaction)
    if not meant:
        return False
    fresh = any(row["fresh"] for row in meant)
    media = await conn.fetch(LOCK_MEDIA, [row["event_id"] for row in meant])
    if media:
        await conn.execute(HINT, [row[0] for row in media], [row[1] for row in media], fresh)
    return fresh


async def next_wanted(conn: Connection, after: str) -> tuple[str, str] | None:
    """The id and source of an event that came emptied, the next one after the id `after`."""
    row = await conn.fetchrow(WANTED, after)
    return (row["event_id"], row["source"]) if row else None


async def give_up_original(conn: Connection, event_id: str) -> None:
    """Nobody has what the event held before it was emptied."""
    await conn.execute(LOST, event_id)


async def forget(conn: Connection, event_id: str) -> None:
    """It was an ordinary text, which is not kept, emptied or not."""
    await conn.execute(FORGET, event_id)
