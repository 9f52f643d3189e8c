"""Events become rows: both doors, push and history, pass here. One statement, one commit.

Idempotent by event_id. Rows go in sorted by key, so that two pushes of the same events wait for
each other instead of deadlocking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import structlog

from archiver.capture.policy import REMOTE_EXCLUDED, ROOM_EXCLUDED, CapturePolicy
from archiver.capture.rows import Kept, bare, storable_json
from archiver.model import Mxc, Source

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# `due_at` starts at the event's own time, never later than now: of what is due the queue takes
# mostly the youngest, so what people post today passes by an old room's backlog.
#
# Media that are known already are passed over before the INSERT, because ON CONFLICT DO UPDATE
# locks even the rows that it leaves as they are: a push would wait for workers, and they for it.
RECORD = """
WITH new_event AS (
    INSERT INTO event (event_id, room_id, sender, type, state_key, origin_server_ts, content, raw,
                       replaces, redacts, source)
    SELECT e.event_id, e.room_id, e.sender, e.type, e.state_key, e.ts, e.content::jsonb, e.raw,
           e.replaces, e.redacts, $11
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                $7::text[], $8::bytea[], $9::text[], $10::text[])
         AS e(event_id, room_id, sender, type, state_key, ts, content, raw, replaces, redacts)
    ON CONFLICT (event_id) DO NOTHING
    RETURNING 1
), new_media AS (
    INSERT INTO media AS known (server_name, media_id, due_at, state, reason)
    SELECT m.server_name, m.media_id, least(now(), to_timestamp(m.ts / 1000.0)),
           CASE WHEN m.reason IS NULL THEN 'pending' ELSE 'excluded' END, m.reason
    FROM unnest($12::text[], $13::text[], $14::bigint[], $15::text[])
         AS m(server_name, media_id, ts, reason)
    WHERE (SELECT m.reason IS NOT NULL OR k.state <> 'excluded'
                  OR k.reason LIKE 'capture.max_size%'
           FROM media AS k WHERE k.server_name = m.server_name AND k.media_id = m.media_id
          ) IS NOT TRUE
    ON CONFLICT (server_name, media_id) DO UPDATE
        SET state = 'pending', due_at = EXCLUDED.due_at, reason = NULL
        WHERE known.state = 'excluded' AND EXCLUDED.state = 'pending'
          AND known.reason NOT LIKE 'capture.max_size%'
    RETURNING state
), new_reference AS (
    INSERT INTO reference (event_id, server_name, media_id, role, item, filename, caption,
                           declared_type, declared_size, encryption)
    SELECT r.event_id, r.server_name, r.media_id, r.role, r.item, r.filename, r.caption,
           r.declared_type, r.declared_size, r.encryption::jsonb
    FROM unnest($16::text[], $17::text[], $18::text[], $19::text[], $20::smallint[], $21::text[],
                $22::text[], $23::text[], $24::bigint[], $25::text[])
         AS r(event_id, server_name, media_id, role, item, filename, caption, declared_type,
              declared_size, encryption)
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM new_event) AS events,
       (SELECT count(*) FROM new_reference) AS "references",
       (SELECT count(*) FROM new_media WHERE state = 'pending') AS media,
       (SELECT pg_notify('media_pending', '') FROM new_media WHERE state = 'pending' LIMIT 1)
"""


log = structlog.get_logger(__name__)


class Recorded(NamedTuple):
    """How much of a batch was new."""

    events: int = 0
    references: int = 0
    media: int = 0


class _MediaRow(NamedTuple):
    server_name: str
    media_id: str
    ts: int | None
    reason: str | None


async def record(
    conn: Connection, kept: list[Kept], source: Source, policy: CapturePolicy
) -> Recorded:
    """Commits what is kept of some events; after return it is durable. Raises what asyncpg does.

    Nothing is written, and nothing waited for, when there is nothing to keep.
    """
    try:
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
        *_columns(10, [found.row for found in kept]),
        source,
        *_columns(4, _media_rows(kept, policy)),
        *_columns(10, _reference_rows(kept)),
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


def _media_rows(kept: Sequence[Kept], policy: CapturePolicy) -> list[_MediaRow]:
    """One row a media, sorted; wanted wins where one event leaves it out and another does not."""
    rows: dict[Mxc, _MediaRow] = {}
    for found in kept:
        for reference in found.references:
            mxc = reference.mxc
            reason = ROOM_EXCLUDED if found.left_out else None
            if reason is None and policy.leaves_out_media(mxc):
                reason = REMOTE_EXCLUDED
            if mxc not in rows or reason is None:
                rows[mxc] = _MediaRow(*mxc, found.row.origin_server_ts, reason)
    return [rows[mxc] for mxc in sorted(rows)]


def _reference_rows(kept: Sequence[Kept]) -> list[tuple[Any, ...]]:
    rows = [
        (
            found.row.event_id,
            *mxc,
            role,
            item,
            *words,
            storable_json(encryption) if encryption else None,
        )
        for found in kept
        for mxc, role, item, *words, encryption in found.references
    ]
    return sorted(rows, key=itemgetter(slice(4)))


def _columns(width: int, rows: Iterable[Sequence[Any]]) -> Iterable[Sequence[Any]]:
    """Rows turned into the arrays that `unnest` takes; it fills up the shorter ones with NULL.

    A column of None alone goes as an empty array, which costs nothing to send.
    """
    columns = zip(*rows, strict=True)
    lean = [() if all(value is None for value in column) else column for column in columns]
    return lean or [()] * width
