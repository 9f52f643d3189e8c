"""What a dashboard shows of the coverage: counted now and then, never for a scrape."""

from __future__ import annotations

import asyncio

import structlog

from archiver import metrics
from archiver.catalogue import coverage, health, variants
from archiver.db.pool import Pool
from archiver.serve.database import DatabaseUnavailable, connection

EVERY_SECONDS = 300.0
RETRY_SECONDS = 30.0
COUNT_SECONDS = 120.0

log = structlog.get_logger(__name__)


class Figures:
    """Keeps the gauges of the coverage up to date, as far as whole tables may be read for them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def run(self) -> None:
        """Counts at once, and then every EVERY_SECONDS until cancelled."""
        while True:
            try:
                await self.count()
            except DatabaseUnavailable as error:
                log.warning("the coverage was not counted", reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await asyncio.sleep(EVERY_SECONDS)

    async def count(self) -> None:
        """Reads whole tables once. Raises DatabaseUnavailable."""
        async with connection(self._pool, COUNT_SECONDS) as conn:
            covered = await coverage.of_all(conn)
            processing = await variants.counts(conn)
            damaged = await health.damaged(conn)
        for state, number in covered["references"].items():
            metrics.COVERED.labels(state).set(number)
        metrics.ENCRYPTED.set(covered["encrypted_events"])
        for original, number in covered["emptied_events"].items():
            metrics.EMPTIED.labels(original).set(number)
        for history, number in covered["rooms"].items():
            metrics.ROOMS.labels(history).set(number)
        for row in processing:
            metrics.PROCESSING.labels(row["processing"]).set(row["blobs"])
        metrics.DAMAGED_BLOBS.set(damaged)
        metrics.ROOMS_OPEN.set(covered["gaps"]["rooms_open"])
