"""Signed URLs at the door: which may be used, and who comes with one."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import web

from archiver.catalogue import signing_keys
from archiver.catalogue.signing_keys import OWN, Key
from archiver.errors import Forbidden, MissingToken
from archiver.model import Scope
from archiver.serve.readers import Reader
from archiver.serve.remembered import Remembered
from archiver.serve.signing import Signed, invalid, read

if TYPE_CHECKING:
    from archiver.db.pool import Pool

# On whose behalf a URL was signed: whoever signs may say so, and the access log tells.
FOR = "for"
LONGEST_NAME = 300

_MAY_BE_SIGNED = re.compile(
    r"/_matrix/client/v1/media/(?:download|thumbnail)/\{server\}/\{id\}[^/]*"
    r"|/api/media/(?:download|thumbnail)/\{server\}/\{id\}[^/]*"
    r"|/api/v1/media/\{server\}/\{id\}/(?:content|thumbnail|variant)(?:\{slash\})?"
    r"|/api/v1/(?:users/\{user_id\}|rooms/\{room_id\})/avatar"
)


class SignedUrls:
    """No URL works for longer than `longest`, whoever signed it.

    `forget` is to be called when any key changes, wherever that happens.
    """

    def __init__(self, pool: Pool, longest: timedelta) -> None:
        self._keys = Remembered(pool, signing_keys.find)
        self._longest = longest

    def forget(self) -> None:
        """Look every key up again."""
        self._keys.forget()

    async def reader(self, request: web.Request) -> Reader:
        """Who comes with the signed URL of this request. Raises Forbidden, and MissingToken for
        what cannot be signed at all."""
        resource = request.match_info.route.resource
        if (
            request.method not in {"GET", "HEAD"}
            or resource is None
            or not may_be_signed(resource.canonical)
        ):
            raise MissingToken(
                "a signed URL is for one media's bytes only: for this, give an access token:"
                " Authorization: Bearer ..."
            )
        signed = read(request.path, request.query)
        key = await self._keys.find(signed.key_id)
        if key is None or not _allows(key, signed) or not signed.is_by(key.secret):
            raise invalid()
        left = signed.expires - time.time()
        if left <= 0:
            raise Forbidden("the signed URL has expired")
        if left > self._longest.total_seconds():
            raise Forbidden("the URL is signed for longer than serve.signed_for_at_most allows")
        return _reader(key, signed)


def may_be_signed(route: str) -> bool:
    """True for a route, as server.py writes it, that gives bytes of one media: nothing else can
    be signed for, so that no URL that is passed on opens a list."""
    return bool(_MAY_BE_SIGNED.fullmatch(route))


def _allows(key: Key, signed: Signed) -> bool:
    live = key.expires_at is None or key.expires_at > datetime.now(UTC)
    return live and (key.scope is Scope.ADMIN or signed.scope is Scope.READ)


def _reader(key: Key, signed: Signed) -> Reader:
    name = f"key:{key.name}"
    behalf = dict(signed.parameters).get(FOR, "")[:LONGEST_NAME]
    if behalf and key.name == OWN:
        name = unquote(behalf)
    elif behalf:
        name = f"{name} for {behalf}"
    return Reader(name, signed.scope, via=key.name)
