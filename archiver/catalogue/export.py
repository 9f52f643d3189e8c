"""What an export reads, page by page, and what an import writes beside `RECORD`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.targets import AT_ONCE, LONG_AGO, PIECE, columns
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool, Row

# Each is read along an index of its own: first what has media, then the rest.
_PAGE = """
SELECT e.sent_at, e.event_id FROM event AS e
WHERE IS_WANTED AND (e.sent_at, e.event_id) > ($1, $2) AND e.sent_at < $3
  AND ($4::text, $5::text) IS NOT NULL
ORDER BY e.sent_at, e.event_id LIMIT $6
"""
_IN_ROOM = "(e.room_id = $4 AND ($5 = '' OR e.sender = $5))"
ROOM_MEDIA = _PAGE.replace("IS_WANTED", f"e.has_media AND {_IN_ROOM}")
ROOM_OTHERS = _PAGE.replace("IS_WANTED", f"NOT e.has_media AND {_IN_ROOM}")
USER_MEDIA = _PAGE.replace("IS_WANTED", "e.has_media AND e.sender = $5")
ALL_MEDIA = _PAGE.replace("IS_WANTED", "e.has_media")
# No index tells these apart: all events are passed over, a piece at a time.
OTHERS = """
SELECT max(event_id), array_agg(event_id ORDER BY event_id)
           FILTER (WHERE NOT has_media AND ($3 = '' OR sender = $3)
                   AND sent_at >= $4 AND sent_at < $5)
FROM (SELECT event_id, sender, has_media, sent_at FROM event
      WHERE event_id > $1 ORDER BY event_id LIMIT $2) AS piece
"""
# Whatever changes or answers some events, though somebody else said it, or later.
RELATED = """
SELECT event_id FROM event WHERE replaces = ANY($1::text[])
UNION
SELECT event_id FROM event WHERE redacts = ANY($1::text[])
UNION
SELECT event_id FROM event
WHERE left(content #>> '{m.relates_to,event_id}', 255) = ANY($1::text[])
  AND type IN ('m.poll.response', 'org.matrix.msc3381.poll.response',
               'm.poll.end', 'org.matrix.msc3381.poll.end')
ORDER BY event_id
"""
EVENTS = """
SELECT event_id, room_id, sender, type, state_key, origin_server_ts, sent_at, received_at,
       source, content, raw, replaces, redacts, original, redacted_by, redacted_at
FROM event WHERE event_id = ANY($1::text[]) ORDER BY sent_at, event_id
"""
MEDIA = """
SELECT m.server_name, m.media_id, m.state, m.reason, m.declared_type, m.upload_name,
       m.created_at, m.settled_at, m.blob_sha256, b.size, b.place, b.mimetype, b.width, b.height,
       b.duration_ms
FROM unnest($1::text[], $2::text[]) AS wanted(server_name, media_id)
JOIN media AS m USING (server_name, media_id)
LEFT JOIN blob AS b ON b.sha256 = m.blob_sha256
ORDER BY m.server_name, m.media_id
"""
CUSTODY = """
SELECT id, at, actor, place, action, target, detail FROM custody
WHERE target = ANY($1::text[]) AND id > $2 ORDER BY id LIMIT $3
"""
# The senders' hashes as `queue.CLAIM_NEWEST` has them: of what may be filled in.
# Of lines that tell of many media, only the part about these.
CAPTURES = """
SELECT c.id, c.at, c.actor, c.place, c.action, one ->> 0 AS target,
       c.detail || jsonb_build_object('media', jsonb_build_array(one),
                                      'of', jsonb_array_length(c.detail -> 'media')) AS detail
FROM custody AS c CROSS JOIN LATERAL jsonb_array_elements(c.detail -> 'media') AS one
WHERE c.target IS NULL AND c.action IN ('capture', 'import')
  AND captured_media(c.detail) && (SELECT array_agg(hashtext(mxc)) FROM unnest($1::text[]) AS mxc)
  AND one ->> 0 = ANY($1::text[])
ORDER BY c.id, one ->> 0
"""
STATES = """
SELECT m.server_name, m.media_id, m.state, m.reason, m.blob_sha256,
       CASE WHEN m.blob_sha256 IS NULL THEN
           (SELECT array_agg(DISTINCT r.encryption #>> '{hashes,sha256}') FROM
               (SELECT encryption FROM reference AS r
                WHERE r.server_name = m.server_name AND r.media_id = m.media_id LIMIT 100) AS r
            HAVING count(*) < 100) END AS hashes
FROM unnest($1::text[], $2::text[]) AS wanted(server_name, media_id)
JOIN media AS m USING (server_name, media_id)
"""
KNOWN = "SELECT event_id FROM event WHERE event_id = ANY($1::text[])"
# A worker that has it under way loses its claim. What was deleted and comes back is as redacted as
# its events are, of which its row says nothing any more.
ENLIST = """
INSERT INTO media AS known (server_name, media_id, state, due_at, attempts)
SELECT *, 'pending', 'infinity', 1 FROM unnest($1::text[], $2::text[])
ON CONFLICT (server_name, media_id) DO UPDATE
    SET state = 'pending', due_at = 'infinity', attempts = known.attempts + 1, reason = NULL,
        paced_at = NULL, charged = NULL,
        redacted_at = CASE WHEN known.state = 'deleted' AND known.redacted_at IS NULL AND (
            SELECT bool_and(e.redacted_by IS NOT NULL)
            FROM reference AS r JOIN event AS e USING (event_id)
            WHERE r.server_name = known.server_name AND r.media_id = known.media_id)
            THEN now() ELSE known.redacted_at END
    WHERE known.state = ANY($3::text[])
RETURNING server_name, media_id, attempts
"""
NOTE = """
INSERT INTO media (server_name, media_id, state, reason, due_at, settled_at)
SELECT *, now() FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
ON CONFLICT DO NOTHING
RETURNING server_name, media_id
"""
# `RECORD` queues again what was deleted or left out and is named once more.
STAY = """
UPDATE media AS m SET state = b.state, reason = b.reason, due_at = NULL, paced_at = NULL
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
     AS b(server_name, media_id, state, reason)
WHERE m.server_name = b.server_name AND m.media_id = b.media_id AND m.state = 'pending'
"""

FOREVER = datetime.max.replace(tzinfo=UTC)


class Selection(NamedTuple):
    """Which events: of a room, by a sender, from `since` on, before `until`. None: all."""

    room_id: str | None = None
    sender: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def with_media(pool: Pool, wanted: Selection) -> AsyncIterator[list[str]]:
    """The selected events that name media, oldest first, some hundreds at a time."""
    statement = ALL_MEDIA
    if wanted.room_id:
        statement = ROOM_MEDIA
    elif wanted.sender:
        statement = USER_MEDIA
    async for page in _walk(pool, statement, wanted):
        yield page


async def others(pool: Pool, wanted: Selection) -> AsyncIterator[list[str]]:
    """The selected events that name none. A page may be empty."""
    if wanted.room_id:
        async for page in _walk(pool, ROOM_OTHERS, wanted):
            yield page
        return
    since, until = wanted.since or LONG_AGO, wanted.until or FOREVER
    last: str | None = ""
    while last is not None:
        row = await pool.fetchrow(OTHERS, last, PIECE, wanted.sender or "", since, until)
        last, found = (row[0], row[1] or []) if row else (None, [])
        for start in range(0, len(found), AT_ONCE):
            yield found[start : start + AT_ONCE]


async def related(conn: Connection, event_ids: Sequence[str]) -> list[str]:
    """Edits and redactions of some events, and votes in them."""
    return [row["event_id"] for row in await conn.fetch(RELATED, event_ids)]


async def events(conn: Connection, event_ids: Sequence[str]) -> list[Row]:
    """The events as they are kept, oldest first."""
    return await conn.fetch(EVENTS, event_ids)


async def media(conn: Connection, names: Sequence[Mxc]) -> list[Row]:
    """Some media with what is known of their bytes."""
    return await conn.fetch(MEDIA, *columns(names))


async def custody(pool: Pool, targets: Sequence[str]) -> AsyncIterator[list[Row]]:
    """What custody tells of some targets, page by page."""
    last = 0
    while rows := await pool.fetch(CUSTODY, targets, last, AT_ONCE):
        yield rows
        last = rows[-1]["id"]
    if rows := await pool.fetch(CAPTURES, [one for one in targets if one.startswith("mxc://")]):
        yield rows


async def states(conn: Connection, names: Sequence[Mxc]) -> dict[Mxc, Row]:
    """Those of the media that are known, with state, reason, blob_sha256 and hashes."""
    return {Mxc(row[0], row[1]): row for row in await conn.fetch(STATES, *columns(names))}


async def known(conn: Connection, event_ids: Sequence[str]) -> set[str]:
    """Those of the events that are recorded."""
    return {row["event_id"] for row in await conn.fetch(KNOWN, event_ids)}


async def enlist(conn: Connection, names: Sequence[Mxc], states: Sequence[str]) -> dict[Mxc, int]:
    """Claims media that are new or in one of these states, for `queue.complete` within the same
    transaction; returns the claims' numbers. What the others are now stays. Locks in key order."""
    rows = await conn.fetch(ENLIST, *columns(sorted(names)), states)
    return {Mxc(row[0], row[1]): row[2] for row in rows}


async def note(conn: Connection, ended: Sequence[tuple[Mxc, str, str | None]]) -> set[Mxc]:
    """Records media that come without bytes as (mxc, state, reason); returns which are new."""
    rows = sorted((*mxc, state, reason) for mxc, state, reason in ended)
    due = [datetime.now(UTC) if row[2] == "pending" else None for row in rows]
    found = await conn.fetch(NOTE, *([row[n] for row in rows] for n in range(4)), due)
    return {Mxc(*row) for row in found}


async def stay(conn: Connection, ended: Sequence[tuple[Mxc, str, str | None]]) -> None:
    """Puts (mxc, state, reason) back that were queued just now, in this transaction."""
    rows = sorted((*mxc, state, reason) for mxc, state, reason in ended)
    await conn.execute(STAY, *([row[n] for row in rows] for n in range(4)))


async def _walk(pool: Pool, statement: str, wanted: Selection) -> AsyncIterator[list[str]]:
    at, last = wanted.since or LONG_AGO, ""
    until, room_id, sender = wanted.until or FOREVER, wanted.room_id or "", wanted.sender or ""
    while rows := await pool.fetch(statement, at, last, until, room_id, sender, AT_ONCE):
        at, last = rows[-1]["sent_at"], rows[-1]["event_id"]
        yield [row["event_id"] for row in rows]
