"""Media as a reader asks for it: its state, its bytes, and who posted it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from archiver.model import Blob, Facts, Mxc, Place, State

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# The file name costs a look at the references only where the request brings none ($3). An avatar
# may have any number of them, none with a name: a hundred must do.
LOOK = """
SELECT m.state, m.reason, m.declared_type, b.sha256, b.size, b.place, b.mimetype,
       CASE WHEN $3 THEN coalesce(
           (SELECT r.filename FROM
               (SELECT filename FROM reference
                WHERE server_name = $1 AND media_id = $2 LIMIT 100) AS r
            WHERE r.filename IS NOT NULL LIMIT 1),
           m.upload_name) END AS filename,
       NULL::bytea AS data
FROM media AS m LEFT JOIN blob AS b ON b.sha256 = m.blob_sha256
WHERE m.server_name = $1 AND m.media_id = $2
"""
# Up to 1 MiB comes at once. What is larger is read in pieces as the reader takes them, or five
# hundred slow readers would hold five hundred times the inline limit.
READ = LOOK.replace("NULL::bytea", "d.data").replace(
    "WHERE m.server_name",
    "LEFT JOIN blob_data AS d ON d.sha256 = b.sha256 AND b.place = 'inline'"
    " AND b.size <= 1048576 AND m.state = 'ready'\nWHERE m.server_name",
)
DESCRIBE = """
SELECT m.state, m.reason, m.attempts,
       CASE WHEN m.state = 'pending' AND m.paced_at IS NULL THEN m.due_at END AS due_at,
       m.created_at, m.settled_at, m.declared_type, m.upload_name, m.access_count,
       m.last_accessed, encode(b.sha256, 'hex') AS sha256, b.size, b.mimetype, b.width, b.height,
       b.duration_ms, b.place,
       (SELECT count(*) FROM reference AS r
        WHERE r.server_name = m.server_name AND r.media_id = m.media_id) AS reference_count
FROM media AS m LEFT JOIN blob AS b ON b.sha256 = m.blob_sha256
WHERE m.server_name = $1 AND m.media_id = $2
"""
REFERENCES = """
SELECT r.event_id, e.room_id, e.sender, e.type, e.origin_server_ts, r.role, r.item, r.filename,
       r.caption, r.declared_type, r.declared_size, r.encryption
FROM reference AS r JOIN event AS e USING (event_id)
WHERE r.server_name = $1 AND r.media_id = $2
ORDER BY e.origin_server_ts DESC NULLS LAST, r.event_id, r.role LIMIT $3
"""


class Media(NamedTuple):
    """What a download needs to know. `data`: the bytes of a small inline blob, if asked for."""

    state: State
    reason: str | None
    declared_type: str | None
    blob: Blob | None
    filename: str | None
    data: bytes | None


async def look(conn: Connection, mxc: Mxc, *, with_name: bool, with_data: bool) -> Media | None:
    """The media, in one statement; None where nobody ever named it.

    `with_name`: also the file name of an event that names it, or else of its upload.
    """
    row = await conn.fetchrow(READ if with_data else LOOK, *mxc, with_name)
    if row is None:
        return None
    state, reason, declared_type, sha256, size, place, mimetype, filename, data = row
    blob = Blob(sha256, size, Place(place), Facts(mimetype)) if sha256 else None
    return Media(State(state), reason, declared_type, blob, filename, data)


async def describe(conn: Connection, mxc: Mxc) -> Row | None:
    """Everything known of a media and its blob, and how many references it has."""
    return await conn.fetchrow(DESCRIBE, *mxc)


async def references(conn: Connection, mxc: Mxc, limit: int) -> list[Row]:
    """The newest `limit` references, with what their events say of them."""
    return await conn.fetch(REFERENCES, *mxc, limit)
