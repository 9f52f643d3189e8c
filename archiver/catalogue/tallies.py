"""Who and what fills the archive. Each reads whole tables.

A media counts once in a group, however often it was posted there, and so do bytes that several
media of the group share; what is in two groups counts in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from archiver.catalogue.counting import PATIENCE, Count

if TYPE_CHECKING:
    from archiver.db.pool import Connection

Group = Literal["room", "user", "type", "month"]
GROUPS: tuple[Group, ...] = get_args(Group)
MOST = 100

_BY_EVENT = """
WITH named AS (
    SELECT DISTINCT KEY AS key, r.server_name, r.media_id
    FROM reference AS r JOIN event AS e USING (event_id)
), held AS (
    SELECT n.key, m.blob_sha256, count(*) AS media
    FROM named AS n JOIN media AS m USING (server_name, media_id) GROUP BY 1, 2
)
SELECT h.key, sum(h.media)::bigint AS media, coalesce(sum(b.size), 0)::bigint AS bytes
FROM held AS h LEFT JOIN blob AS b ON b.sha256 = h.blob_sha256
GROUP BY h.key ORDER BY ORDERED LIMIT $1
"""
_LARGEST = "bytes DESC, media DESC, key"
BY_ROOM = _BY_EVENT.replace("KEY", "coalesce(e.room_id, '')").replace("ORDERED", _LARGEST)
BY_USER = _BY_EVENT.replace("KEY", "coalesce(e.sender, '')").replace("ORDERED", _LARGEST)
BY_MONTH = _BY_EVENT.replace("KEY", "to_char(e.sent_at AT TIME ZONE 'UTC', 'YYYY-MM')").replace(
    "ORDERED", "key DESC"
)
# Of what has bytes only: their type is told by them, not by whoever posted them.
BY_TYPE = """
SELECT coalesce(b.mimetype, '') AS key, sum(h.media)::bigint AS media, sum(b.size)::bigint AS bytes
FROM (SELECT blob_sha256, count(*) AS media FROM media
      WHERE blob_sha256 IS NOT NULL GROUP BY 1) AS h
JOIN blob AS b ON b.sha256 = h.blob_sha256
GROUP BY 1 ORDER BY bytes DESC, media DESC, key LIMIT $1
"""
BY: dict[Group, str] = {"room": BY_ROOM, "user": BY_USER, "type": BY_TYPE, "month": BY_MONTH}
# Of rooms: how many events with media each has, and the newest.
LARGEST_ROOMS = """
SELECT r.room_id, coalesce(e.events, 0) AS events, e.newest
FROM room AS r LEFT JOIN (
    SELECT room_id, count(*) AS events, max(sent_at) AS newest FROM event
    WHERE has_media AND ($1::text[] IS NULL OR room_id = ANY ($1)) GROUP BY room_id
) AS e USING (room_id)
WHERE $1::text[] IS NULL OR r.room_id = ANY ($1)
ORDER BY events DESC, r.room_id LIMIT $2
"""
ROOM_IDS = "SELECT room_id FROM room"


def groups(group: Group) -> Count:
    """The MOST that hold most bytes, or the latest months: each with its key (a room's id, a
    user's, a media type or a month like `2026-05`; empty where none is known), media and bytes."""

    async def by(conn: Connection) -> list[dict[str, Any]]:
        return [dict(row) for row in await conn.fetch(BY[group], MOST, timeout=PATIENCE)]

    return Count(f"by {group}", by)


async def room_ids(conn: Connection) -> list[str]:
    """Every room that is known."""
    return [row["room_id"] for row in await conn.fetch(ROOM_IDS)]


async def largest_rooms(
    conn: Connection, among: Sequence[str] | None, limit: int
) -> list[tuple[str, datetime | None]]:
    """The rooms with most media, of some or of all, and when the newest was posted in each."""
    rows = await conn.fetch(LARGEST_ROOMS, among, limit, timeout=PATIENCE)
    return [(row["room_id"], row["newest"]) for row in rows]
