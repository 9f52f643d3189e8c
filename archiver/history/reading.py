"""Reads the old messages of one room, from the newest back to the oldest that are wanted.

A page and the cursor behind it are one commit, so that whoever is killed anywhere loses nothing
and does nothing twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import structlog

from archiver import metrics
from archiver.capture.policy import CapturePolicy
from archiver.capture.record import Recorded, record
from archiver.capture.rows import Kept
from archiver.catalogue import backfill
from archiver.catalogue.backfill import Job, Step
from archiver.db.pool import Pool
from archiver.errors import Permanent, Retryable
from archiver.history.pages import ClaimLost, Page, keep_page, read_page
from archiver.matrix.history import History
from archiver.model import Source

if TYPE_CHECKING:
    from archiver.db.pool import Connection

EVENTS_A_STATEMENT = 500
NOWHERE = Step(None, None, 0, 0, 0)

log = structlog.get_logger(__name__)


class Speed(NamedTuple):
    """How fast to read: `rooms` at once, so many `events` a page, and after each page a rest of
    `rest` times what it took to record."""

    rooms: int
    events: int
    rest: float


# While what one room gave is recorded, the homeserver answers for the other.
FAST = Speed(rooms=2, events=500, rest=0)
# Beside a live archive, on the same loop: a push never waits long.
GENTLE = Speed(rooms=1, events=100, rest=2)


class RoomReader:
    """Reads rooms for whoever holds the claim on them; each page prolongs it by `lease`."""

    def __init__(
        self, pool: Pool, history: History, policy: CapturePolicy, lease: timedelta, speed: Speed
    ) -> None:
        self._pool = pool
        self._history = history
        self._policy = policy
        self._lease = lease
        self._speed = speed

    async def read(self, job: Job, recorded: Callable[[], None] = lambda: None) -> None:
        """Page after page to the end; the next one is on its way while one is recorded.

        `recorded` is called after each.
        Raises ClaimLost, what History does, and what asyncpg does.
        """
        token = await self._where_to_begin(job) if job.cursor is None else job.cursor
        newest = token is None
        ahead = asyncio.create_task(self._page(job, token))
        try:
            while True:
                page = await ahead
                last = page.end in (None, token) or _is_older(page, job)
                if not last:
                    ahead = asyncio.create_task(self._page(job, page.end))
                started = time.monotonic()
                await self._commit(job, page, newest=newest, last=last)
                recorded()
                if last:
                    return
                await asyncio.sleep(self._speed.rest * (time.monotonic() - started))
                token, newest = page.end, False
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    async def _where_to_begin(self, job: Job) -> str | None:
        await self._record_state(job)
        return await self._history.token_at(job.room_id, job.until) if job.until else None

    async def _page(self, job: Job, token: str | None) -> Page:
        return await read_page(
            await self._history.messages(job.room_id, "b", token, self._speed.events)
        )

    async def _record_state(self, job: Job) -> None:
        """Names and faces as they are now, before the first page: nice to have, never needed."""
        try:
            page = await read_page(await self._history.state(job.room_id), "state")
            kept = await keep_page(page.events, self._policy)
        except (Permanent, Retryable) as error:
            log.info("a room's state is not known", room_id=job.room_id, reason=str(error))
            return
        for start in range(0, len(kept), EVENTS_A_STATEMENT):
            async with self._pool.acquire() as conn, conn.transaction():
                some = kept[start : start + EVENTS_A_STATEMENT]
                recorded = await self._record(conn, job, some, NOWHERE)
            recorded.add_to_metrics(Source.BACKFILL)

    async def _commit(self, job: Job, page: Page, *, newest: bool, last: bool) -> None:
        kept = await keep_page(page.events, self._policy)
        wanted = [found for found in kept if not _is_newer(found, job)]
        step = Step(page.end, page.middle(), len(page.events.events), 0, 0)
        async with self._pool.acquire() as conn, conn.transaction():
            recorded = await self._record(conn, job, wanted, step)
            if newest and page.start and job.until is None:
                await backfill.begin(conn, job, page.start)
            await backfill.extend(conn, job, to_the_beginning=last and page.end is None)
            if last:
                await backfill.finish(conn, job)
        metrics.HISTORY_EVENTS.labels(Source.BACKFILL).inc(step.events)
        recorded.add_to_metrics(Source.BACKFILL)

    async def _record(self, conn: Connection, job: Job, kept: list[Kept], step: Step) -> Recorded:
        recorded = await record(conn, kept, Source.BACKFILL, self._policy)
        step = step._replace(kept=recorded.events, media=recorded.media)
        if not await backfill.advance(conn, job, step, self._lease):
            raise ClaimLost(job.room_id)
        return recorded


def _is_older(page: Page, job: Job) -> bool:
    """True when all of it is older than what is wanted. One sender's wrong clock ends nothing."""
    times = page.times()
    return job.since is not None and bool(times) and max(times) < job.since


def _is_newer(found: Kept, job: Job) -> bool:
    sent = found.row.origin_server_ts
    return job.until is not None and sent is not None and sent > job.until.timestamp() * 1000
