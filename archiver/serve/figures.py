"""Keeps the figures counted for whoever asks, and tells a dashboard of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import asyncpg
import structlog

from archiver import metrics
from archiver.catalogue import counting, infections
from archiver.catalogue.stats import FIGURES
from archiver.db.pool import Pool
from archiver.serve.database import DatabaseUnavailable, connection

EVERY_SECONDS = 30.0

log = structlog.get_logger(__name__)


class Figures:
    """Counts the archive when that is due, unless another process just does, and keeps the gauges
    up to date, as far as whole tables would have to be read for them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def run(self) -> None:
        """Looks at once, and then every EVERY_SECONDS until cancelled."""
        while True:
            try:
                await self.count()
            except DatabaseUnavailable as error:
                log.warning("the archive was not counted", reason=str(error))
            except asyncpg.PostgresError as error:
                log.error("counting the archive failed, and is tried again", exc_info=error)
            await asyncio.sleep(EVERY_SECONDS)

    async def count(self) -> None:
        """May read whole tables once. Raises DatabaseUnavailable."""
        async with connection(self._pool, counting.PATIENCE) as conn:
            figures = await counting.recent(conn, FIGURES)
            to_scan = await infections.waiting(conn)
        value, covered = figures.value, figures.value["coverage"]
        metrics.COUNTED.set(figures.counted_at.timestamp())
        for state, number in covered["references"].items():
            metrics.COVERED.labels(state).set(number)
        metrics.ENCRYPTED.set(covered["encrypted_events"])
        for original, number in covered["emptied_events"].items():
            metrics.EMPTIED.labels(original).set(number)
        for history, number in covered["rooms"].items():
            metrics.ROOMS.labels(history).set(number)
        for processing, number in value["processing"].items():
            metrics.PROCESSING.labels(processing).set(number)
        metrics.SCAN_WAITING.set(to_scan)
        metrics.OLDEST_VERIFIED.set(_seconds_since(value["verified"]["since"]))
        metrics.ROOMS_OPEN.set(covered["gaps"]["rooms_open"])


def _seconds_since(time: str | None) -> float:
    """0 where there is nothing of which it could be told."""
    if time is None:
        return 0.0
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
