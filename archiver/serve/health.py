"""How the archive does: for a supervisor, a load balancer and a dashboard."""

from __future__ import annotations

import asyncio
import time

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from archiver import metrics
from archiver.catalogue import present, queue
from archiver.db.pool import Pool
from archiver.errors import StoreUnavailable
from archiver.model import State
from archiver.serve.answers import reply
from archiver.serve.database import DatabaseUnavailable, connection
from archiver.serve.headers import PRIVATE
from archiver.store.hybrid import HybridStore

ANSWER_SECONDS = 3.0
REMEMBER_SECONDS = 2.0

log = structlog.get_logger(__name__)


class Health:
    """Asks the database and the object store, but not more often than REMEMBER_SECONDS."""

    def __init__(self, pool: Pool, store: HybridStore) -> None:
        self._pool = pool
        self._checks = {"database": self._ask_database, "object store": store.check_objects}
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._away: dict[str, str] = {}
        self._damage: present.Damage | None = None
        self._until = 0.0
        self._asking = asyncio.Lock()
        metrics.SERVING.set(1)

    async def alive(self, _request: web.Request) -> web.Response:
        """200 while this process can answer at all."""
        return reply({"status": "alive"})

    async def ready(self, _request: web.Request) -> web.Response:
        """200, with what is damaged, or 503 with what does not answer and what to do about it."""
        async with self._asking:
            if time.monotonic() >= self._until:
                answers = dict(await asyncio.gather(*map(self._ask, self._checks)))
                self._away = {name: said for name, said in answers.items() if said}
                self._damage = None if self._away else await self._known_damage()
                self._until = time.monotonic() + REMEMBER_SECONDS
        if not self._away:
            damaged = self._damage and self._damage._asdict()
            return reply({"status": "ready", "damaged": damaged})
        error = "; ".join(self._away.values())
        return reply({"errcode": "M_UNKNOWN", "error": error, "away": self._away}, 503)

    async def metrics(self, _request: web.Request) -> web.Response:
        """Everything in metrics.py, for Prometheus."""
        try:
            await self._count()
        except DatabaseUnavailable as error:
            log.warning("the queue was not counted", reason=str(error))
        headers = {**PRIVATE, "Content-Type": CONTENT_TYPE_LATEST}
        return web.Response(body=await asyncio.to_thread(metrics.exposition), headers=headers)

    async def _count(self) -> None:
        async with connection(self._pool) as conn:
            rows = {row["state"]: row for row in await queue.counts(conn)}
            damage = await present.damage(conn)
        for state in State:
            if state is not State.READY:
                metrics.MEDIA.labels(state).set(rows[state]["media"] if state in rows else 0)
        overdue = rows[State.PENDING]["overdue"] if State.PENDING in rows else 0
        metrics.OLDEST_DUE.set(max(0, overdue))
        metrics.DAMAGED_BLOBS.set(damage.blobs)
        metrics.UNREPAIRED_BLOBS.set(damage.unrepaired)

    async def _ask(self, name: str) -> tuple[str, str]:
        """What is wrong, or nothing. A check that hangs is left to it, and not begun again."""
        task = self._under_way.get(name) or asyncio.ensure_future(self._checks[name]())
        self._under_way[name] = task
        if not (await asyncio.wait([task], timeout=ANSWER_SECONDS))[0]:
            return name, f"the {name} has not answered for {ANSWER_SECONDS:.0f} seconds"
        del self._under_way[name]
        try:
            task.result()
        except StoreUnavailable as error:
            return name, str(error)
        return name, ""

    async def _known_damage(self) -> present.Damage | None:
        """It makes nobody unready: all that is not damaged is answered as ever."""
        try:
            async with connection(self._pool, ANSWER_SECONDS) as conn:
                return await present.damage(conn)
        except DatabaseUnavailable as error:
            log.warning("it is not known what is damaged", reason=str(error))
            return None

    async def _ask_database(self) -> None:
        async with connection(self._pool) as conn:
            await conn.execute("SELECT")
