"""Lets old media of other servers into the queue, as `history.remote_rate` allows."""

from __future__ import annotations

import asyncio

import structlog

from archiver.catalogue import budget
from archiver.catalogue.budget import Released
from archiver.db.pool import DATABASE_AWAY, Pool
from archiver.db.turns import woken

POLL_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Pacer:
    """Runs beside every worker; the budget in the database is one for all of them.

    `rate`: bytes a second, None for no limit.
    """

    def __init__(self, pool: Pool, rate: int | None) -> None:
        self._pool = pool
        self._rate = rate
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """The budget may allow more than it did, or something new waits for it."""
        self._wake.set()

    async def run(self) -> None:
        """Paces until cancelled."""
        while True:
            self._wake.clear()
            await woken(self._wake, await self._release())

    async def _release(self) -> float:
        """Seconds until there may be more to release."""
        try:
            async with self._pool.acquire() as conn:
                await budget.open_budget(conn)
                released = await budget.release(conn, self._rate)
        except DATABASE_AWAY as error:
            log.warning("old media wait", reason=f"the database does not answer: {error}")
            return POLL_SECONDS
        if released.media:
            log.debug("old media released", media=released.media)
        return _pause(released)


def _pause(released: Released) -> float:
    """At once where more may wait that is allowed now; else not longer than a poll."""
    if released.media and not released.wait:
        return 0.0
    return min(released.wait or POLL_SECONDS, POLL_SECONDS)
