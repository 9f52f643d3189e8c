"""`GET /api/v1/media`: what was posted, newest first, each media in each of its places."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from archiver.catalogue import knowledge, lexemes, listing
from archiver.catalogue.knowledge import words
from archiver.catalogue.listing import Spot
from archiver.catalogue.wanted import Filter
from archiver.db.pool import Pool
from archiver.errors import InvalidParam
from archiver.media_types import essence
from archiver.model import Mxc, Role, Scope, State
from archiver.serve.answers import reply
from archiver.serve.auth import SCOPE
from archiver.serve.database import connection
from archiver.serve.paging import cursor, identifier, is_text, limit, moment, time, unpacked

if TYPE_CHECKING:
    from archiver.db.pool import Row

TEXT_MOST = 200
KINDS = ("image", "video", "audio", "file", *(role for role in Role if role is not Role.CONTENT))

_BLOB = ("sha256", "size", "mimetype", "width", "height", "duration_ms", "place")
_SAID = ("filename", "caption", "declared_type", "declared_size", "encrypted")
_SHA256 = re.compile("[0-9A-Fa-f]{64}")
_ITEMS = range(-(2**15), 2**15)


class Listing:
    """Answers with lists. Where it `hides_redacted`, administrators alone see what was."""

    def __init__(self, pool: Pool, *, hides_redacted: bool) -> None:
        self._pool = pool
        self._hides_redacted = hides_redacted

    async def page(self, request: web.Request) -> web.Response:
        """One item a reference, by filters; `limit`, `from` for more, `count` for how many."""
        query = request.query
        hides = self._hides_redacted and request[SCOPE] is not Scope.ADMIN
        most, behind, counts = limit(query), unpacked(query, _spot), _flag(query, "count")
        asked = _filter(query)
        async with connection(self._pool) as conn:
            found = await listing.page(conn, asked, behind, most, hides=hides)
            count = await listing.count(conn, asked, hides=hides) if counts else None
            room_ids = {row["room_id"] for row in found.rows if row["room_id"] is not None}
            rooms = await knowledge.rooms(conn, sorted(room_ids))
        answer: dict[str, Any] = {
            "media": [_item(row, rooms.get(row["room_id"])) for row in found.rows],
            "next": found.behind and cursor(found.behind),
        }
        return reply(answer if count is None else {**answer, "count": count._asdict()})


def _filter(query: Mapping[str, str]) -> Filter:
    mimetype = _text(query, "mimetype")
    kind = essence(mimetype) if mimetype is not None else None
    family = kind.removesuffix("*") if kind and kind.endswith("/*") else None
    return Filter(
        since=time(query, "since"),
        until=time(query, "until"),
        room_id=_text(query, "room_id"),
        sender=_text(query, "sender"),
        kind=_one_of(query, "kind", KINDS),
        role=_one_of(query, "role", tuple(Role)),
        state=_one_of(query, "state", tuple(State)),
        mimetype=None if family else kind,
        family=family,
        server_name=_text(query, "server_name"),
        sha256=_sha256(query),
        words=_words(query),
        event_id=_text(query, "event_id"),
    )


def _text(query: Mapping[str, str], name: str) -> str | None:
    value = query.get(name)
    if value is None or (is_text(value) and (name != "text" or len(value) <= TEXT_MOST)):
        return value
    raise InvalidParam(f"{name} is no text that could be looked for")


def _words(query: Mapping[str, str]) -> str | None:
    text = _text(query, "text")
    found = None if text is None else lexemes.query(text)
    if text is not None and found is None:
        raise InvalidParam("text holds no word to look for")
    return found


def _one_of(query: Mapping[str, str], name: str, values: tuple[str, ...]) -> str | None:
    value = query.get(name)
    if value is not None and value not in values:
        raise InvalidParam(f"{name} is one of {', '.join(values)}")
    return value


def _sha256(query: Mapping[str, str]) -> bytes | None:
    value = query.get("sha256")
    if value is None:
        return None
    if not _SHA256.fullmatch(value):
        raise InvalidParam("sha256 is 64 hexadecimal digits")
    return bytes.fromhex(value)


def _flag(query: Mapping[str, str], name: str) -> bool:
    return _one_of(query, name, ("true", "false")) == "true"


def _spot(parts: Any) -> Spot:
    """Raises ValueError or TypeError."""
    at, event_id, item, *names = parts
    if item is None:
        return Spot(moment(at), identifier(event_id))
    if type(item) is not int or item not in _ITEMS:
        raise ValueError("no item")
    role, server_name, media_id = map(identifier, names)
    return Spot(moment(at), identifier(event_id), item, role, server_name, media_id)


def _item(row: Row, room: knowledge.Room | None) -> dict[str, Any]:
    mxc, sender = Mxc(row["server_name"], row["media_id"]), row["sender"]
    bytes_at = f"/api/v1/media/{mxc.server_name}/{mxc.media_id}/content"
    return {
        "mxc": str(mxc),
        "event_id": row["event_id"],
        "room": {"room_id": row["room_id"], "name": room and room.name},
        "sender": {"user_id": sender, "displayname": words(row["sender_name"]) or sender},
        **{key: row[key] for key in ("sent_at", "kind", "role", "item", *_SAID)},
        "state": row["state"],
        "reason": row["reason"],
        "blob": {key: row[key] for key in _BLOB} if row["sha256"] else None,
        "redacted": row["redacted_by"]
        and {
            "by": row["redacted_by"],
            "at": row["redacted_at"],
            "sender": row["redactor"],
            "reason": row["redaction_reason"],
        },
        "content_url": bytes_at if row["state"] == State.READY else None,
    }
