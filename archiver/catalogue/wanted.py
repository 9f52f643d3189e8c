"""What a list of media is to have, and where it can be at all, as far as an index tells."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# MATERIALIZED, so that all of it is planned for, and stopped when there is too much: planned for a
# few, whatever lies close together in time would be looked for through the whole table.
_SOME = "WITH found AS MATERIALIZED (FOUND) SELECT event_id FROM found LIMIT $2"
_OF_MEDIA = """
SELECT r.event_id FROM media AS m
CROSS JOIN LATERAL (SELECT event_id FROM reference AS r
                    WHERE r.server_name = m.server_name AND r.media_id = m.media_id OFFSET 0) AS r
WHERE m."""
OF_SHA256 = _SOME.replace("FOUND", _OF_MEDIA + "blob_sha256 = $1")
OF_PENDING = _SOME.replace("FOUND", _OF_MEDIA + "state = $1 AND m.state = 'pending'")
OF_ENDED = _SOME.replace(
    "FOUND",
    _OF_MEDIA + "state = $1 AND m.state IN ('failed', 'excluded', 'quarantined', 'deleted')",
)
OF_SERVER = _SOME.replace("FOUND", "SELECT event_id FROM reference WHERE server_name = $1")
OF_WORDS = _SOME.replace("FOUND", "SELECT event_id FROM reference WHERE words @@ $1::tsquery")


class Filter(NamedTuple):
    """Which references are asked for: from `since` on, before `until`; None does not restrict.

    `kind` is the role, or of role `content` what it shows: image, video, audio, or file. `family`
    is how a media type begins (`image/`), and `words` what `lexemes.query` made of a text.
    """

    since: datetime | None = None
    until: datetime | None = None
    room_id: str | None = None
    sender: str | None = None
    kind: str | None = None
    role: str | None = None
    state: str | None = None
    mimetype: str | None = None
    family: str | None = None
    server_name: str | None = None
    sha256: bytes | None = None
    words: str | None = None
    event_id: str | None = None


async def places(conn: Connection, wanted: Filter, most: int) -> list[str] | None:
    """The events where it can be at all. None: no index tells, or there are more than `most`."""
    statement: str | None = None
    value: Any = None
    match wanted:
        case Filter(sha256=bytes(value)):
            statement = OF_SHA256
        case Filter(words=str(value)):
            statement = OF_WORDS
        case Filter(state="pending" as value):
            statement = OF_PENDING
        case Filter(state=str(value)) if value != "ready":
            statement = OF_ENDED
        case Filter(server_name=str(value)):
            statement = OF_SERVER
    if statement is None:
        return None
    rows = await conn.fetch(statement, value, most + 1)
    return [row["event_id"] for row in rows] if len(rows) <= most else None
