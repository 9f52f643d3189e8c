"""Who may read: a token of ours, one of the homeserver's as the configuration has it, or a URL
that was signed.

https://spec.matrix.org/v1.16/client-server-api/#using-access-tokens
"""

from __future__ import annotations

from datetime import UTC, datetime

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from archiver.catalogue import tokens
from archiver.db.pool import Pool
from archiver.errors import Forbidden, MissingToken, NoReader, UnknownToken
from archiver.model import Scope
from archiver.serve.headers import PREFLIGHT
from archiver.serve.limits import Limits
from archiver.serve.matrix_tokens import MatrixTokens
from archiver.serve.readers import READER, Reader
from archiver.serve.remembered import Remembered
from archiver.serve.signed_urls import SignedUrls
from archiver.serve.signing import SIGNATURE
from archiver.serve.usage import Usage

OPEN = "/healthz"
FACES = ("/_matrix/", "/api/")

log = structlog.get_logger(__name__)

# What the request's reader may do; on every request that was let in.
SCOPE = web.RequestKey("scope", Scope)


class Authenticator:
    """Asks the database, or the homeserver where there is `matrix`, and remembers for a while.

    `forget` is to be called when any token changes, wherever that happens.
    """

    def __init__(
        self,
        pool: Pool,
        usage: Usage,
        signed_urls: SignedUrls,
        matrix: MatrixTokens | None,
        limits: Limits,
    ) -> None:
        self._usage = usage
        self._tokens = Remembered(pool, tokens.find)
        self._signed_urls = signed_urls
        self._matrix = matrix
        self._limits = limits

    def forget(self) -> None:
        """Look every token of ours up again."""
        self._tokens.forget()

    @web.middleware
    async def only_readers(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Lets no stranger pass, but to OPEN, to a preflight, and to nowhere."""
        if request.method == "OPTIONS" and request.path.startswith(FACES):
            return web.Response(status=204, headers=PREFLIGHT)
        if request.path != OPEN and request.match_info.http_exception is None:
            try:
                reader = await self._reader(request)
            except NoReader:  # behind a proxy, each user of the homeserver who misses a picture
                raise
            except (MissingToken, UnknownToken, Forbidden) as error:
                self._limits.failed(request)
                address = self._limits.address(request)
                log.info("a reader was refused", address=address, reason=str(error))
                raise
            request[READER], request[SCOPE] = reader, reader.scope
        return await handler(request)

    async def _reader(self, request: web.Request) -> Reader:
        authorization = request.headers.get("Authorization")
        if authorization is None and SIGNATURE in request.query:
            self._limits.expect_failure(request)
            return await self._signed_urls.reader(request)
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise MissingToken("give an access token: Authorization: Bearer ...")
        if secret.startswith(tokens.PREFIX):
            return await self._ours(request, secret)
        if self._matrix is None:
            raise UnknownToken("the access token is none of the archive's own")
        if not self._matrix.knows(secret):
            self._limits.expect_failure(request)
        return await self._matrix.reader(secret)

    async def _ours(self, request: web.Request, secret: str) -> Reader:
        digest = tokens.hash_of(secret)
        if digest not in self._tokens:
            self._limits.expect_failure(request)
        token = await self._tokens.find(digest)
        if token is None or (token.expires_at and token.expires_at <= datetime.now(UTC)):
            raise UnknownToken("the access token is unknown, expired or revoked")
        self._usage.token_used(token.id)
        return Reader(f"token:{token.name}", token.scope)
