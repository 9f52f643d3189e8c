"""Who read what, told to administrators."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from archiver.catalogue import readers
from archiver.catalogue.readers import LAST_ID, After, Asked
from archiver.db.pool import Pool
from archiver.errors import Forbidden, InvalidParam
from archiver.model import Mxc, Scope
from archiver.serve.answers import reply
from archiver.serve.database import connection
from archiver.serve.paging import is_text, limit
from archiver.serve.readers import READER

if TYPE_CHECKING:
    from archiver.db.pool import Row

_PREFIX = "mxc://"


class ReadsApi:
    """Answers with the access log."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(self, request: web.Request) -> web.Response:
        """Reads, newest first: of a `reader`, of a `media`, `since` and `until` a time."""
        if request[READER].scope is not Scope.ADMIN:
            raise Forbidden("who read what is for scope admin only")
        asked, wanted = _asked(request.query), limit(request.query)
        place = _after(request.query)
        async with connection(self._pool) as conn:
            rows = await readers.page(conn, asked, place, wanted + 1)
        shown = rows[:wanted]
        further = _cursor(shown[-1]) if rows[wanted:] else None
        return reply({"reads": [_read(row) for row in shown], "next": further})


def _asked(query: Mapping[str, str]) -> Asked:
    reader = query.get("reader")
    if reader is not None and not is_text(reader):
        raise InvalidParam("reader is no text: it is like token:NAME, user:@ID or key:NAME")
    return Asked(reader, _media(query), _time(query, "since"), _time(query, "until"))


def _media(query: Mapping[str, str]) -> Mxc | None:
    text = query.get("media")
    if text is None:
        return None
    server_name, _, media_id = text.removeprefix(_PREFIX).partition("/")
    mxc = Mxc.checked(server_name, media_id)
    if mxc is None:
        raise InvalidParam("media is no mxc URI, like mxc://example.com/abc")
    return mxc


def _time(query: Mapping[str, str], key: str) -> datetime | None:
    """A time in RFC 3339, or a day; UTC where none is named. A + may have become a space."""
    text = query.get(key)
    if text is None:
        return None
    try:
        # Every year that either side knows, with room for any time zone.
        time = datetime.fromisoformat(text.replace(" ", "+"))
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidParam(f"{key} is no time, like 2025-01-31T12:00:00Z") from None


def _read(row: Row) -> dict[str, Any]:
    shown = ("reader", "via", "times", "first_at", "last_at")
    mxc = Mxc(row["server_name"], row["media_id"])
    return {"mxc": str(mxc), **{key: row[key] for key in shown}}


def _cursor(row: Row) -> str:
    place = orjson.dumps([row["last_at"], row["id"]])
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def _after(query: Mapping[str, str]) -> After | None:
    text = query.get("from")
    if text is None:
        return None
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        at, row_id = orjson.loads(base64.b64decode(padded, b"-_", validate=True))
        place = After(datetime.fromisoformat(at), row_id)
        if place.at.tzinfo and type(row_id) is int and 0 < row_id <= LAST_ID:
            return place
    except (ValueError, TypeError):
        pass
    raise InvalidParam("from is no `next` of a page: leave it out to start anew")
