"""`POST /api/v1/media/{server}/{id}/sign`: a URL that works in an `<img>` until it expires."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
from aiohttp import web

from archiver.catalogue import signing_keys
from archiver.errors import Forbidden, InvalidParam
from archiver.model import Scope
from archiver.serve.answers import reply
from archiver.serve.asking import asked_for
from archiver.serve.database import connection
from archiver.serve.readers import READER, Reader
from archiver.serve.signed_urls import FOR
from archiver.serve.signing import Parameter, are_signable, signed_url

if TYPE_CHECKING:
    from archiver.db.pool import Pool

DEFAULT_SECONDS = 3600

_PATHS = {
    "content": "/api/v1/media/{}/{}/content",
    "download": "/_matrix/client/v1/media/download/{}/{}",
    "thumbnail": "/_matrix/client/v1/media/thumbnail/{}/{}",
    "variant": "/api/v1/media/{}/{}/variant",
}


class Sign:
    """Signs for `longest` at most, with the archive's own key."""

    def __init__(self, pool: Pool, public_url: str, longest: timedelta) -> None:
        self._pool = pool
        self._public_url = public_url
        self._longest = longest

    async def post(self, request: web.Request) -> web.Response:
        """A URL for a media, signed in the name of who asks."""
        mxc, asker = asked_for(request), request[READER]
        asked = _body(await request.read())
        seconds, scope = self._seconds(asked), _scope(asked, asker)
        what = asked.get("what", "content")
        if not isinstance(what, str) or what not in _PATHS:
            raise InvalidParam(f"what is one of {', '.join(_PATHS)}")
        parameters = [*_parameters(asked), (FOR, quote(asker.name, safe="/:@"))]
        expires_at = datetime.fromtimestamp(int(time.time()) + seconds, UTC)
        async with connection(self._pool) as conn:
            key = await signing_keys.own(conn, expires_at, self._longest)
        expires = int(expires_at.timestamp())
        path = _PATHS[what].format(*mxc)
        url = signed_url(key.secret, key.id, path, expires, scope, parameters)
        return reply({"url": self._public_url + url, "expires_at": expires_at})

    def _seconds(self, asked: dict[str, Any]) -> int:
        seconds = asked.get("expires_in", DEFAULT_SECONDS)
        longest = int(self._longest.total_seconds())
        if type(seconds) is not int or not 1 <= seconds <= longest:
            raise InvalidParam(f"expires_in is a number of seconds from 1 to {longest}")
        return seconds


def _body(data: bytes) -> dict[str, Any]:
    try:
        asked = orjson.loads(data or b"{}")
    except orjson.JSONDecodeError:
        asked = None
    if not isinstance(asked, dict):
        raise InvalidParam("the body is no JSON object")
    return asked


def _scope(asked: dict[str, Any], asker: Reader) -> Scope:
    scope = asked.get("scope", Scope.READ)
    if not isinstance(scope, str) or scope not in set(Scope):
        raise InvalidParam(f"scope is one of {', '.join(Scope)}")
    if scope == Scope.ADMIN and asker.scope is not Scope.ADMIN:
        raise Forbidden("only scope admin may sign for scope admin")
    return Scope(scope)


def _parameters(asked: dict[str, Any]) -> list[Parameter]:
    given = asked.get("parameters", {})
    sentence = "parameters holds names and values in visible ASCII without &, like width: 96"
    if not isinstance(given, dict):
        raise InvalidParam(sentence)
    parameters = [(name, _text(value)) for name, value in given.items()]
    if not are_signable(parameters) or FOR in given:
        raise InvalidParam(sentence)
    return parameters


def _text(value: object) -> str:
    """As a URL has it. What has no such form becomes a text that cannot be signed."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else "\0"
