"""Keeps the figures counted for whoever asks, and tells a dashboard of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import asyncpg
import structlog

from archiver import metrics
from archiver.catalogue import counting, infections
from archiver.catalogue.growth import AHEAD
from archiver.catalogue.stats import FIGURES
from archiver.catalogue.tallies import GROUPS, groups
from archiver.db.pool import Pool
from archiver.model import Place
from archiver.serve.database import DatabaseUnavailable, connection

EVERY_SECONDS = 30.0
# There are four of them: together they take as long as the figures do.
GROUPS_TIMES = 4
KINDS = ("image", "video", "audio", "text", "application", "other")

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
            metrics.SCAN_WAITING.set(await infections.waiting(conn))
            _tell_coverage(figures.value["coverage"])
            _tell_kept(figures.value)
            metrics.COUNTED.set(figures.counted_at.timestamp())
            for group in GROUPS:
                counted = await counting.recent(conn, groups(group), GROUPS_TIMES)
                if group == "type":
                    _tell_kinds(counted.value)


def _tell_coverage(covered: Mapping[str, Any]) -> None:
    for state, number in covered["references"].items():
        metrics.COVERED.labels(state).set(number)
    metrics.ENCRYPTED.set(covered["encrypted_events"])
    for original, number in covered["emptied_events"].items():
        metrics.EMPTIED.labels(original).set(number)
    for history, number in covered["rooms"].items():
        metrics.ROOMS.labels(history).set(number)
    metrics.ROOMS_OPEN.set(covered["gaps"]["rooms_open"])


def _tell_kept(figures: Mapping[str, Any]) -> None:
    totals, forecast = figures["totals"], figures["forecast"]
    metrics.KEPT_FILES.set(totals["files"])
    metrics.KEPT_BYTES.set(totals["bytes"])
    metrics.DEDUPLICATED_BYTES.set(totals["deduplicated_bytes"])
    metrics.LARGEST_BYTES.set((totals["largest"] or {"bytes": 0})["bytes"])
    metrics.ACCESSES.set(totals["accesses"])
    metrics.GROWTH.set(forecast["bytes_per_day"])
    for days in AHEAD:
        metrics.FORECAST.labels(str(days)).set(forecast[f"bytes_in_{days}_days"])
    for place in Place:
        stored = figures["blobs"].get(place, {"bytes": 0})
        metrics.STORED_BYTES.labels(place).set(stored["bytes"])
    for processing, number in figures["processing"].items():
        metrics.PROCESSING.labels(processing).set(number)
    metrics.OLDEST_VERIFIED.set(_seconds_since(figures["verified"]["since"]))


def _tell_kinds(types: Iterable[Mapping[str, Any]]) -> None:
    """Every kind, each time: of what went, no older number stays."""
    media, size = Counter(dict.fromkeys(KINDS, 0)), Counter(dict.fromkeys(KINDS, 0))
    for one in types:
        kind = one["key"].partition("/")[0]
        kind = kind if kind in KINDS else "other"
        media[kind] += one["media"]
        size[kind] += one["bytes"]
    for kind in KINDS:
        metrics.KIND_MEDIA.labels(kind).set(media[kind])
        metrics.KIND_BYTES.labels(kind).set(size[kind])


def _seconds_since(time: str | None) -> float:
    """0 where there is nothing of which it could be told."""
    if time is None:
        return 0.0
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
