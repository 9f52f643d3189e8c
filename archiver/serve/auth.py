"""Who may read: `Authorization: Bearer` with a token of ours.

https://spec.matrix.org/v1.16/client-server-api/#using-access-tokens
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from aiohttp import web
from aiohttp.typedefs import Handler

from archiver.catalogue import tokens
from archiver.catalogue.tokens import Token
from archiver.db.pool import Pool
from archiver.errors import MissingToken, UnknownToken
from archiver.model import Scope
from archiver.serve.database import DatabaseUnavailable, connection
from archiver.serve.headers import PREFLIGHT
from archiver.serve.usage import Usage

REMEMBER_SECONDS = 10.0
MOST_REMEMBERED = 10_000

OPEN = "/healthz"
FACES = ("/_matrix/", "/api/")

# What the request's reader may do; on every request that was let in.
SCOPE = web.RequestKey("scope", Scope)


class Authenticator:
    """Knows tokens by their hashes, and remembers each for a few seconds.

    `forget` is to be called when any token changes, wherever that happens.
    """

    def __init__(self, pool: Pool, usage: Usage) -> None:
        self._pool = pool
        self._usage = usage
        self._remembered: dict[bytes, tuple[Token, float]] = {}
        self._changes = 0

    def forget(self) -> None:
        """Look every token up again."""
        self._remembered.clear()
        self._changes += 1

    @web.middleware
    async def only_with_token(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Lets nobody pass without a good token, but to OPEN, to a preflight, and to nowhere."""
        if request.method == "OPTIONS" and request.path.startswith(FACES):
            return web.Response(status=204, headers=PREFLIGHT)
        if request.path != OPEN and request.match_info.http_exception is None:
            token = await self._authenticate(request.headers.get("Authorization", ""))
            request[SCOPE] = token.scope
        return await handler(request)

    async def _authenticate(self, authorization: str) -> Token:
        scheme, _, secret = authorization.partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise MissingToken("give an access token: Authorization: Bearer ...")
        token = await self._find(tokens.hash_of(secret))
        if token is None or (token.expires_at and token.expires_at <= datetime.now(UTC)):
            raise UnknownToken("the access token is unknown, expired or revoked")
        self._usage.token_used(token.id)
        return token

    async def _find(self, digest: bytes) -> Token | None:
        token, until = self._remembered.get(digest, (None, 0.0))
        if time.monotonic() < until:
            return token
        changes = self._changes
        try:
            async with connection(self._pool) as conn:
                found = await tokens.find(conn, digest)
        except DatabaseUnavailable:
            if token is None:
                raise
            return token  # without the database there is no media to see, but how the archive does
        self._remember(digest, found, changes)
        return found

    def _remember(self, digest: bytes, token: Token | None, changes: int) -> None:
        """Unless a token changed since it was looked up: it may have been this one."""
        self._remembered.pop(digest, None)
        if token is None or changes != self._changes:
            return
        if len(self._remembered) >= MOST_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[digest] = (token, time.monotonic() + REMEMBER_SECONDS)
