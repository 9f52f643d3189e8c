"""Events become rows: both doors, push and history, pass here. One statement, one commit.

Idempotent by event_id. Rows go in sorted by key, so that two pushes of the same events wait for
each other instead of deadlocking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import structlog

from archiver import metrics
from archiver.capture.columns import columns, event_rows, media_rows, reference_rows
from archiver.capture.policy import CapturePolicy
from archiver.capture.rows import Kept, bare
from archiver.model import Source

if TYPE_CHECKING:
    from archiver.db.pool import Connection

PACED = "history.remote_rate: it waits for its turn"

# `due_at` starts at the event's own time, never later than now: of what is due the queue takes
# mostly the youngest, so what people post today passes by an old room's backlog.
#
# Media that are known already and stay as they are are passed over before the INSERT, because
# ON CONFLICT DO UPDATE locks even the rows that it leaves alone: a push would wait for workers,
# and they for it. What changes a known media: it was left out and is wanted now; it was deleted
# with its redacted event and is posted again, by another event than those that are redacted; it
# waits for the budget of old media and is posted today.
#
# An event that came emptied gives way to itself with content, and what a comparison found gives
# way to the push that was merely late, so that `source` tells what was really lost; words that
# were deleted in between do not come back. One in which media are found only now says so,
# and if it is redacted, its redaction is worked out once more.
# Redactions are looked up by a subquery for each event and not by a join, for which a plan made
# while the table was small reads it whole, and is kept when it is large.
RECORD = """
WITH new_event AS (
    INSERT INTO event AS known
           (event_id, room_id, sender, type, state_key, origin_server_ts, content, raw,
            replaces, redacts, original, source, sent_at, has_media)
    SELECT e.event_id, e.room_id, e.sender, e.type, e.state_key, e.ts, e.content::jsonb, e.raw,
           e.replaces, e.redacts, e.original, $12, least(now(), to_timestamp(e.ts / 1000.0)),
           e.event_id = ANY($19::text[])
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                $7::text[], $8::bytea[], $9::text[], $10::text[], $11::text[])
         AS e(event_id, room_id, sender, type, state_key, ts, content, raw, replaces, redacts,
              original)
    ON CONFLICT (event_id) DO UPDATE
        SET source = CASE WHEN known.original IS NULL AND EXCLUDED.source <> 'push'
                          THEN known.source ELSE EXCLUDED.source END,
            content = CASE WHEN known.original IS NOT NULL AND EXCLUDED.original IS NULL
                           THEN EXCLUDED.content ELSE known.content END,
            raw = CASE WHEN known.original IS NOT NULL AND EXCLUDED.original IS NULL
                       THEN EXCLUDED.raw ELSE known.raw END,
            replaces = coalesce(EXCLUDED.replaces, known.replaces),
            original = CASE WHEN EXCLUDED.original IS NULL THEN NULL ELSE known.original END,
            has_media = known.has_media OR EXCLUDED.has_media
        WHERE (known.original IS NOT NULL AND EXCLUDED.original IS NULL)
           OR (known.source = 'reconcile' AND EXCLUDED.source = 'push')
           OR (EXCLUDED.has_media AND NOT known.has_media)
    RETURNING event_id, type, redacts, replaces, xmax = 0 AS fresh
), new_media AS (
    INSERT INTO media AS known (server_name, media_id, due_at, state, reason, paced_at)
    SELECT m.server_name, m.media_id, CASE WHEN m.paced THEN 'infinity' ELSE m.due_at END,
           CASE WHEN m.reason IS NULL THEN 'pending' ELSE 'excluded' END,
           coalesce(m.reason, CASE WHEN m.paced THEN $18 END), CASE WHEN m.paced THEN m.due_at END
    FROM (SELECT server_name, media_id, least(now(), to_timestamp(ts / 1000.0)) AS due_at, reason,
                 paced AND reason IS NULL AS paced
          FROM unnest($13::text[], $14::text[], $15::bigint[], $16::text[], $17::boolean[])
               AS m(server_name, media_id, ts, reason, paced)) AS m
    WHERE (SELECT m.reason IS NULL AND CASE k.state
                      WHEN 'excluded' THEN k.reason NOT LIKE 'capture.max_size%'
                      WHEN 'deleted' THEN k.reason LIKE 'capture.on_redaction%' AND EXISTS (
                          SELECT FROM unnest($19::text[], $20::text[], $21::text[])
                                      AS r(event_id, server_name, media_id)
                          WHERE r.server_name = m.server_name AND r.media_id = m.media_id
                            AND (SELECT redacted_by FROM event AS e
                                 WHERE e.event_id = r.event_id) IS NULL)
                      WHEN 'pending' THEN k.paced_at IS NOT NULL AND NOT m.paced
                      ELSE false END
           FROM media AS k WHERE k.server_name = m.server_name AND k.media_id = m.media_id
          ) IS NOT FALSE
    ON CONFLICT (server_name, media_id) DO UPDATE
        SET state = 'pending', due_at = EXCLUDED.due_at, reason = EXCLUDED.reason,
            paced_at = EXCLUDED.paced_at, charged = NULL
        WHERE EXCLUDED.state = 'pending' AND CASE known.state
                  WHEN 'excluded' THEN known.reason NOT LIKE 'capture.max_size%'
                  WHEN 'deleted' THEN known.reason LIKE 'capture.on_redaction%'
                  WHEN 'pending' THEN known.paced_at IS NOT NULL AND EXCLUDED.paced_at IS NULL
                  ELSE false END
    RETURNING state
), new_reference AS (
    INSERT INTO reference (event_id, server_name, media_id, role, item, filename, caption,
                           declared_type, declared_size, encryption, words)
    SELECT r.event_id, r.server_name, r.media_id, r.role, r.item, r.filename, r.caption,
           r.declared_type, r.declared_size, r.encryption::jsonb,
           array_to_tsvector(string_to_array(r.words, ' '))
    FROM unnest($19::text[], $20::text[], $21::text[], $22::text[], $23::smallint[], $24::text[],
                $25::text[], $26::text[], $27::bigint[], $28::text[], $29::text[])
         AS r(event_id, server_name, media_id, role, item, filename, caption, declared_type,
              declared_size, encryption, words)
    ON CONFLICT DO NOTHING
    RETURNING event_id
), new_redaction AS (
    INSERT INTO redaction_due (redaction)
    SELECT event_id FROM new_event WHERE redacts IS NOT NULL AND type = 'm.room.redaction'
    UNION
    SELECT unnest(ARRAY(
        SELECT r.event_id FROM event AS r
        WHERE r.redacts = ANY (ARRAY[n.event_id, n.replaces]) AND r.type = 'm.room.redaction'
    )) FROM new_event AS n
    UNION
    SELECT redacted_by FROM (
        SELECT (SELECT redacted_by FROM event AS e WHERE e.event_id = n.event_id)
        FROM new_reference AS n
        WHERE n.event_id NOT IN (SELECT event_id FROM new_event WHERE fresh)
    ) AS before WHERE redacted_by IS NOT NULL
    ON CONFLICT (redaction) DO UPDATE SET due_at = now()
    RETURNING 1
)
SELECT (SELECT count(*) FILTER (WHERE fresh) FROM new_event) AS events,
       (SELECT count(*) FROM new_reference) AS "references",
       (SELECT count(*) FROM new_media WHERE state = 'pending') AS media,
       (SELECT pg_notify('media_pending', '') FROM new_media WHERE state = 'pending' LIMIT 1),
       (SELECT pg_notify('redaction_due', '') FROM new_redaction LIMIT 1)
"""


log = structlog.get_logger(__name__)


class Recorded(NamedTuple):
    """How much of a batch was new."""

    events: int = 0
    references: int = 0
    media: int = 0

    def add_to_metrics(self, source: Source) -> None:
        """Adds it to the metrics; to be said once it is committed."""
        metrics.EVENTS.labels(source).inc(self.events)
        metrics.REFERENCES.labels(source).inc(self.references)
        metrics.MEDIA_QUEUED.labels(source).inc(self.media)


async def record(
    conn: Connection, kept: list[Kept], source: Source, policy: CapturePolicy
) -> Recorded:
    """Commits what is kept of some events; after return it is durable. Raises what asyncpg does.

    Within the caller's transaction it is durable with that one. Nothing is written, and nothing
    waited for, when there is nothing to keep.
    """
    try:
        if not conn.is_in_transaction():
            return await _write(conn, kept, source, policy)
        async with conn.transaction():  # what is refused must not spoil the caller's own
            return await _write(conn, kept, source, policy)
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError) as error:
        log.error("a batch holds what the database refuses: its events go one by one", error=error)
        return await _write_apart(conn, kept, source, policy)


async def _write(
    conn: Connection, kept: list[Kept], source: Source, policy: CapturePolicy
) -> Recorded:
    if not kept:
        return Recorded()
    kept = sorted(kept, key=lambda found: found.row.event_id)
    row = await conn.fetchrow(
        RECORD,
        *columns(11, event_rows(kept)),
        source,
        *columns(5, media_rows(kept, source, policy)),
        PACED,
        *columns(11, reference_rows(kept)),
    )
    return Recorded(row["events"], row["references"], row["media"]) if row else Recorded()


async def _write_apart(
    conn: Connection, kept: list[Kept], source: Source, policy: CapturePolicy
) -> Recorded:
    """The same, so that what one event does to the database stays its own affair.

    No event is known to need it: it stands between an unknown one and a blocked homeserver.
    """
    total = Recorded()
    async with conn.transaction():
        for found in kept:
            try:
                async with conn.transaction():
                    one = await _write(conn, [found], source, policy)
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError):
                one = await _write(conn, [bare(found)], source, policy)
            total = Recorded(*(a + b for a, b in zip(total, one, strict=True)))
    return total
