"""Media that somebody asks for before it is archived: fetched at once, once for all who ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import asyncpg
import structlog

from archiver.catalogue import queue
from archiver.catalogue.queue import Job
from archiver.db.pool import DATABASE_AWAY
from archiver.errors import ArchiverError, LimitExceeded
from archiver.fetch.archive import Parts, archive_one
from archiver.fetch.arrival import Arrival
from archiver.fetch.outcome import did_not_work, give_back, keep_leases, worked
from archiver.model import Mxc, State

MOST_AT_ONCE = 256
LOOK_SECONDS = 0.25  # how often it is asked whether somebody else is done
LOOK_FOR_SECONDS = 60.0  # nobody who asks waits longer
# After a failure nobody makes us try again before this, doubled each time up to an hour: the queue
# goes on trying by itself, and each try counts.
SPARE_SECONDS = 30.0
SPARE_AT_MOST = 3600.0
MOST_REMEMBERED = 10_000

log = structlog.get_logger(__name__)


class _Failures(NamedTuple):
    times: int
    spared_until: float


class Demand:
    """Archives what is asked for, under a lease as every worker has one."""

    def __init__(self, parts: Parts, lease: timedelta) -> None:
        self._parts = parts
        self._lease = lease
        self._arrivals: dict[Mxc, tuple[Arrival, asyncio.Task[None]]] = {}
        self._shown: dict[Mxc, Arrival] = {}
        self._held: dict[Mxc, Job] = {}
        self._failures: dict[Mxc, _Failures] = {}

    def want(self, mxc: Mxc) -> Arrival | None:
        """The media on its way, the same for all who ask meanwhile; it comes whether they wait or
        not. None: it failed just now, and is left alone for a while.

        Raises LimitExceeded where too much is on its way.
        """
        if shown := self._shown.get(mxc):
            return shown
        if found := self._arrivals.get(mxc):
            return found[0]
        failures = self._failures.get(mxc)
        if failures and time.monotonic() < failures.spared_until:
            return None
        if len(self._arrivals) >= MOST_AT_ONCE:
            raise LimitExceeded("too many media are being fetched: try again soon", 1.0)
        arrival = Arrival(self._parts.store)
        task = asyncio.create_task(self._bring(mxc, arrival))
        self._arrivals[mxc] = arrival, task
        task.add_done_callback(partial(self._ended, mxc))
        return arrival

    @contextmanager
    def shown(self, mxc: Mxc) -> Iterator[Arrival]:
        """For what the worker of this process fetches: who asks meanwhile gets it as it comes.

        The arrival is to be ended when it is archived; otherwise it did not come.
        """
        arrival = self._shown[mxc] = Arrival(self._parts.store)
        try:
            yield arrival
        finally:
            if self._shown.get(mxc) is arrival:  # not claimed anew meanwhile
                del self._shown[mxc]
            if not arrival.archived:
                arrival.end()

    async def close(self) -> None:
        """Breaks off what is under way, and gives it back to the queue."""
        tasks = [task for _, task in self._arrivals.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        held, self._held = list(self._held.values()), {}
        if held:
            await give_back(self._parts.pool, held)

    def held(self) -> list[Job]:
        """The claims of now."""
        return list(self._held.values())

    def drop(self, lost: Iterable[Job]) -> None:
        """These claims are lost: whatever comes of them changes nothing."""
        for job in lost:
            if self._held.get(job.mxc) == job:  # not done meanwhile
                del self._held[job.mxc]
                _, task = self._arrivals[job.mxc]
                task.cancel()

    async def _bring(self, mxc: Mxc, arrival: Arrival) -> None:
        try:
            job = await self._claim(mxc)
            if job is None:
                arrival.end(archived=await self._brought_elsewhere(mxc))
            else:
                await self._archive(job, arrival)
        except DATABASE_AWAY as error:
            self._held.pop(mxc, None)  # the lease runs out
            log.warning("the database does not answer", mxc=str(mxc), reason=str(error))

    async def _claim(self, mxc: Mxc) -> Job | None:
        async with self._parts.pool.acquire() as conn:
            job = await queue.claim_this(conn, mxc, self._lease)
        if job is not None:
            self._held[mxc] = job
        return job

    async def _brought_elsewhere(self, mxc: Mxc) -> bool:
        """Waits for whoever has the lease. Notified by nobody, because that is rare."""
        deadline = time.monotonic() + LOOK_FOR_SECONDS
        while True:
            async with self._parts.pool.acquire() as conn:
                found = await queue.standing(conn, mxc)
            if found is None or not found.leased or time.monotonic() > deadline:
                return found is not None and found.state == State.READY
            await asyncio.sleep(LOOK_SECONDS)

    async def _archive(self, job: Job, arrival: Arrival) -> None:
        started = time.perf_counter()
        try:
            archived = await archive_one(job, self._parts, arrival)
        except ArchiverError as error:
            self._failed(job.mxc)
            await did_not_work(job, error, self._parts)
        except asyncpg.ForeignKeyViolationError:
            # The blob was deleted between our look and our commit.
            await give_back(self._parts.pool, [job])
        else:
            worked(job, archived, time.perf_counter() - started)
            if archived.completed.held:
                self._failures.pop(job.mxc, None)
                if not archived.completed.refused:
                    arrival.end(archived.blob)
        self._held.pop(job.mxc, None)

    def _failed(self, mxc: Mxc) -> None:
        before = self._failures.pop(mxc, None)
        times = before.times + 1 if before else 1
        wait = min(SPARE_SECONDS * 2 ** min(times - 1, 10), SPARE_AT_MOST)
        self._failures[mxc] = _Failures(times, time.monotonic() + wait)
        if len(self._failures) > MOST_REMEMBERED:
            del self._failures[next(iter(self._failures))]

    def _ended(self, mxc: Mxc, task: asyncio.Task[None]) -> None:
        arrival, _ = self._arrivals.pop(mxc)
        if not arrival.archived:
            arrival.end()
        if not task.cancelled() and (error := task.exception()):
            # Nobody foresaw it: the lease runs out, and grows each time it does.
            self._held.pop(mxc, None)
            log.error("archiving died", mxc=str(mxc), exc_info=error)


@asynccontextmanager
async def open_demand(parts: Parts, lease: timedelta) -> AsyncIterator[Demand]:
    """A `Demand` whose leases are kept until the end of the block, and then given back."""
    demand = Demand(parts, lease)
    keeping = asyncio.create_task(keep_leases(parts.pool, lease, demand.held, demand.drop))
    try:
        yield demand
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await demand.close()
