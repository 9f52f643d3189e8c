"""What an administrator deletes for ever: a media, or what an event, a user or a room posted.

It does not come back when somebody posts it again: neither does recording queue a tombstone with
this reason, nor does `deletion.revive` look at one without `redacted_at`. A hold counts from the
moment that it is committed: who places one waits for what is being deleted, and the other way
round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.deletion import (
    EMPTY_REFERENCES,
    LOCK_EVENTS,
    drop_blobs,
)
from archiver.catalogue.holds import EVENT_IS_HELD, HOLDS_WAIT, MEDIA_IS_HELD
from archiver.catalogue.targets import IS_OF, Target, columns
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# What was deleted with its redacted events would come back when it is posted again.
IS_LEFT = "(m.state <> 'deleted' OR m.reason LIKE 'capture.on_redaction%')"
LEFT = """
SELECT m.server_name, m.media_id
FROM unnest($1::text[], $2::text[]) AS named(server_name, media_id)
JOIN media AS m USING (server_name, media_id)
WHERE IS_LEFT
""".replace("IS_LEFT", IS_LEFT)
# FOR UPDATE, so that a new reference, which checks its key, has to wait. Who waits for a media
# while having others could be waited for in turn: what somebody else has is left for later.
LOCK_FREE = (
    LEFT
    + """
ORDER BY m.server_name, m.media_id FOR UPDATE OF m SKIP LOCKED
"""
)
LOCK = "SELECT FROM media WHERE server_name = $1 AND media_id = $2 FOR UPDATE"
# Of what a target names stays what other events name; one without words names nothing any more.
IS_NAMED_OUTSIDE = """EXISTS (
    SELECT FROM reference AS r JOIN event AS e USING (event_id)
    WHERE r.server_name = m.server_name AND r.media_id = m.media_id
      AND (e.content <> '{}' OR e.raw IS NOT NULL) AND IS_OF IS NOT TRUE
)"""
OUTSIDE = {kind: IS_NAMED_OUTSIDE.replace("IS_OF", is_of) for kind, is_of in IS_OF.items()} | {
    "mxc": "($1::text IS NULL)"
}
JUDGE = """
SELECT m.server_name, m.media_id
FROM unnest($2::text[], $3::text[]) AS named(server_name, media_id)
JOIN media AS m USING (server_name, media_id)
WHERE NOT OUTSIDE AND NOT MEDIA_IS_HELD
""".replace("MEDIA_IS_HELD", MEDIA_IS_HELD)
JUDGES = {kind: JUDGE.replace("OUTSIDE", outside) for kind, outside in OUTSIDE.items()}
# As `deletion.DELETE_MEDIA`, but nobody looks at it once more.
DELETE_FOR_EVER = """
UPDATE media AS m
SET state = 'deleted', reason = doomed.reason, blob_sha256 = NULL, declared_type = NULL,
    upload_name = NULL, due_at = NULL, paced_at = NULL, charged = NULL, unfinished = 0,
    settled_at = now(), redacted_at = NULL
FROM (SELECT x.server_name, x.media_id, x.blob_sha256, named.reason
      FROM unnest($1::text[], $2::text[], $3::text[]) AS named(server_name, media_id, reason)
      JOIN media AS x USING (server_name, media_id)) AS doomed
WHERE m.server_name = doomed.server_name AND m.media_id = doomed.media_id
RETURNING doomed.blob_sha256
"""
# Who may do what in a room outlives its messages, as in `deletion.WORDY`.
WORDY = """
SELECT e.event_id FROM event AS e
WHERE e.event_id = ANY($1::text[])
  AND (e.content <> '{}' OR e.raw IS NOT NULL OR e.original IS NOT NULL)
  AND e.type IS DISTINCT FROM 'm.room.create' AND e.type IS DISTINCT FROM 'm.room.power_levels'
  AND NOT EVENT_IS_HELD
ORDER BY e.event_id
""".replace("EVENT_IS_HELD", EVENT_IS_HELD)
# Whose original is looked for or lost would be filled again by whoever brings it.
EMPTY_FOR_EVER = """
UPDATE event SET content = '{}', raw = NULL, original = NULL WHERE event_id = ANY($1::text[])
"""
# `goes`: the media that would be deleted. A blob goes when all its media do.
WEIGH = """
WITH named AS (NAMED), judged AS MATERIALIZED (
    SELECT m.server_name, m.media_id, m.blob_sha256, MEDIA_IS_HELD AS held, OUTSIDE AS outside
    FROM named JOIN media AS m USING (server_name, media_id) WHERE IS_LEFT
), goes AS MATERIALIZED (
    SELECT * FROM judged WHERE NOT held AND NOT outside
), blobs AS (
    SELECT g.blob_sha256 FROM goes AS g WHERE g.blob_sha256 IS NOT NULL GROUP BY g.blob_sha256
    HAVING count(*) = (SELECT count(*) FROM media AS x WHERE x.blob_sha256 = g.blob_sha256)
), bytes AS (
    SELECT blob_sha256 AS sha256 FROM blobs
    UNION SELECT v.sha256 FROM blobs JOIN variant AS v USING (blob_sha256)
)
SELECT (SELECT count(*) FROM goes) AS media,
       (SELECT coalesce(sum(b.size), 0)::bigint FROM bytes JOIN blob AS b USING (sha256)) AS size,
       (SELECT count(DISTINCT e.room_id) FROM goes
        JOIN reference AS r USING (server_name, media_id) JOIN event AS e USING (event_id))
           AS rooms,
       (SELECT count(*) FROM judged WHERE held) AS held,
       (SELECT count(*) FROM judged WHERE outside AND NOT held) AS outside,
       IS_KNOWN AS known
""".replace("IS_LEFT", IS_LEFT).replace("MEDIA_IS_HELD", MEDIA_IS_HELD)
NAMED_BY = """
SELECT DISTINCT r.server_name, r.media_id FROM event AS e JOIN reference AS r USING (event_id)
WHERE e.has_media AND IS_OF
"""
ITSELF = "SELECT split_part($1, '/', 3) AS server_name, split_part($1, '/', 4) AS media_id"
WEIGHTS = {
    kind: WEIGH.replace("NAMED", NAMED_BY)
    .replace("OUTSIDE", OUTSIDE[kind])
    .replace("IS_KNOWN", "EXISTS (SELECT FROM event AS e WHERE IS_OF)")
    .replace("IS_OF", is_of)
    for kind, is_of in IS_OF.items()
} | {
    "mxc": WEIGH.replace("NAMED", ITSELF)
    .replace("OUTSIDE", OUTSIDE["mxc"])
    .replace("IS_KNOWN", "EXISTS (SELECT FROM named JOIN media USING (server_name, media_id))")
}
WEIGHING_SECONDS = 600.0


class Weight(NamedTuple):
    """What would go: media, bytes that nobody else has, and the rooms it was posted in; and what
    would stay though the target names it. `known`: the archive has heard of the target."""

    media: int
    size: int
    rooms: int
    held: int
    outside: int
    known: bool


class Gone(NamedTuple):
    """Media that were deleted, and the bytes that this freed."""

    media: list[Mxc]
    size: int


async def weigh(conn: Connection, target: Target) -> Weight:
    """What deleting the target would do now."""
    row = await conn.fetchrow(WEIGHTS[target.kind], target.value, timeout=WEIGHING_SECONDS)
    return Weight(*row) if row else Weight(0, 0, 0, 0, 0, False)


async def left(conn: Connection, media: Sequence[Mxc]) -> list[Mxc]:
    """Those of the media that are still to be deleted."""
    return [Mxc(*row) for row in await conn.fetch(LEFT, *columns(media))]


async def lock_free(conn: Connection, media: Sequence[Mxc]) -> list[Mxc]:
    """Locks those that are still to be deleted and that nobody else has locked, and holds.

    To be called first in the transaction that deletes them, as is `lock`.
    """
    await conn.execute(HOLDS_WAIT)
    return [Mxc(*row) for row in await conn.fetch(LOCK_FREE, *columns(media))]


async def lock(conn: Connection, mxc: Mxc) -> list[Mxc]:
    """The same for a single media; waits for who has it locked."""
    await conn.execute(HOLDS_WAIT)
    await conn.execute(LOCK, *mxc)
    return await left(conn, [mxc])


async def delete_locked(
    conn: Connection, target: Target, media: Sequence[Mxc], reason: str
) -> Gone:
    """Deletes locked media, unless held or named by others; blobs that nobody has go with them."""
    if not media:
        return Gone([], 0)
    rows = await conn.fetch(JUDGES[target.kind], target.value, *columns(media))
    doomed = [Mxc(*row) for row in rows]
    return Gone(doomed, await delete_for_ever(conn, doomed, [reason] * len(doomed)))


async def delete_for_ever(conn: Connection, media: Sequence[Mxc], reasons: Sequence[str]) -> int:
    """Deletes locked media, each for its reason, and the blobs that nobody has any more; returns
    how many bytes that freed."""
    if not media:
        return 0
    rows = await conn.fetch(DELETE_FOR_EVER, *columns(media), reasons)
    blobs = {row["blob_sha256"] for row in rows if row["blob_sha256"] is not None}
    return await drop_blobs(conn, list(blobs))


async def empty_words(conn: Connection, events: Sequence[str]) -> int:
    """Takes the words from these events, and from their references, unless held; how many had
    some. To be called in a transaction of its own."""
    await conn.execute(HOLDS_WAIT)
    await conn.execute(LOCK_EVENTS, events)
    wordy = [row["event_id"] for row in await conn.fetch(WORDY, events)]
    await conn.execute(EMPTY_FOR_EVER, wordy)
    await conn.execute(EMPTY_REFERENCES, wordy)
    return len(wordy)
