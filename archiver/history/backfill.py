"""Rooms whose old messages were asked for are read, a few at a time.

What is missing for want of the homeserver is read when it is back.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import timedelta
from functools import partial

import structlog

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import backfill
from archiver.catalogue.backfill import Job
from archiver.db.pool import DATABASE_AWAY, Pool
from archiver.db.turns import woken
from archiver.errors import HomeserverUnavailable, Permanent, RateLimited, Retryable
from archiver.history.pages import ClaimLost
from archiver.history.reading import FAST, RoomReader, Speed
from archiver.matrix.history import History

POLL_SECONDS = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
FIRST_WAIT = timedelta(seconds=2)
LONGEST_WAIT = timedelta(minutes=5)
GIVE_BACK_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Backfiller:
    """Reads the rooms that were asked for, each under a `lease` that is renewed while it takes.

    Several may run, here and in other processes: they share the rooms.
    """

    def __init__(
        self,
        pool: Pool,
        history: History,
        policy: CapturePolicy,
        lease: timedelta = timedelta(seconds=30),
        speed: Speed = FAST,
    ) -> None:
        self._pool = pool
        self._reader = RoomReader(pool, history, policy, lease, speed)
        self._rooms = speed.rooms
        self._lease = lease
        self._held: set[Job] = set()
        self._wake = asyncio.Event()
        self._failures: Counter[str] = Counter()
        self._outages = 0
        self._paused_until = 0.0

    def wake(self) -> None:
        """A room may have been asked for."""
        self._wake.set()

    async def run(self) -> None:
        """Reads until cancelled; then gives back what it holds."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_leases())
            for _ in range(self._rooms):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(max(0, self._paused_until - time.monotonic()))
            self._wake.clear()
            job = await self._claim()
            if job is not None:
                self._wake.set()  # there may be more
                await self._hold(job)
                continue
            await woken(self._wake, POLL_SECONDS)

    async def _claim(self) -> Job | None:
        try:
            async with self._pool.acquire() as conn:
                return await backfill.claim(conn, self._lease)
        except DATABASE_AWAY as error:
            self._pause(f"the database does not answer: {error}")
            return None

    async def _hold(self, job: Job) -> None:
        self._held.add(job)
        reading = asyncio.create_task(self._read(job))
        try:
            await asyncio.wait([reading])
        finally:
            reading.cancel()
            await asyncio.wait([reading], timeout=GIVE_BACK_SECONDS)
            self._held.discard(job)
            if reading.cancelled():
                await self._put_back(job, timedelta(), None)
        if error := reading.exception():
            # Nobody foresaw it: the lease runs out, and another try is made.
            log.error("reading old messages died", room_id=job.room_id, exc_info=error)

    async def _read(self, job: Job) -> None:
        try:
            await self._reader.read(job, partial(self._progressed, job))
        except ClaimLost:
            log.info("another worker reads this room", room_id=job.room_id)
        except DATABASE_AWAY as error:
            self._pause(f"the database does not answer: {error}")
            await self._put_back(job, FIRST_WAIT, None)
        except Permanent as error:
            log.warning("old messages cannot be read", room_id=job.room_id, reason=str(error))
            await self._put_back(job, None, str(error))
        except Retryable as error:
            await self._try_later(job, error)
        else:
            log.info("old messages are read", room_id=job.room_id)

    def _progressed(self, job: Job) -> None:
        self._outages = 0
        self._failures.pop(job.room_id, None)

    async def _try_later(self, job: Job, error: Retryable) -> None:
        """Waits with this room; with all of them, where the homeserver has no time for any."""
        self._failures[job.room_id] += 1
        delay = min(FIRST_WAIT * 2 ** min(self._failures[job.room_id] - 1, 10), LONGEST_WAIT)
        if isinstance(error, RateLimited):
            delay = timedelta(seconds=error.retry_after)
            self._pause(str(error), error.retry_after)
        elif isinstance(error, HomeserverUnavailable):
            delay = FIRST_WAIT
            self._pause(str(error))
        log.info("a room waits", room_id=job.room_id, reason=str(error), delay=delay)
        await self._put_back(job, delay, str(error))

    async def _put_back(self, job: Job, delay: timedelta | None, reason: str | None) -> None:
        """Ends the claim, to go on after `delay`; None: for good."""
        try:
            async with asyncio.timeout(GIVE_BACK_SECONDS), self._pool.acquire() as conn:
                if delay is None:
                    await backfill.fail(conn, job, reason or "")
                else:
                    await backfill.postpone(conn, job, delay, reason)
        except DATABASE_AWAY as error:
            log.warning("a room is not given back, its lease runs out", reason=str(error))

    def _pause(self, reason: str, seconds: float = 0) -> None:
        """Nobody can be reached: begin nothing for a while that doubles each time."""
        if time.monotonic() < self._paused_until:
            return
        self._outages += 1
        doubled = FIRST_PAUSE * 2 ** min(self._outages - 1, 10)
        seconds = max(seconds, min(doubled, LONGEST_PAUSE))
        self._paused_until = time.monotonic() + seconds
        log.warning("reading old messages pauses", reason=reason, seconds=seconds)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease.total_seconds() / 3)
            if not self._held:
                continue
            try:
                async with self._pool.acquire() as conn:
                    await backfill.renew(conn, self._held, self._lease)
            except DATABASE_AWAY as error:
                log.warning("leases not renewed", reason=str(error))
