"""What a target names: the events of an event, a user or a room, page by page, and their media.

An event comes with its edits, a user with the memberships that tell of them, whoever wrote those.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

AT_ONCE = 300
LONG_AGO = datetime.min.replace(tzinfo=UTC)

# Whether `e` belongs to the target $1, for each kind of target. An edit by somebody else is none;
# where the archive has no original, nobody can tell, and it may be the author's.
IS_OF = {
    "event": """(e.event_id = $1 OR (e.replaces = $1 AND NOT EXISTS (
    SELECT FROM event AS o WHERE o.event_id = $1
      AND (o.room_id, o.sender) IS DISTINCT FROM (e.room_id, e.sender))))""",
    "user": "(e.sender = $1 OR (e.type = 'm.room.member' AND e.state_key = $1))",
    "room": "(e.room_id = $1)",
}
PAGE = """
SELECT e.sent_at, e.event_id FROM event AS e
WHERE IS_WANTED AND (e.sent_at, e.event_id) > ($2, $3)
ORDER BY e.sent_at, e.event_id LIMIT $4
"""
# Each is read along an index of its own: those with media first, then the others.
_ABOUT_USER = PAGE.replace("IS_WANTED", "e.type = 'm.room.member' AND e.state_key = $1")
WALKS = {
    "event": (PAGE.replace("IS_WANTED", IS_OF["event"]),),
    "user": (PAGE.replace("IS_WANTED", "e.sender = $1 AND e.has_media"), _ABOUT_USER),
    "room": (PAGE.replace("IS_WANTED", "e.room_id = $1 AND e.has_media"),),
}
OTHERS_OF_ROOM = PAGE.replace("IS_WANTED", "e.room_id = $1 AND NOT e.has_media")
# No index tells who wrote what has no media: all events are passed over, a piece at a time.
OTHERS_OF_USER = """
SELECT max(event_id), array_agg(event_id ORDER BY event_id)
           FILTER (WHERE sender = $1 AND NOT has_media AND coalesce(state_key, $1) = $1)
FROM (SELECT event_id, sender, has_media, state_key FROM event
      WHERE event_id > $2 ORDER BY event_id LIMIT $3) AS piece
"""
PIECE = 5_000
NAMED = """
SELECT DISTINCT m.server_name, m.media_id
FROM reference AS r JOIN media AS m USING (server_name, media_id)
WHERE r.event_id = ANY($1::text[]) ORDER BY m.server_name, m.media_id
"""


# All that have a blob, in the order of their keys.
SHARING = """
SELECT server_name, media_id FROM media
WHERE blob_sha256 = $1 AND (server_name, media_id) > ($2, $3)
ORDER BY server_name, media_id LIMIT $4
"""


class Target(NamedTuple):
    """`kind` is mxc, event, user or room, and `value` its identifier as Matrix writes it; or
    `hash`, and `sha256:` with 64 hexadecimal digits."""

    kind: str
    value: str

    @property
    def mxc(self) -> Mxc:
        """The media that a target of the kind `mxc` is."""
        server_name, media_id = self.value.removeprefix("mxc://").split("/")
        return Mxc(server_name, media_id)

    @property
    def sha256(self) -> bytes:
        """The bytes' name that a target of the kind `hash` is."""
        return bytes.fromhex(self.value.removeprefix("sha256:"))


async def media_of(pool: Pool, target: Target) -> AsyncIterator[list[Mxc]]:
    """The media that the target names, sorted, some hundreds at a time; some more than once."""
    if target.kind == "mxc":
        yield [target.mxc]
        return
    if target.kind == "hash":
        async for page in _sharing(pool, target.sha256):
            yield page
        return
    async for events in events_of(pool, target):
        async with pool.acquire() as conn:
            yield await named_by(conn, events)


async def named_by(conn: Connection, events: list[str]) -> list[Mxc]:
    """The media that some events name, sorted."""
    return [Mxc(*row) for row in await conn.fetch(NAMED, events)]


async def events_of(pool: Pool, target: Target) -> AsyncIterator[list[str]]:
    """The target's events, those with media among them, some hundreds at a time."""
    for statement in WALKS[target.kind]:
        async for page in _walk(pool, statement, target.value):
            yield page


async def others_of(pool: Pool, target: Target) -> AsyncIterator[list[str]]:
    """The events of a user or a room that `events_of` leaves out: they name no media.

    Of a user's, what is the room's own state, such as its name, is not among them. A page may be
    empty, where looking took long and nothing was found.
    """
    if target.kind == "room":
        async for page in _walk(pool, OTHERS_OF_ROOM, target.value):
            yield page
    elif target.kind == "user":
        last: str | None = ""
        while last is not None:
            row = await pool.fetchrow(OTHERS_OF_USER, target.value, last, PIECE)
            last, found = row or (None, None)
            yield found or []


def columns(media: Sequence[Mxc]) -> tuple[list[str], list[str]]:
    """Server names and media ids, as `unnest` takes them."""
    return [mxc.server_name for mxc in media], [mxc.media_id for mxc in media]


async def _sharing(pool: Pool, sha256: bytes) -> AsyncIterator[list[Mxc]]:
    last = Mxc("", "")
    while rows := await pool.fetch(SHARING, sha256, *last, AT_ONCE):
        last = Mxc(*rows[-1])
        yield [Mxc(*row) for row in rows]


async def _walk(pool: Pool, statement: str, value: str) -> AsyncIterator[list[str]]:
    at, event_id = LONG_AGO, ""
    while rows := await pool.fetch(statement, value, at, event_id, AT_ONCE):
        at, event_id = rows[-1]
        yield [row["event_id"] for row in rows]
