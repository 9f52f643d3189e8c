"""One kept event as a reader asks for it, with its edits and the media that they name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from archiver.catalogue.people import SENDER_NAME

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# `o` is the event that this one edits. An edit counts when the same person changes a message of
# the same type in the same room, and that is no edit itself.
# https://spec.matrix.org/v1.16/client-server-api/#validity-of-replacement-events
COLUMNS = (
    """
SELECT e.event_id, e.room_id, e.sender, e.type, e.state_key, e.origin_server_ts, e.sent_at,
       e.received_at, e.source, e.content, e.raw, e.original, e.replaces,
       o.event_id IS NOT NULL AS is_edit,
       e.redacted_by, e.redacted_at, d.sender AS redactor,
       CASE WHEN jsonb_typeof(d.content -> 'reason') = 'string'
            THEN left(d.content ->> 'reason', 4096) END AS redaction_reason,
       e.redacted_by IS NOT NULL OR o.redacted_by IS NOT NULL AS redacted,
       """
    + SENDER_NAME
    + """ AS sender_name
FROM event AS e
LEFT JOIN event AS d ON d.event_id = e.redacted_by
LEFT JOIN event AS o ON o.event_id = e.replaces AND o.room_id = e.room_id AND o.sender = e.sender
     AND o.type = e.type AND o.replaces IS NULL AND o.state_key IS NULL AND e.state_key IS NULL
"""
)
EVENT = COLUMNS + "WHERE e.event_id = $1"
EDITS = (
    COLUMNS
    + """WHERE e.replaces = $1 AND o.event_id = $1
ORDER BY e.sent_at, e.event_id LIMIT $2"""
)
REFERENCES = """
SELECT r.event_id, r.server_name, r.media_id, m.state, m.reason, r.role, r.item, r.filename,
       r.caption, r.declared_type, r.declared_size, r.encryption
FROM reference AS r JOIN media AS m USING (server_name, media_id)
WHERE r.event_id = ANY($1::text[])
ORDER BY r.event_id, r.item, r.role, r.server_name, r.media_id
"""


async def find(conn: Connection, event_id: str) -> Row | None:
    """The event, if it is kept."""
    return await conn.fetchrow(EVENT, event_id)


async def edits(conn: Connection, event_id: str, limit: int) -> list[Row]:
    """The first valid edits of an event, the oldest first, as `find` gives each."""
    return await conn.fetch(EDITS, event_id, limit)


async def references(conn: Connection, event_ids: Iterable[str]) -> list[Row]:
    """The media that the events name, with what became of each."""
    return await conn.fetch(REFERENCES, list(event_ids))
