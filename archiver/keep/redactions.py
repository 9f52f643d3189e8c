"""Works out what redactions are about, in whatever order they and their events came.

A redaction takes no bytes away: it marks events, and the policy (`capture.on_redaction`) is
applied when something is served (serve) and, for `delete`, after a grace period
(keep/deletion.py). So another policy tomorrow is true of all that was redacted before.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import structlog

from archiver import metrics
from archiver.catalogue import redactions
from archiver.db.pool import DATABASE_AWAY
from archiver.db.turns import outliving, woken

if TYPE_CHECKING:
    from archiver.catalogue.redactions import Due
    from archiver.db.pool import Pool

POLL_SECONDS = 5.0
AT_ONCE = 20
LEASE = timedelta(minutes=1)

log = structlog.get_logger(__name__)


class Redactor:
    """Any number of them may share the worklist."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be something due now."""
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            self._wake.clear()
            with outliving("working out redactions"):
                while await self.work():
                    pass
            await woken(self._wake, POLL_SECONDS)

    async def work(self) -> int:
        """Works out some of what is due, and returns how many. Raises what asyncpg does."""
        async with self._pool.acquire() as conn:
            claimed = await redactions.claim(conn, AT_ONCE, LEASE)
        for due in claimed:
            await self._work_out(due)
        return len(claimed)

    async def _work_out(self, due: Due) -> None:
        try:
            async with self._pool.acquire() as conn:
                async with conn.transaction():
                    fresh = await redactions.work_out(conn, due.redaction)
                await redactions.done(conn, due)
        except DATABASE_AWAY:
            raise
        except asyncpg.PostgresError as error:
            # Nobody foresaw it: the claim runs out, and the others do not wait for this one.
            log.error("a redaction failed", redaction=due.redaction, exc_info=error)
        else:
            metrics.REDACTIONS.inc(fresh)
