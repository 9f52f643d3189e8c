"""After an outage of the database: the homeserver is asked to push again, at once.

Left alone it waits up to nine minutes between its own tries, and everything posted waits behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from archiver.db.pool import DATABASE_AWAY, Pool

POLL_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Recovery:
    """Watches the database from a refused push on until it answers, then calls `ask`.

    `ask` is the bot's ping: https://github.com/matrix-org/matrix-spec-proposals/pull/2659
    """

    def __init__(self, pool: Pool, ask: Callable[[], Awaitable[object]]) -> None:
        self._pool = pool
        self._ask = ask
        self._refused = asyncio.Event()

    def push_refused(self) -> None:
        """A push could not be recorded, so the homeserver holds it back."""
        self._refused.set()

    async def run(self) -> None:
        """Watches until cancelled."""
        while True:
            await self._refused.wait()
            await asyncio.sleep(POLL_SECONDS)
            if not await self._database_answers():
                continue
            self._refused.clear()
            log.info("the database answers again, the homeserver is asked to push")
            await self._ask()

    async def _database_answers(self) -> bool:
        try:
            async with self._pool.acquire() as conn:
                await conn.execute("SELECT 1")
        except DATABASE_AWAY:
            return False
        return True
