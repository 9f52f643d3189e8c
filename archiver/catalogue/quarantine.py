"""Media that nobody but administrators may see: set aside, and given back, with their bytes.

Whoever is fetching one meanwhile finds that it is not pending any more, and changes nothing
(`queue`). The triggers of `media` tell those who keep it in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.targets import columns
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# Who would have to wait for a row while holding others could be waited for in turn: what somebody
# else has is left, for a statement of its own.
SET_ASIDE = """
WITH mine AS (
    SELECT m.server_name, m.media_id
    FROM unnest($1::text[], $2::text[]) AS named(server_name, media_id)
    JOIN media AS m USING (server_name, media_id)
    WHERE m.state IN ('ready', 'pending', 'failed')
    FOR NO KEY UPDATE OF m SKIP LOCKED
)
UPDATE media AS m SET state = 'quarantined', reason = $3, due_at = NULL, paced_at = NULL,
                      charged = NULL, unfinished = 0, settled_at = now()
FROM mine WHERE m.server_name = mine.server_name AND m.media_id = mine.media_id
RETURNING m.server_name, m.media_id,
          coalesce((SELECT b.size FROM blob AS b WHERE b.sha256 = m.blob_sha256), 0) AS size
"""
# `attempts` stays as it is: it tells claims apart for ever.
GIVE_BACK = """
WITH mine AS (
    SELECT m.server_name, m.media_id
    FROM unnest($1::text[], $2::text[]) AS named(server_name, media_id)
    JOIN media AS m USING (server_name, media_id)
    WHERE m.state = 'quarantined'
    FOR NO KEY UPDATE OF m SKIP LOCKED
), given AS (
    UPDATE media AS m
    SET state = CASE WHEN m.blob_sha256 IS NULL THEN 'pending' ELSE 'ready' END, reason = NULL,
        due_at = CASE WHEN m.blob_sha256 IS NULL THEN now() END, settled_at = now()
    FROM mine WHERE m.server_name = mine.server_name AND m.media_id = mine.media_id
    RETURNING m.server_name, m.media_id, m.state,
              coalesce((SELECT b.size FROM blob AS b WHERE b.sha256 = m.blob_sha256), 0) AS size
)
SELECT server_name, media_id, size,
       CASE WHEN state = 'pending' THEN pg_notify('media_pending', '') END
FROM given WHERE state <> 'quarantined'  -- as its bytes are refused
"""
LEFT = """
SELECT m.server_name, m.media_id
FROM unnest($1::text[], $2::text[]) AS named(server_name, media_id)
JOIN media AS m USING (server_name, media_id)
WHERE (m.state = 'quarantined') = $3 AND m.state NOT IN ('excluded', 'deleted')
"""


LOCK = """
SELECT FROM media WHERE server_name = $1 AND media_id = $2 FOR NO KEY UPDATE
"""


class Changed(NamedTuple):
    """Media whose state was changed, and the bytes that they have in all."""

    media: list[Mxc]
    size: int


async def set_aside(conn: Connection, media: Sequence[Mxc], reason: str) -> Changed:
    """Quarantines those that are ready, pending or failed, and that nobody else has locked."""
    return _changed(await conn.fetch(SET_ASIDE, *columns(media), reason))


async def give_back(conn: Connection, media: Sequence[Mxc]) -> Changed:
    """Ends the quarantine of those that nobody else has locked: ready with a blob, else queued.

    Media whose bytes are refused stays (`refused`).
    """
    return _changed(await conn.fetch(GIVE_BACK, *columns(media)))


async def lock(conn: Connection, mxc: Mxc) -> None:
    """Waits for who has a media locked. Nothing else may be locked in this transaction."""
    await conn.execute(LOCK, *mxc)


async def left(conn: Connection, media: Sequence[Mxc], *, quarantined: bool) -> list[Mxc]:
    """Those of the media that are, or are not, in quarantine, and could be changed."""
    return [Mxc(*row) for row in await conn.fetch(LEFT, *columns(media), quarantined)]


def _changed(rows: list[Row]) -> Changed:
    return Changed(
        [Mxc(row["server_name"], row["media_id"]) for row in rows],
        sum(row["size"] for row in rows),
    )
