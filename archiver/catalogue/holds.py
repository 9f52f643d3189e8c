"""What must stay, whatever rule says that it goes."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from archiver.errors import ConfigError, OperationError
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# First in a transaction that deletes: who places a hold waits for it, and the other way round.
HOLDS_WAIT = "LOCK TABLE hold IN SHARE MODE"
PLACE = """
INSERT INTO hold (kind, target, reason, holder, begins_at, ends_at) VALUES ($1, $2, $3, $4, $5, $6)
"""
RELEASE = """
UPDATE hold SET released_at = now()
WHERE kind = $1 AND target = $2 AND released_at IS NULL RETURNING true
"""
LIVE = """
SELECT kind, target, reason, holder, created_at FROM hold WHERE released_at IS NULL ORDER BY id
"""
# For a statement whose `h` is a hold, and `e` an event: a span of time has what was posted in it,
# by the sender's word or by when it was pushed, because a sender may say any time.
IS_IN_SPAN = """(
    h.kind = 'span' AND ((h.begins_at <= e.sent_at AND e.sent_at < h.ends_at)
        OR (e.source = 'push' AND h.begins_at <= e.received_at AND e.received_at < h.ends_at))
)"""
# The same holds as below, themselves.
ON_MEDIA = """
SELECT h.kind, h.target, h.reason, h.holder, h.created_at FROM hold AS h
WHERE h.released_at IS NULL AND (
    (h.kind = 'mxc' AND h.target = 'mxc://' || $1::text || '/' || $2::text)
    OR (h.kind = 'hash' AND h.target =
        (SELECT 'sha256:' || encode(m.blob_sha256, 'hex') FROM media AS m
         WHERE m.server_name = $1 AND m.media_id = $2))
    OR EXISTS (SELECT FROM reference AS r JOIN event AS e USING (event_id)
               WHERE r.server_name = $1 AND r.media_id = $2
                 AND ((h.kind, h.target) IN (('event', e.event_id), ('event', e.replaces),
                                             ('user', e.sender), ('room', e.room_id))
                      OR IS_IN_SPAN)))
ORDER BY h.id LIMIT $3
""".replace("IS_IN_SPAN", IS_IN_SPAN)
# OFFSET 0: asked of each row along the indexes, never for all rows at once.
# For a statement whose `m` is a media: a hold on it or its bytes, or on an event that names it,
# the message that this event edits, its sender, its room or its time.
MEDIA_IS_HELD = """(
    EXISTS (SELECT FROM hold AS h WHERE h.released_at IS NULL AND h.kind = 'mxc'
            AND h.target = 'mxc://' || m.server_name || '/' || m.media_id)
    OR EXISTS (SELECT FROM hold AS h WHERE h.released_at IS NULL AND h.kind = 'hash'
               AND h.target = 'sha256:' || encode(m.blob_sha256, 'hex'))
    OR EXISTS (SELECT FROM reference AS r JOIN event AS e USING (event_id)
               JOIN hold AS h ON (h.kind, h.target) IN
                   (('event', e.event_id), ('event', e.replaces), ('user', e.sender),
                    ('room', e.room_id))
               WHERE h.released_at IS NULL
                 AND r.server_name = m.server_name AND r.media_id = m.media_id OFFSET 0)
    OR EXISTS (SELECT FROM hold AS h, reference AS r JOIN event AS e USING (event_id)
               WHERE h.released_at IS NULL AND IS_IN_SPAN
                 AND r.server_name = m.server_name AND r.media_id = m.media_id OFFSET 0)
)""".replace("IS_IN_SPAN", IS_IN_SPAN)
# For a statement whose `e` is an event.
EVENT_IS_HELD = """(
    EXISTS (SELECT FROM hold AS h WHERE h.released_at IS NULL AND (h.kind, h.target) IN
                (('event', e.event_id), ('event', e.replaces), ('user', e.sender),
                 ('room', e.room_id)))
    OR EXISTS (SELECT FROM hold AS h WHERE h.released_at IS NULL AND IS_IN_SPAN)
    OR EXISTS (SELECT FROM reference AS r JOIN hold AS h ON h.kind = 'mxc'
                   AND h.target = 'mxc://' || r.server_name || '/' || r.media_id
               WHERE h.released_at IS NULL AND r.event_id = e.event_id OFFSET 0)
    OR EXISTS (SELECT FROM reference AS r JOIN media AS m USING (server_name, media_id)
               JOIN hold AS h ON h.kind = 'hash'
                   AND h.target = 'sha256:' || encode(m.blob_sha256, 'hex')
               WHERE h.released_at IS NULL AND r.event_id = e.event_id OFFSET 0)
)""".replace("IS_IN_SPAN", IS_IN_SPAN)

_KINDS = {"$": "event", "@": "user", "!": "room"}
_IDENTIFIER = re.compile(r"[$@!][^\s\0]{1,254}")
_MXC = re.compile(r"mxc://([^/]*)/([^/]*)")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def kind_of(target: str) -> str:
    """`mxc`, `event`, `user`, `room`, `hash` or `span`. Raises ConfigError for what names none
    of them."""
    match = _MXC.fullmatch(target)
    if match and Mxc.checked(match[1], match[2]):
        return "mxc"
    if _HASH.fullmatch(target):
        return "hash"
    if span_of(target):
        return "span"
    if _IDENTIFIER.fullmatch(target) and (target[0] != "@" or ":" in target):
        return _KINDS[target[0]]
    raise ConfigError(
        f"{target!r} is nothing that can be held: give a media (mxc://server/id), an event "
        "($...), a user (@name:server), a room (!...), bytes (sha256:...) or a span of time "
        "(2024-01-01..2024-01-31), and mind the shell: put it in '...'"
    )


class Span(NamedTuple):
    """From a moment on, up to another that is not in it."""

    begins_at: datetime
    ends_at: datetime


def span_of(text: str) -> Span | None:
    """The span of `from..to`, two days, both of them in it, or times; UTC unless they say so.

    None for what is none, or has nothing in it.
    """
    first, _, last = text.partition("..")
    try:
        begins_at, ends_at = _moment(first), _moment(last)
        if _DAY.fullmatch(last):
            ends_at += timedelta(days=1)
    except (ValueError, OverflowError):
        return None
    return Span(begins_at, ends_at) if begins_at < ends_at else None


def _moment(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)


async def place(conn: Connection, target: str, reason: str, holder: str) -> None:
    """Holds a target until it is released. Raises ConfigError; OperationError if it is held."""
    kind = kind_of(target)
    try:
        span = (span_of(target) if kind == "span" else None) or (None, None)
        await conn.execute(PLACE, kind, target, reason, holder, *span)
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
