"""What the homeserver is to be told about quarantine: media that it hides, or shows again.

Synapse hides bytes, not names: what it hides or shows, it does with all media that have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.targets import columns
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# In the order of the keys, in which others lock these rows as well. The trigger `media_refused`
# does the same for what becomes ready with refused bytes.
HIDE = """
INSERT INTO telling AS t (server_name, media_id, hidden, due_at)
SELECT m.server_name, m.media_id, true, now()
FROM unnest($1::text[], $2::text[]) AS named(server_name, media_id)
JOIN media AS m USING (server_name, media_id)
WHERE m.state = 'quarantined'
ORDER BY m.server_name, m.media_id
ON CONFLICT (server_name, media_id) DO UPDATE
SET hidden = true, failures = 0, reason = NULL,
    due_at = CASE WHEN t.claimed THEN t.due_at ELSE now() END
WHERE NOT t.hidden
RETURNING true
"""
SHOW = """
WITH mine AS (
    SELECT t.server_name, t.media_id
    FROM unnest($1::text[], $2::text[]) AS named(server_name, media_id)
    JOIN telling AS t USING (server_name, media_id)
    WHERE t.hidden ORDER BY t.server_name, t.media_id FOR UPDATE OF t
)
UPDATE telling AS t
SET hidden = false, failures = 0, reason = NULL,
    due_at = CASE WHEN t.claimed THEN t.due_at ELSE now() END
FROM mine WHERE t.server_name = mine.server_name AND t.media_id = mine.media_id
RETURNING true
"""
CLAIM = """
WITH due AS (
    SELECT server_name, media_id FROM telling WHERE due_at <= now()
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE telling AS t SET claimed = true, due_at = now() + $2::interval
FROM due WHERE t.server_name = due.server_name AND t.media_id = due.media_id
RETURNING t.server_name, t.media_id, t.hidden, t.failures, t.due_at,
          NOT t.hidden AND EXISTS (
              SELECT FROM media AS m JOIN media AS o ON o.blob_sha256 = m.blob_sha256
              JOIN telling AS x ON x.server_name = o.server_name AND x.media_id = o.media_id
              WHERE m.server_name = t.server_name AND m.media_id = t.media_id
                AND o.state = 'quarantined' AND x.hidden) AS shared
"""
# Whoever changed their mind meanwhile is told of next.
DONE = """
WITH mine AS (
    SELECT t.server_name, t.media_id, t.hidden, told.hidden AS told
    FROM unnest($1::text[], $2::text[], $3::boolean[]) AS told(server_name, media_id, hidden)
    JOIN telling AS t USING (server_name, media_id)
    WHERE t.claimed AND t.due_at = $4
    ORDER BY t.server_name, t.media_id FOR UPDATE OF t
), gone AS (
    DELETE FROM telling AS t USING mine
    WHERE t.server_name = mine.server_name AND t.media_id = mine.media_id
      AND NOT mine.hidden AND NOT mine.told
)
UPDATE telling AS t
SET claimed = false, failures = 0, reason = NULL,
    due_at = CASE WHEN mine.hidden <> mine.told THEN now() END
FROM mine
WHERE t.server_name = mine.server_name AND t.media_id = mine.media_id
  AND (mine.hidden OR mine.told)
"""
PUT_OFF = """
UPDATE telling AS t
SET claimed = false, failures = t.failures + $5, reason = $6, due_at = now() + $4::interval
WHERE t.server_name = $1 AND t.media_id = $2 AND t.claimed AND t.due_at = $3
"""
# What could not be fetched while the homeserver hid it. Who is at it is not waited for.
FETCH_AGAIN = """
WITH mine AS (
    SELECT m.server_name, m.media_id
    FROM unnest($1::text[], $2::text[]) AS named(server_name, media_id)
    JOIN media AS m USING (server_name, media_id)
    WHERE m.blob_sha256 IS NULL
      AND (m.state = 'failed'
           OR (m.state = 'pending' AND m.unfinished = 0 AND m.paced_at IS NULL))
    FOR NO KEY UPDATE OF m SKIP LOCKED
), again AS (
    UPDATE media AS m SET state = 'pending', reason = NULL, due_at = now()
    FROM mine WHERE m.server_name = mine.server_name AND m.media_id = mine.media_id
    RETURNING true
)
SELECT pg_notify('media_pending', '') FROM again LIMIT 1
"""


class Order(NamedTuple):
    """A media that this process is to tell of. `shared`: other media with its bytes is still to
    be hidden there, so that it cannot be shown."""

    mxc: Mxc
    hidden: bool
    failures: int
    due_at: datetime
    shared: bool


async def hide(conn: Connection, media: Sequence[Mxc]) -> int:
    """The homeserver is to hide those of the media that are in quarantine, from the commit on;
    how many it was not to hide before. Each is named once."""
    return len(await conn.fetch(HIDE, *columns(media)))


async def show(conn: Connection, media: Sequence[Mxc]) -> int:
    """It is to show those again that it was to hide; how many."""
    return len(await conn.fetch(SHOW, *columns(media)))


async def claim(conn: Connection, limit: int, lease: timedelta) -> list[Order]:
    """Takes up to `limit` of what is due for `lease`."""
    return [Order(Mxc(*row[:2]), *row[2:]) for row in await conn.fetch(CLAIM, limit, lease)]


async def done(conn: Connection, orders: Sequence[Order]) -> None:
    """The homeserver was told these, all of one claim; what it shows again is fetched where it is
    missing. To be called in a transaction."""
    if not orders:
        return
    told = [order.hidden for order in orders]
    await conn.execute(DONE, *columns([one.mxc for one in orders]), told, orders[0].due_at)
    shown = [order.mxc for order in orders if not order.hidden]
    await conn.execute(FETCH_AGAIN, *columns(shown))


async def put_off(
    conn: Connection, order: Order, delay: timedelta, reason: str, *, failed: bool
) -> None:
    """Lets it wait. `failed`: because of this very media."""
    await conn.execute(PUT_OFF, *order.mxc, order.due_at, delay, int(failed), reason)
