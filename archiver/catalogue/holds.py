"""What must stay, whatever rule says that it goes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import asyncpg

from archiver.errors import ConfigError, OperationError
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

PLACE = "INSERT INTO hold (kind, target, reason, holder) VALUES ($1, $2, $3, $4)"
RELEASE = """
UPDATE hold SET released_at = now()
WHERE kind = $1 AND target = $2 AND released_at IS NULL RETURNING true
"""
LIVE = """
SELECT kind, target, reason, holder, created_at FROM hold WHERE released_at IS NULL ORDER BY id
"""
# The same holds as below, themselves.
ON_MEDIA = """
SELECT h.kind, h.target, h.reason, h.holder, h.created_at FROM hold AS h
WHERE h.released_at IS NULL AND (
    (h.kind = 'mxc' AND h.target = 'mxc://' || $1::text || '/' || $2::text)
    OR EXISTS (SELECT FROM reference AS r JOIN event AS e USING (event_id)
               WHERE r.server_name = $1 AND r.media_id = $2
                 AND (h.kind, h.target) IN (('event', e.event_id), ('event', e.replaces),
                                            ('user', e.sender), ('room', e.room_id))))
ORDER BY h.id LIMIT $3
"""
# For a statement whose `m` is a media: a hold on it, or on an event that names it, the message
# that this event edits, its sender or its room.
MEDIA_IS_HELD = """(
    EXISTS (SELECT FROM hold AS h WHERE h.released_at IS NULL AND h.kind = 'mxc'
            AND h.target = 'mxc://' || m.server_name || '/' || m.media_id)
    OR EXISTS (SELECT FROM reference AS r JOIN event AS e USING (event_id)
               JOIN hold AS h ON (h.kind, h.target) IN
                   (('event', e.event_id), ('event', e.replaces), ('user', e.sender),
                    ('room', e.room_id))
               WHERE h.released_at IS NULL
                 AND r.server_name = m.server_name AND r.media_id = m.media_id)
)"""
# For a statement whose `e` is an event.
EVENT_IS_HELD = """(
    EXISTS (SELECT FROM hold AS h WHERE h.released_at IS NULL AND (h.kind, h.target) IN
                (('event', e.event_id), ('event', e.replaces), ('user', e.sender),
                 ('room', e.room_id)))
    OR EXISTS (SELECT FROM reference AS r JOIN hold AS h ON h.kind = 'mxc'
                   AND h.target = 'mxc://' || r.server_name || '/' || r.media_id
               WHERE h.released_at IS NULL AND r.event_id = e.event_id)
)"""

_KINDS = {"$": "event", "@": "user", "!": "room"}
_IDENTIFIER = re.compile(r"[$@!][^\s\0]{1,254}")
_MXC = re.compile(r"mxc://([^/]*)/([^/]*)")


def kind_of(target: str) -> str:
    """`mxc`, `event`, `user` or `room`. Raises ConfigError for what names none of them."""
    match = _MXC.fullmatch(target)
    if match and Mxc.checked(match[1], match[2]):
        return "mxc"
    if _IDENTIFIER.fullmatch(target) and (target[0] != "@" or ":" in target):
        return _KINDS[target[0]]
    raise ConfigError(
        f"{target!r} is nothing that can be held: give a media (mxc://server/id), an event "
        "($...), a user (@name:server) or a room (!...), and mind the shell: put it in '...'"
    )


async def place(conn: Connection, target: str, reason: str, holder: str) -> None:
    """Holds a target until it is released. Raises ConfigError; OperationError if it is held."""
    kind = kind_of(target)
    try:
        await conn.execute(PLACE, kind, target, reason, holder)
    except asyncpg.UniqueViolationError:
        raise OperationError(f"{target} is held already: see `holds`") from None


async def release(conn: Connection, target: str) -> None:
    """Ends a hold. Raises ConfigError, and OperationError where there is none."""
    if not await conn.fetchval(RELEASE, kind_of(target), target):
        raise OperationError(f"there is no hold on {target}: see `holds`")


async def live(conn: Connection) -> list[Row]:
    """All holds that are not released, oldest first."""
    return await conn.fetch(LIVE)


async def on_media(conn: Connection, mxc: Mxc, limit: int) -> list[Row]:
    """The live holds because of which a media stays, oldest first."""
    return await conn.fetch(ON_MEDIA, *mxc, limit)
