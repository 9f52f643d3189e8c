"""Claims media, archives several at a time, keeps the leases, and stops in good order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial

import asyncpg
import structlog

from archiver import metrics
from archiver.catalogue import queue
from archiver.catalogue.queue import Job
from archiver.db.pool import DATABASE_AWAY
from archiver.errors import ArchiverError, HomeserverUnavailable
from archiver.fetch.archive import Parts, archive_one
from archiver.fetch.arrival import Arrival
from archiver.fetch.demand import Demand
from archiver.fetch.outcome import GIVE_BACK_SECONDS, did_not_work, give_back, keep_leases, worked

POLL_SECONDS = 2.0
# One claim in four takes the longest due instead of the youngest, so that nothing starves.
OLDEST_EVERY = 4
# Jobs shorter than this on average are claimed ahead of time, to save a round trip each.
QUICK_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Worker:
    """Up to `concurrency` media at once, each under a `lease` that is renewed while it takes."""

    def __init__(
        self,
        parts: Parts,
        *,
        concurrency: int,
        lease: timedelta,
        stop_within: timedelta,
        demand: Demand | None = None,
    ) -> None:
        """`demand` shows what is fetched to those who ask for it meanwhile."""
        self._parts = parts
        self._concurrency = concurrency
        self._lease = lease
        self._stop_within = stop_within
        self._demand = demand
        self._waiting: deque[Job] = deque()
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._dry = False
        self._claims = 0
        self._average = QUICK_SECONDS
        self._paused_until = 0.0
        self._outages = 0

    def wake(self) -> None:
        """There may be something due now."""
        self._dry = False
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled; then ends or gives back what it holds within `stop_within`."""
        pool, lease = self._parts.pool, self._lease
        renewing = asyncio.create_task(keep_leases(pool, lease, self._held, self._drop))
        try:
            while True:
                self._wake.clear()
                await self._top_up()
                self._start()
                await self._wait()
        finally:
            await self._wind_down()
            renewing.cancel()
            await asyncio.wait([renewing])

    async def _top_up(self) -> None:
        ahead = self._concurrency if self._average < QUICK_SECONDS else 0
        wanted = self._concurrency + ahead - len(self._running) - len(self._waiting)
        if wanted <= ahead // 2 or self._dry or self._is_paused():
            return
        claiming = asyncio.create_task(self._claim(wanted))
        try:
            await asyncio.shield(claiming)
        except asyncio.CancelledError:
            # A claim that is cut off may have been made: then nobody would give it back.
            await asyncio.wait([claiming], timeout=GIVE_BACK_SECONDS)
            raise

    def _start(self) -> None:
        while self._waiting and not self._is_paused() and len(self._running) < self._concurrency:
            job = self._waiting.popleft()
            task = asyncio.create_task(self._work(job))
            self._running[job] = task
            task.add_done_callback(partial(self._ended, job))
        metrics.CLAIMED.set(len(self._running) + len(self._waiting))

    async def _claim(self, wanted: int) -> None:
        self._claims += 1
        self._dry = True  # unless there are more, or `wake` says otherwise while we ask
        try:
            async with self._parts.pool.acquire() as conn:
                jobs = await queue.claim(
                    conn, wanted, self._lease, oldest_first=self._claims % OLDEST_EVERY == 0
                )
        except DATABASE_AWAY as error:
            self._pause(f"the database does not answer: {error}")
            return
        self._waiting.extend(jobs)
        if len(jobs) == wanted:
            self._dry = False

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            self._dry = False

    def _ended(self, job: Job, task: asyncio.Task[None]) -> None:
        del self._running[job]
        self._start()
        self._wake.set()
        if not task.cancelled() and (error := task.exception()):
            # Nobody foresaw it: the lease runs out, and grows each time it does.
            log.error("archiving died", mxc=str(job.mxc), exc_info=error)

    async def _work(self, job: Job) -> None:
        with self._demand.shown(job.mxc) if self._demand else nullcontext() as arrival:
            await self._archive(job, arrival)

    async def _archive(self, job: Job, arrival: Arrival | None) -> None:
        started = time.perf_counter()
        try:
            archived = await archive_one(job, self._parts, arrival)
        except ArchiverError as error:
            await self._did_not_work(job, error)
        except DATABASE_AWAY as error:
            self._pause(f"the database does not answer: {error}")
        except asyncpg.ForeignKeyViolationError:
            # The blob was deleted between our look and our commit: once more, from the start.
            await give_back(self._parts.pool, [job])
        else:
            self._outages = 0
            seconds = time.perf_counter() - started
            self._average += (seconds - self._average) / 16
            worked(job, archived, seconds)
            if arrival and archived.completed.held and not archived.completed.refused:
                arrival.end(archived.blob)

    async def _did_not_work(self, job: Job, error: ArchiverError) -> None:
        if isinstance(error, HomeserverUnavailable):
            self._pause(str(error))
        try:
            await did_not_work(job, error, self._parts)
        except DATABASE_AWAY as away:
            self._pause(f"the database does not answer: {away}")

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _pause(self, reason: str) -> None:
        """Nobody can be reached: begin nothing for a while that doubles up to half a minute."""
        if self._is_paused():
            return
        self._outages += 1
        seconds = min(2 ** min(self._outages - 1, 5), 30)
        self._paused_until = time.monotonic() + seconds
        log.warning("archiving pauses", reason=reason, seconds=seconds)

    def _held(self) -> list[Job]:
        return [*self._running, *self._waiting]

    def _drop(self, lost: Iterable[Job]) -> None:
        """Another worker has these now, or they are done: what we would say changes nothing."""
        for job in lost:
            if job in self._waiting:
                self._waiting.remove(job)
            elif job in self._running:
                self._running[job].cancel()

    async def _wind_down(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        await give_back(self._parts.pool, waiting)
        running = dict(self._running)
        if not running:
            return
        log.info("finishing what is under way", media=len(running))
        _, late = await asyncio.wait(running.values(), timeout=self._stop_within.total_seconds())
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
            held = [job for job, task in running.items() if task in late]
            await give_back(self._parts.pool, held)
