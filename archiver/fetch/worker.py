"""Claims media, archives several at a time, keeps the leases, and stops in good order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg
import structlog

from archiver import metrics
from archiver.catalogue import budget, queue
from archiver.catalogue.queue import Job
from archiver.db.pool import DATABASE_AWAY
from archiver.errors import ArchiverError, Excluded, HomeserverUnavailable, RateLimited
from archiver.fetch.archive import Archived, Parts, archive_one
from archiver.fetch.retry import next_try
from archiver.model import State

POLL_SECONDS = 2.0
# One claim in four takes the longest due instead of the youngest, so that nothing starves.
OLDEST_EVERY = 4
# Jobs shorter than this on average are claimed ahead of time, to save a round trip each.
QUICK_SECONDS = 1.0
GIVE_BACK_SECONDS = 5.0
# A media that was refused more often for the homeserver's limit is over that limit by itself (as
# Synapse has it, 50 MiB come within so many tries): history does not wait for it any more.
LIMITED_TRIES = 100

log = structlog.get_logger(__name__)


class Worker:
    """Up to `concurrency` media at once, each under a `lease` that is renewed while it takes."""

    def __init__(
        self, parts: Parts, *, concurrency: int, lease: timedelta, stop_within: timedelta
    ) -> None:
        self._parts = parts
        self._concurrency = concurrency
        self._lease = lease
        self._stop_within = stop_within
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
        renewing = asyncio.create_task(self._keep_leases())
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
        started = time.perf_counter()
        try:
            archived = await archive_one(job, self._parts)
        except ArchiverError as error:
            await self._did_not_work(job, error)
        except DATABASE_AWAY as error:
            self._pause(f"the database does not answer: {error}")
        except asyncpg.ForeignKeyViolationError:
            # The blob was deleted between our look and our commit: once more, from the start.
            await self._give_back([job])
        else:
            self._outages = 0
            seconds = time.perf_counter() - started
            self._average += (seconds - self._average) / 16
            _count(archived, seconds)
            log.debug("archived", mxc=str(job.mxc), size=archived.blob.size)

    async def _did_not_work(self, job: Job, error: ArchiverError) -> None:
        metrics.ARCHIVE_ERRORS.labels(type(error).__name__).inc()
        if isinstance(error, HomeserverUnavailable):
            self._pause(str(error))
        age = datetime.now(UTC) - job.created_at
        delay = next_try(error, job.attempts, age)
        try:
            if delay is not None:
                await self._put_off(job, error, delay)
                log.info("archiving waits", mxc=str(job.mxc), reason=str(error), delay=delay)
            else:
                state = State.EXCLUDED if isinstance(error, Excluded) else State.FAILED
                await self._give_up(job, error, state)
                metrics.MEDIA_SETTLED.labels(state).inc()
                log.warning("not archived", mxc=str(job.mxc), state=state, reason=str(error))
        except DATABASE_AWAY as away:
            self._pause(f"the database does not answer: {away}")

    async def _put_off(self, job: Job, error: ArchiverError, delay: timedelta) -> None:
        rate = self._parts.remote_rate
        async with self._parts.pool.acquire() as conn, conn.transaction():
            if not await queue.postpone(conn, job, delay, str(error)):
                return
            await budget.correct(conn, job, rate, 0, done=False)
            if rate and isinstance(error, RateLimited) and job.attempts <= LIMITED_TRIES:
                # Longer than `delay`, so that whoever was refused is the first to try again.
                await budget.step_back(conn, job, rate, 2 * delay)

    async def _give_up(self, job: Job, error: ArchiverError, state: State) -> None:
        async with self._parts.pool.acquire() as conn, conn.transaction():
            if await queue.settle(conn, job, state, str(error)):
                await budget.correct(conn, job, self._parts.remote_rate, 0)

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

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            held = [*self._running, *self._waiting]
            if not held:
                continue
            try:
                async with self._parts.pool.acquire() as conn:
                    kept = await queue.renew(conn, held, self._lease)
            except DATABASE_AWAY as error:
                log.warning("leases not renewed", reason=str(error))
                continue
            self._drop(job for job in held if job.mxc not in kept)

    def _drop(self, lost: Iterable[Job]) -> None:
        """Another worker has these now, or they are done: what we would say changes nothing."""
        for job in lost:
            if job in self._waiting:
                self._waiting.remove(job)
            elif job in self._running:
                self._running[job].cancel()

    async def _wind_down(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        await self._give_back(waiting)
        running = dict(self._running)
        if not running:
            return
        log.info("finishing what is under way", media=len(running))
        _, late = await asyncio.wait(running.values(), timeout=self._stop_within.total_seconds())
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
            await self._give_back(job for job, task in running.items() if task in late)

    async def _give_back(self, jobs: Iterable[Job]) -> None:
        try:
            async with asyncio.timeout(GIVE_BACK_SECONDS), self._parts.pool.acquire() as conn:
                await queue.release(conn, jobs)
        except DATABASE_AWAY as error:
            log.warning("claims not given back, their leases run out", reason=str(error))


def _count(archived: Archived, seconds: float) -> None:
    if not archived.completed.held:
        return
    metrics.ARCHIVE_SECONDS.observe(seconds)
    metrics.MEDIA_SETTLED.labels(State.READY).inc()
    if archived.completed.new_blob:
        metrics.BYTES_ARCHIVED.labels(archived.blob.place).inc(archived.blob.size)
    else:
        metrics.MEDIA_DEDUPLICATED.inc()
