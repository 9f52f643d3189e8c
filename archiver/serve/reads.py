"""Who read what, told to administrators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from archiver.catalogue import readers
from archiver.catalogue.readers import LAST_ID, After, Asked
from archiver.db.pool import Pool
from archiver.errors import Forbidden, InvalidParam
from archiver.model import Mxc, Scope
from archiver.serve.answers import reply
from archiver.serve.database import connection
from archiver.serve.paging import cursor, is_text, limit, moment, time, unpacked
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
        place = unpacked(request.query, _after)
        async with connection(self._pool) as conn:
            rows = await readers.page(conn, asked, place, wanted + 1)
        shown = rows[:wanted]
        last = shown[-1] if rows[wanted:] else None
        further = cursor([last["last_at"], last["id"]]) if last else None
        return reply({"reads": [_read(row) for row in shown], "next": further})


def _asked(query: Mapping[str, str]) -> Asked:
    reader = query.get("reader")
    if reader is not None and not is_text(reader):
        raise InvalidParam("reader is no text: it is like token:NAME, user:@ID or key:NAME")
    return Asked(reader, _media(query), time(query, "since"), time(query, "until"))


def _media(query: Mapping[str, str]) -> Mxc | None:
    text = query.get("media")
    if text is None:
        return None
    server_name, _, media_id = text.removeprefix(_PREFIX).partition("/")
    mxc = Mxc.checked(server_name, media_id)
    if mxc is None:
        raise InvalidParam("media is no mxc URI, like mxc://example.com/abc")
    return mxc


def _read(row: Row) -> dict[str, Any]:
    shown = ("reader", "via", "times", "first_at", "last_at")
    mxc = Mxc(row["server_name"], row["media_id"])
    return {"mxc": str(mxc), **{key: row[key] for key in shown}}


def _after(parts: Any) -> After:
    """Raises ValueError or TypeError."""
    at, row_id = parts
    if type(row_id) is not int or not 0 < row_id <= LAST_ID:
        raise ValueError("no row")
    return After(moment(at), row_id)
