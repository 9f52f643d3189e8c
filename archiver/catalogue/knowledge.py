"""What a room is called and shows, read from the state events that are kept of it.

Of several events the newest counts, by `sent_at`, which no sender can put into the future. A
redacted one counts as empty, as homeservers have it: what it said is shown by its history alone.
https://spec.matrix.org/v1.16/client-server-api/#room-events
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from archiver.model import MEDIA_ID_PATTERN, SERVER_NAME_PATTERN, Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

PAGE = """
SELECT room_id, active_at, coalesce(active_at, seen_at) AS place FROM room
WHERE $1::timestamptz IS NULL OR (coalesce(active_at, seen_at), room_id) < ($1, $2)
ORDER BY coalesce(active_at, seen_at) DESC, room_id DESC LIMIT $3
"""
ACTIVE = """
SELECT $1::text AS room_id, r.active_at FROM (SELECT) AS nothing
LEFT JOIN room AS r ON r.room_id = $1
WHERE r.room_id IS NOT NULL OR EXISTS (SELECT FROM event WHERE room_id = $1)
"""
# Fields are cut, because whoever writes them chooses their length; an mxc has at most 517.
STATE = """
SELECT asked.room_id, shown.type || '/' || shown.field AS what, s.sender, s.value
FROM unnest($1::text[]) AS asked(room_id)
CROSS JOIN (VALUES
    ('m.room.name', 'name'), ('m.room.canonical_alias', 'alias'), ('m.room.avatar', 'url'),
    ('m.room.encryption', 'algorithm'), ('m.room.create', 'type'),
    ('m.room.create', 'room_version')
) AS shown(type, field)
CROSS JOIN LATERAL (
    SELECT sender,
           CASE WHEN redacted_by IS NULL AND jsonb_typeof(content -> shown.field) = 'string'
                THEN left(content ->> shown.field, 1024) END AS value
    FROM event
    WHERE room_id = asked.room_id AND type = shown.type AND state_key = ''
    ORDER BY sent_at DESC, event_id DESC LIMIT 1
) AS s
"""
# Who was seen in a room; who left without a word may still be among them. From one person to the
# next by the index, because a room may have a million events and the answer needs a few people.
MEMBERS = """
SELECT asked.room_id, m.* FROM unnest($1::text[]) AS asked(room_id)
CROSS JOIN LATERAL (
    WITH RECURSIVE person AS (
        (SELECT state_key FROM event
         WHERE room_id = asked.room_id AND type = 'm.room.member' AND state_key IS NOT NULL
         ORDER BY state_key LIMIT 1)
        UNION ALL
        SELECT (SELECT state_key FROM event
                WHERE room_id = asked.room_id AND type = 'm.room.member'
                  AND state_key > person.state_key
                ORDER BY state_key LIMIT 1)
        FROM person WHERE state_key IS NOT NULL
    )
    SELECT person.state_key AS user_id, sent_at AS since,
           CASE WHEN redacted_by IS NULL AND jsonb_typeof(content -> 'displayname') = 'string'
                THEN left(content ->> 'displayname', 255) END AS displayname,
           CASE WHEN redacted_by IS NULL AND jsonb_typeof(content -> 'avatar_url') = 'string'
                THEN left(content ->> 'avatar_url', 1024) END AS avatar
    FROM person CROSS JOIN LATERAL (
        SELECT sent_at, redacted_by, content FROM event
        WHERE room_id = asked.room_id AND type = 'm.room.member' AND state_key = person.state_key
        ORDER BY sent_at DESC, event_id DESC LIMIT 1
    ) AS latest
    WHERE content ->> 'membership' IN ('join', 'invite')
    LIMIT $2
) AS m
"""
HISTORY = """
SELECT sent_at AS since, event_id, sender, redacted_by IS NOT NULL AS redacted,
       CASE WHEN jsonb_typeof(content -> $3) = 'string'
            THEN left(content ->> $3, 1024) END AS value
FROM event WHERE room_id = $1 AND type = $2 AND state_key = ''
ORDER BY sent_at DESC, event_id DESC LIMIT $4
"""
# MSC2545; the second is what clients write today.
PACKS = """
SELECT DISTINCT ON (state_key, type) state_key, content FROM event
WHERE room_id = $1 AND type = ANY('{m.room.image_pack,im.ponies.room_emotes}')
  AND state_key IS NOT NULL
ORDER BY state_key, type, sent_at DESC, event_id DESC LIMIT $2
"""

NAMED = 3  # members in the name of a room that has none
CHANGES = 1_000  # of a name or an avatar, looked at
PACKS_MOST = 100

_MXC = re.compile(rf"mxc://({SERVER_NAME_PATTERN})/({MEDIA_ID_PATTERN})(?![0-9A-Za-z_-])")


class Room(NamedTuple):
    """What people see of a room. `name` is, for want of one, its alias or some members' names."""

    name: str | None
    alias: str | None
    avatar: Mxc | None
    encrypted: bool
    type: str | None
    version: str | None
    creator: str | None


class Place(NamedTuple):
    """Where a page of rooms ends: the next one begins after it."""

    at: datetime
    room_id: str


def mxc_of(value: Any) -> Mxc | None:
    """The media that an mxc URI in an event names, if it is one."""
    match = _MXC.match(value) if isinstance(value, str) else None
    return Mxc.checked(match[1], match[2]) if match else None


def uri_of(value: Any) -> str | None:
    """The same as text, without what may follow it."""
    mxc = mxc_of(value)
    return str(mxc) if mxc else None


def words(value: Any) -> str | None:
    """What an event says in a field; None unless it is a string with something to see."""
    return value.strip() or None if isinstance(value, str) else None


async def page(conn: Connection, after: Place | None, limit: int) -> list[Row]:
    """Rooms with `active_at` and `place`, the most recently active first."""
    return await conn.fetch(PAGE, *(after or (None, None)), limit)


async def find(conn: Connection, room_id: str) -> Row | None:
    """The room with `active_at`; None where nothing is known of it."""
    return await conn.fetchrow(ACTIVE, room_id)


async def rooms(conn: Connection, room_ids: Sequence[str]) -> dict[str, Room]:
    """What each of the rooms is called and shows, in two statements."""
    state: dict[str, dict[str, Row]] = {room_id: {} for room_id in room_ids}
    for row in await conn.fetch(STATE, room_ids):
        state[row["room_id"]][row["what"]] = row
    found = {room_id: _room(rows) for room_id, rows in state.items()}
    nameless = [room_id for room_id, room in found.items() if not room.name]
    if nameless:
        seen = await conn.fetch(MEMBERS, nameless, NAMED + 1)
        for room_id, people in groupby(seen, key=itemgetter("room_id")):
            found[room_id] = found[room_id]._replace(name=_after(people))
    return found


async def members(conn: Connection, room_id: str, limit: int) -> list[Row]:
    """Some people of a room with their faces: user_id, since, displayname, avatar."""
    return await conn.fetch(MEMBERS, [room_id], limit)


async def avatar(conn: Connection, room_id: str) -> Mxc | None:
    """The room's present avatar."""
    return (await rooms(conn, [room_id]))[room_id].avatar


async def history(
    conn: Connection, room_id: str, kind: str, field: str, *, also_redacted: bool
) -> list[dict[str, Any]]:
    """What a field of a room's state was, the newest first; repetitions count as one."""
    rows = [dict(row) for row in await conn.fetch(HISTORY, room_id, kind, field, CHANGES)]
    for row in rows:
        if row["redacted"] and not also_redacted:
            row["value"] = None
    runs = groupby(rows, key=itemgetter("value", "redacted"))
    return [list(run)[-1] for _, run in runs]


async def packs(conn: Connection, room_id: str) -> list[dict[str, Any]]:
    """The room's image packs as they are: their names and images."""
    return [
        _pack(row["state_key"], orjson.loads(row["content"]))
        for row in await conn.fetch(PACKS, room_id, PACKS_MOST)
    ]


def _room(rows: Mapping[str, Row]) -> Room:
    value = {what: words(row["value"]) for what, row in rows.items()}.get
    alias = value("m.room.canonical_alias/alias")
    create = rows.get("m.room.create/room_version")
    return Room(
        name=(value("m.room.name/name") or alias or "")[:255] or None,
        alias=alias,
        avatar=mxc_of(value("m.room.avatar/url")),
        # It cannot be switched off again, whatever the event says since.
        encrypted="m.room.encryption/algorithm" in rows,
        type=value("m.room.create/type"),
        version=(value("m.room.create/room_version") or "1") if create else None,
        creator=create["sender"] if create else None,
    )


def _after(people: Iterable[Row]) -> str:
    """https://spec.matrix.org/v1.16/client-server-api/#calculating-the-display-name-for-a-room"""
    names = [words(person["displayname"]) or person["user_id"] for person in people]
    if len(names) > NAMED:
        names[NAMED:] = ["others"]
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else str(last)


def _pack(state_key: str, content: dict[str, Any]) -> dict[str, Any]:
    about, images = content.get("pack"), content.get("images")
    about = about if isinstance(about, dict) else {}
    found = (
        (shortcode, image, uri_of(image.get("url")))
        for shortcode, image in (images.items() if isinstance(images, dict) else ())
        if isinstance(image, dict)
    )
    return {
        "state_key": state_key,
        "name": words(about.get("display_name")),
        "avatar": uri_of(about.get("avatar_url")),
        "images": [
            {"shortcode": shortcode, "mxc": mxc, "body": words(image.get("body"))}
            for shortcode, image, mxc in found
            if mxc
        ],
    }
