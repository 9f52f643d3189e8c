"""What becomes of a claim when the work on it is over, and how it is kept until then.

Shared by the worker and by what is fetched because somebody asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta

import structlog

from archiver import metrics
from archiver.catalogue import budget, queue
from archiver.catalogue.queue import Job
from archiver.db.pool import DATABASE_AWAY, Pool
from archiver.errors import ArchiverError, Excluded, RateLimited
from archiver.fetch.archive import Archived, Parts
from archiver.fetch.retry import next_try
from archiver.model import State

GIVE_BACK_SECONDS = 5.0
# A media that was refused more often for the homeserver's limit is over that limit by itself (as
# Synapse has it, 50 MiB come within so many tries): history does not wait for it any more.
LIMITED_TRIES = 100

log = structlog.get_logger(__name__)


def worked(job: Job, archived: Archived, seconds: float) -> None:
    """The media is archived: counts it. `seconds`: what it took from claim to commit."""
    log.debug("archived", mxc=str(job.mxc), size=archived.blob.size)
    if not archived.completed.held:
        return
    metrics.ARCHIVE_SECONDS.observe(seconds)
    state = State.QUARANTINED if archived.completed.refused else State.READY
    metrics.MEDIA_SETTLED.labels(state).inc()
    if archived.completed.new_blob:
        metrics.BYTES_ARCHIVED.labels(archived.blob.place).inc(archived.blob.size)
    else:
        metrics.MEDIA_DEDUPLICATED.inc()


async def did_not_work(job: Job, error: ArchiverError, parts: Parts) -> None:
    """Lets the media wait for another try, or ends it. Raises DATABASE_AWAY."""
    metrics.ARCHIVE_ERRORS.labels(type(error).__name__).inc()
    age = datetime.now(UTC) - job.created_at
    delay = next_try(error, job.attempts, age)
    if delay is not None:
        await _put_off(job, error, delay, parts)
        log.info("archiving waits", mxc=str(job.mxc), reason=str(error), delay=delay)
    else:
        state = State.EXCLUDED if isinstance(error, Excluded) else State.FAILED
        await _give_up(job, error, state, parts)
        metrics.MEDIA_SETTLED.labels(state).inc()
        log.warning("not archived", mxc=str(job.mxc), state=state, reason=str(error))


async def give_back(pool: Pool, jobs: Iterable[Job]) -> None:
    """Lets others have these media at once; where the database is away their leases run out."""
    try:
        async with asyncio.timeout(GIVE_BACK_SECONDS), pool.acquire() as conn:
            await queue.release(conn, jobs)
    except DATABASE_AWAY as error:
        log.warning("claims not given back, their leases run out", reason=str(error))


async def keep_leases(
    pool: Pool,
    lease: timedelta,
    claims: Callable[[], Collection[Job]],
    drop: Callable[[Iterable[Job]], None],
) -> None:
    """Renews the leases on `claims` until cancelled, and has those dropped that are lost."""
    while True:
        await asyncio.sleep(lease.total_seconds() / 3)
        held = claims()
        if not held:
            continue
        try:
            async with pool.acquire() as conn:
                kept = await queue.renew(conn, held, lease)
        except DATABASE_AWAY as error:
            log.warning("leases not renewed", reason=str(error))
            continue
        drop(job for job in held if job.mxc not in kept)


async def _put_off(job: Job, error: ArchiverError, delay: timedelta, parts: Parts) -> None:
    rate = parts.remote_rate
    async with parts.pool.acquire() as conn, conn.transaction():
        if not await queue.postpone(conn, job, delay, str(error)):
            return
        await budget.correct(conn, job, rate, 0, done=False)
        if rate and isinstance(error, RateLimited) and job.attempts <= LIMITED_TRIES:
            # Longer than `delay`, so that whoever was refused is the first to try again.
            await budget.step_back(conn, job, rate, 2 * delay)


async def _give_up(job: Job, error: ArchiverError, state: State, parts: Parts) -> None:
    async with parts.pool.acquire() as conn, conn.transaction():
        if await queue.settle(conn, job, state, str(error)):
            await budget.correct(conn, job, parts.remote_rate, 0)
