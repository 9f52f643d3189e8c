"""The push face of an application service: authenticate, parse, record, 200. In milliseconds,
because Synapse loses what is still in its memory when it is restarted.

https://spec.matrix.org/v1.16/application-service-api/#pushing-events
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager as Context
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from archiver import metrics
from archiver.capture.batch import Batch, NotJSON
from archiver.capture.policy import CapturePolicy
from archiver.capture.record import record
from archiver.capture.rows import Kept, keep
from archiver.catalogue import inbox
from archiver.db.pool import DATABASE_AWAY, Pool
from archiver.intake.activity import rooms_of
from archiver.intake.summons import Summons, summoned
from archiver.model import Source

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# 100 events of 64 KiB, escaped at worst sixfold: Synapse repeats a refused push for ever.
MAX_BODY = 64 * 1024 * 1024
LARGE_BODY = 512 * 1024

log = structlog.get_logger(__name__)


class Intake:
    """Answers 200 only after everything that matters in a transaction is committed.

    What concerns the `bot`, commands that begin with `prefix` among it, goes into its inbox.
    `refused` is called when a push could not be recorded for want of the database, `pushed` with
    the rooms of one that was.
    """

    def __init__(
        self,
        pool: Pool,
        hs_token: str,
        bot: str,
        prefix: str,
        policy: CapturePolicy,
        refused: Callable[[], None] = lambda: None,
        pushed: Callable[[Collection[str]], None] = lambda _rooms: None,
    ) -> None:
        self._pool = pool
        self._authorization = b"Bearer " + hs_token.encode()
        self._bot = bot
        self._prefix = prefix
        self._policy = policy
        self._on_refusal = refused
        self._on_push = pushed

    def application(self) -> web.Application:
        """The routes that the homeserver calls."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._only_the_homeserver])
        app.router.add_put("/_matrix/app/v1/transactions/{txn_id}", self._transaction)
        app.router.add_post("/_matrix/app/v1/ping", self._ping)
        app.router.add_get("/_matrix/app/v1/users/{user_id}", self._user)
        app.router.add_get("/_matrix/app/v1/rooms/{alias}", self._room)
        return app

    @web.middleware
    async def _only_the_homeserver(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._authorization):
            return _refused(403, "M_FORBIDDEN", "the hs_token is not the registration's")
        try:
            return await handler(request)
        except web.HTTPException as error:  # aiohttp's own: no such route, or a body too large
            errcode = "M_TOO_LARGE" if error.status == 413 else "M_UNRECOGNIZED"
            return _refused(error.status, errcode, error.reason)

    async def _transaction(self, request: web.Request) -> web.Response:
        body = await request.read()
        started = time.perf_counter()
        try:
            await self._record(body)
        except NotJSON as error:
            metrics.PUSHES.labels("not_json").inc()
            log.warning("push refused", reason=str(error))
            return _refused(400, "M_NOT_JSON", str(error))
        except DATABASE_AWAY as error:
            metrics.PUSHES.labels("database_away").inc()
            log.error("push not recorded, the homeserver repeats it", reason=str(error))
            self._on_refusal()
            return _refused(503, "M_UNKNOWN", "the archive's database does not answer")
        metrics.PUSHES.labels("recorded").inc()
        metrics.PUSH_SECONDS.observe(time.perf_counter() - started)
        return web.json_response({})

    async def _record(self, body: bytes) -> None:
        # Hostile bodies take a while to take apart, and the loop has others to serve.
        take_apart = partial(_take_apart, body, self._policy, self._prefix, self._bot)
        large = len(body) > LARGE_BODY
        kept, rooms, summons = await asyncio.to_thread(take_apart) if large else take_apart()
        async with asyncio.timeout(50):  # Synapse itself gives up after 60 s
            async with self._pool.acquire() as conn, _together(conn, summons):
                recorded = await record(conn, kept, Source.PUSH, self._policy)
                if summons:
                    await inbox.put(conn, summons)
        self._on_push(rooms)
        recorded.add_to_metrics(Source.PUSH)

    async def _ping(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _user(self, request: web.Request) -> web.Response:
        if request.match_info["user_id"] == self._bot:
            return web.json_response({})
        return _refused(404, "M_NOT_FOUND", "the archive has no such user")

    async def _room(self, _request: web.Request) -> web.Response:
        return _refused(404, "M_NOT_FOUND", "the archive makes no rooms")


def _take_apart(
    body: bytes, policy: CapturePolicy, prefix: str, bot: str
) -> tuple[list[Kept], set[str], list[Summons]]:
    batch = Batch(body)
    return keep(batch, policy), rooms_of(batch.events), summoned(batch.events, prefix, bot)


def _together(conn: Connection, summons: list[Summons]) -> Context[object]:
    """One commit for the archive and the inbox; one statement alone is one anyway."""
    return conn.transaction() if summons else nullcontext()


def _refused(status: int, errcode: str, error: str) -> web.Response:
    return web.json_response({"errcode": errcode, "error": error}, status=status)
