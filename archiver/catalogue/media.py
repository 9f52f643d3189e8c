"""Media as a reader asks for it: its state, its bytes, and who posted it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.people import ROOM_NAME, SENDER_NAME
from archiver.model import Blob, Facts, Mxc, Place, State

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# The file name costs a look at the references only where the request brings none ($3). An avatar
# may have any number of them, none with a name: a hundred must do.
LOOK = """
SELECT m.state, m.reason, m.declared_type, b.sha256, b.size, b.place, b.mimetype,
       false AS redacted, m.redacted_at IS NULL AS live,
       CASE WHEN $3 THEN coalesce(
           (SELECT r.filename FROM
               (SELECT filename FROM reference AS r
                WHERE server_name = $1 AND media_id = $2 LIMIT 100) AS r
            WHERE r.filename IS NOT NULL LIMIT 1),
           m.upload_name) END AS filename,
       NULL::bytea AS data
FROM media AS m LEFT JOIN blob AS b ON b.sha256 = m.blob_sha256
WHERE m.server_name = $1 AND m.media_id = $2
"""
# Where redacted media is hidden: whether it is, which its events are asked only if `redacted_at`
# hints at it, and for a reader ($4) the name from no redacted event. A statement of its own,
# because plans are paid for in each part, used or not.
LOOK_WARILY = LOOK.replace(
    "false AS redacted,",
    """CASE WHEN m.redacted_at IS NULL THEN false ELSE NOT EXISTS
           (SELECT FROM reference AS r JOIN event AS e USING (event_id)
            WHERE r.server_name = $1 AND r.media_id = $2 AND e.redacted_by IS NULL) END
           AS redacted,""",
).replace(
    "LIMIT 100",
    """AND (NOT $4 OR EXISTS
                    (SELECT FROM event AS e
                     WHERE e.event_id = r.event_id AND e.redacted_by IS NULL)) LIMIT 100""",
)


def _with_data(look: str) -> str:
    """Up to 1 MiB comes at once. What is larger is read in pieces as the reader takes them, or
    five hundred slow readers would hold five hundred times the inline limit."""
    return look.replace("NULL::bytea", "d.data").replace(
        "WHERE m.server_name",
        "LEFT JOIN blob_data AS d ON d.sha256 = b.sha256 AND b.place = 'inline'"
        " AND b.size <= 1048576 AND m.state = 'ready'\nWHERE m.server_name",
    )


# Told by triggers of each media that was ready: server name, a slash, media id.
CHANGED = "media_changed"

READ, READ_WARILY = _with_data(LOOK), _with_data(LOOK_WARILY)
DESCRIBE = """
SELECT m.state, m.reason, m.attempts,
       CASE WHEN m.state = 'pending' AND m.paced_at IS NULL THEN m.due_at END AS due_at,
       m.created_at, m.settled_at, m.declared_type, m.upload_name, m.access_count,
       m.last_accessed, encode(b.sha256, 'hex') AS sha256, b.size, b.mimetype, b.width, b.height,
       b.duration_ms, b.place, b.processing, b.processing_reason, b.scan, b.scanned_at,
       b.scan_reason,
       CASE WHEN m.redacted_at IS NULL OR m.state = 'deleted' THEN false ELSE NOT EXISTS
           (SELECT FROM reference AS r JOIN event AS e USING (event_id)
            WHERE r.server_name = $1 AND r.media_id = $2 AND e.redacted_by IS NULL) END
           AS redacted,
       (SELECT count(*) FROM reference AS r
        WHERE r.server_name = m.server_name AND r.media_id = m.media_id
          AND (NOT $3 OR EXISTS (SELECT FROM event AS e WHERE e.event_id = r.event_id
                                   AND e.redacted_by IS NULL))) AS reference_count
FROM media AS m LEFT JOIN blob AS b ON b.sha256 = m.blob_sha256
WHERE m.server_name = $1 AND m.media_id = $2
"""
REFERENCES = (
    "SELECT "
    + SENDER_NAME
    + " AS sender_name, "
    + ROOM_NAME
    + """ AS room_name,
       r.event_id, e.room_id, e.sender, e.type, e.origin_server_ts, r.role, r.item, r.filename,
       r.caption, r.declared_type, r.declared_size, r.encryption, e.replaces,
       e.redacted_by, e.redacted_at, redaction.sender AS redactor,
       redaction.content ->> 'reason' AS redaction_reason
FROM reference AS r JOIN event AS e USING (event_id)
LEFT JOIN event AS redaction ON redaction.event_id = e.redacted_by
WHERE r.server_name = $1 AND r.media_id = $2 AND (NOT $4 OR e.redacted_by IS NULL)
ORDER BY e.origin_server_ts DESC NULLS LAST, r.event_id, r.role LIMIT $3
"""
)


class Media(NamedTuple):
    """What a download needs to know. `redacted`: every event that names it was. `live`: no
    redaction ever did that. `data`: the bytes of a small inline blob, if asked for."""

    state: State
    reason: str | None
    declared_type: str | None
    blob: Blob | None
    redacted: bool
    live: bool
    filename: str | None
    data: bytes | None


async def look(
    conn: Connection, mxc: Mxc, *, with_name: bool, with_data: bool, hides: bool | None = None
) -> Media | None:
    """The media, in one statement; None where nobody ever named it.

    `with_name`: also the file name of an event that names it, or else of its upload. `hides`:
    whether redacted events are hidden from the reader; None where they are from nobody, and
    `redacted` is not asked for.
    """
    if hides is None:
        row = await conn.fetchrow(READ if with_data else LOOK, *mxc, with_name)
    else:
        statement = READ_WARILY if with_data else LOOK_WARILY
        row = await conn.fetchrow(statement, *mxc, with_name, hides)
    if row is None:
        return None
    state, reason, declared_type, sha256, size, place, mimetype, *rest = row
    blob = Blob(sha256, size, Place(place), Facts(mimetype)) if sha256 else None
    return Media(State(state), reason, declared_type, blob, *rest)


async def describe(conn: Connection, mxc: Mxc, *, unredacted: bool) -> Row | None:
    """Everything known of a media and its blob, and how many references it has.

    `unredacted`: those of redacted events are not counted.
    """
    return await conn.fetchrow(DESCRIBE, *mxc, unredacted)


async def references(conn: Connection, mxc: Mxc, limit: int, *, unredacted: bool) -> list[Row]:
    """The newest `limit` references, with what their events say of them.

    `unredacted`: without those of redacted events.
    """
    return await conn.fetch(REFERENCES, *mxc, limit, unredacted)
