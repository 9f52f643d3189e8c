"""Polls and what people said about them, as rows of `event`.

`ts` is a row's origin_server_ts, which MSC3381 counts by, or else when the event came.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.knowledge import Place

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# An edit of a poll is of the poll's own type, and no poll. Nor is a state event.
BEGUN = """
SELECT e.event_id, e.room_id, e.sender, e.type, e.content, e.raw, e.sent_at,
       e.redacted_by IS NOT NULL OR e.original IS NOT NULL AS redacted, e.redacted_by,
       e.redacted_at, r.sender AS redactor,
       CASE WHEN jsonb_typeof(r.content -> 'reason') = 'string'
            THEN left(r.content ->> 'reason', 4096) END AS redaction_reason,
       coalesce(e.origin_server_ts, (extract(epoch FROM e.sent_at) * 1000)::bigint) AS ts
FROM event AS e LEFT JOIN event AS r ON r.event_id = e.redacted_by
WHERE e.type IN ('m.poll.start', 'org.matrix.msc3381.poll.start')
  AND e.replaces IS NULL AND e.state_key IS NULL
"""
POLL = BEGUN + "AND e.event_id = $1"
POLLS = (
    BEGUN
    + """
  AND ($1::text IS NULL OR e.room_id = $1)
  AND e.sent_at >= coalesce($2::timestamptz, '-infinity')
  AND e.sent_at < coalesce($3::timestamptz, 'infinity')
  AND (e.sent_at, e.event_id) < (coalesce($4::timestamptz, 'infinity'), coalesce($5::text, ''))
ORDER BY e.sent_at DESC, e.event_id DESC LIMIT $6
"""
)
# An edit goes with its poll: what redacted both does not bring back the words from before.
EDITS = """
SELECT e.event_id, e.room_id, e.sender, e.type, e.content, e.raw, e.sent_at, e.replaces,
       e.redacted_by IS NOT NULL AND NOT EXISTS
           (SELECT FROM event AS o
            WHERE o.event_id = e.replaces AND o.redacted_by = e.redacted_by) AS redacted,
       coalesce(e.origin_server_ts, (extract(epoch FROM e.sent_at) * 1000)::bigint) AS ts
FROM event AS e
WHERE e.replaces = ANY($1::text[])
  AND e.type IN ('m.poll.start', 'org.matrix.msc3381.poll.start') AND e.state_key IS NULL
"""
# With each end the power levels in force when it was sent.
ENDS = """
SELECT e.event_id, e.room_id, e.sender, e.type, e.content, e.raw, e.sent_at,
       e.redacted_by IS NOT NULL AS redacted,
       left(e.content #>> '{m.relates_to,event_id}', 255) AS poll,
       coalesce(e.origin_server_ts, (extract(epoch FROM e.sent_at) * 1000)::bigint) AS ts,
       p.content AS levels, c.content AS create, c.sender AS creator
FROM event AS e
LEFT JOIN LATERAL (
    SELECT content FROM event
    WHERE room_id = e.room_id AND type = 'm.room.power_levels' AND state_key = ''
      AND sent_at <= e.sent_at
    ORDER BY sent_at DESC LIMIT 1) AS p ON true
LEFT JOIN LATERAL (
    SELECT content, sender FROM event
    WHERE room_id = e.room_id AND type = 'm.room.create' AND state_key = ''
    ORDER BY sent_at LIMIT 1) AS c ON true
WHERE left(e.content #>> '{m.relates_to,event_id}', 255) = ANY($1::text[])
  AND e.type IN ('m.poll.end', 'org.matrix.msc3381.poll.end') AND e.state_key IS NULL
"""
RESPONSES = """
SELECT event_id, room_id, sender, type, content, raw, redacted_by IS NOT NULL AS redacted,
       coalesce(origin_server_ts, (extract(epoch FROM sent_at) * 1000)::bigint) AS ts
FROM event
WHERE left(content #>> '{m.relates_to,event_id}', 255) = $1
  AND type IN ('m.poll.response', 'org.matrix.msc3381.poll.response') AND state_key IS NULL
"""
RESPONDED = """
SELECT left(content #>> '{m.relates_to,event_id}', 255) AS poll, room_id,
       count(DISTINCT sender) AS senders
FROM event
WHERE left(content #>> '{m.relates_to,event_id}', 255) = ANY($1::text[])
  AND type IN ('m.poll.response', 'org.matrix.msc3381.poll.response')
  AND state_key IS NULL AND redacted_by IS NULL
GROUP BY poll, room_id
"""


class Filter(NamedTuple):
    """Which polls are asked for: from `since` on, before `until`; None does not restrict."""

    room_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def poll(conn: Connection, event_id: str) -> Row | None:
    """The event that started a poll; None where there is no such poll."""
    return await conn.fetchrow(POLL, event_id)


async def polls(conn: Connection, wanted: Filter, below: Place | None, limit: int) -> list[Row]:
    """The newest `limit` polls below a position, newest first."""
    return await conn.fetch(POLLS, *wanted, *(below or (None, None)), limit)


async def edits(conn: Connection, event_ids: Sequence[str]) -> list[Row]:
    """What claims to replace these polls, in no order; `replaces` tells which one."""
    return await conn.fetch(EDITS, event_ids)


async def ends(conn: Connection, event_ids: Sequence[str]) -> list[Row]:
    """What claims to close these polls, in no order; `poll` tells which one."""
    return await conn.fetch(ENDS, event_ids)


async def responses(conn: Connection, event_id: str) -> list[Row]:
    """What claims to be a vote in this poll, in no order."""
    return await conn.fetch(RESPONSES, event_id)


async def responded(conn: Connection, event_ids: Sequence[str]) -> dict[tuple[str, str], int]:
    """How many people responded to each of these polls, by its event_id and room_id."""
    rows = await conn.fetch(RESPONDED, event_ids)
    return {(row["poll"], row["room_id"]): row["senders"] for row in rows}
