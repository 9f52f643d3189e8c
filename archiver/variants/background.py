"""Makes the standard sizes of what is new before anybody asks, when nothing is more urgent."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
import structlog

from archiver import metrics
from archiver.catalogue import variants
from archiver.catalogue.variants import PICTURES, Job
from archiver.db.pool import DATABASE_AWAY, Pool
from archiver.errors import (
    BlobMissing,
    CannotRender,
    LimitExceeded,
    OperationError,
    RenderingBroke,
    StoreUnavailable,
    TooLargeToRender,
)
from archiver.imaging.recipe import STANDARD, Plan, plan
from archiver.imaging.renderer import Source
from archiver.imaging.wire import Rendered
from archiver.model import Blob, Facts
from archiver.variants.maker import NO_FILMS, Maker, can_films, check_kind, reason_of
from archiver.variants.recipes import name_of

POLL_SECONDS = 2.0
LEASE = timedelta(minutes=10)  # a slow store may take some to give a film
TRIES = 3
AFTER_OUTAGE = timedelta(minutes=1)
AFTER_BREAKAGE = timedelta(minutes=5)
AFTER_DAMAGE = timedelta(days=1)  # it may be repaired
# While so many media are due, there is but one picture every POLL_SECONDS.
MUCH_DUE = 100
NO_COVER = "there is neither a film nor a cover in this"
GIVE_BACK_SECONDS = 5.0
NEVER_ENDED = f"its pictures were begun {TRIES} times and never finished"

log = structlog.get_logger(__name__)


class Background:
    """Any number of them may work at once, each on one blob at a time."""

    def __init__(self, pool: Pool, maker: Maker) -> None:
        self._pool = pool
        self._maker = maker

    async def run(self) -> None:
        """Works until cancelled, and then gives back what it is at."""
        retried = not can_films()
        while True:
            more = False
            try:
                if not retried:
                    async with self._pool.acquire() as conn:
                        await variants.retry(conn, NO_FILMS)
                    retried = True
                job, more = await self._claimed()
                if job:
                    await self._guarded(job)
            except DATABASE_AWAY as error:
                log.warning("pictures wait for the database", reason=str(error))
                more = False
            if not more:
                await asyncio.sleep(POLL_SECONDS)

    async def _claimed(self) -> tuple[Job | None, bool]:
        """As `_claim`, which is not interrupted: a claim that nobody knows of would last."""
        claiming = asyncio.create_task(self._claim())
        try:
            await asyncio.wait([claiming])
        except asyncio.CancelledError:
            await asyncio.wait([claiming], timeout=GIVE_BACK_SECONDS)
            if not claiming.done():
                claiming.cancel()
            elif claiming.exception() is None and (job := claiming.result()[0]):
                await self._give_back(job)
            raise
        return claiming.result()

    async def _claim(self) -> tuple[Job | None, bool]:
        """A blob, and whether to go on at once after it."""
        async with self._pool.acquire() as conn:
            job = await variants.claim(conn, LEASE)
            return job, job is not None and not await variants.is_busy(conn, MUCH_DUE)

    async def _guarded(self, job: Job) -> None:
        """What nobody foresaw ends this try, and no more; the lease runs out."""
        task = asyncio.create_task(self._work(job))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            await self._give_back(job)
            raise
        if error := task.exception():
            if isinstance(error, DATABASE_AWAY):
                raise error
            log.error("making pictures died", blob=job.blob.sha256.hex(), exc_info=error)

    async def _work(self, job: Job) -> None:
        if job.attempts > TRIES:
            await self._give_up(job, NEVER_ENDED)
            return
        try:
            facts, reason = await self._make_all(job.blob)
        except RenderingBroke as error:
            if job.attempts < TRIES:
                await self._postpone(job, AFTER_BREAKAGE, str(error), counts=True)
            else:
                await self._give_up(job, str(error))
        except (CannotRender, TooLargeToRender) as error:
            await self._give_up(job, reason_of(error))
        except BlobMissing as error:
            metrics.DAMAGED.inc()
            log.error("bytes are missing", reason=str(error))
            await self._postpone(job, AFTER_DAMAGE, str(error), counts=False)
        except (StoreUnavailable, LimitExceeded, OperationError) as error:
            log.warning("pictures wait", reason=str(error))
            await self._postpone(job, AFTER_OUTAGE, str(error), counts=False)
        else:
            async with self._pool.acquire() as conn:
                processing = None if reason else "ready"
                await variants.settle(conn, job, processing, facts, reason)

    async def _make_all(self, blob: Blob) -> tuple[Facts, str | None]:
        """All standard sizes that are not there yet. What was learned about the blob, and why it
        has no picture if that is in order."""
        check_kind(blob)
        async with self._maker.opened(blob) as source:
            if blob.facts.mimetype in PICTURES:
                return await self._picture(blob, source)
            return await self._footage(blob, source)

    async def _picture(self, blob: Blob, source: Source) -> tuple[Facts, None]:
        """A small one is the same in several sizes, and is made once for all of them."""
        probe = await self._maker.renderer.probe(source)
        made: dict[Plan, Rendered] = {}
        there = await self._there(blob)
        for recipe in STANDARD:
            if name_of(recipe) not in there:
                numbers = plan(recipe, probe)
                if numbers not in made:
                    made[numbers] = await self._maker.render(blob, source, recipe)
                await self._maker.keep(blob.sha256, recipe, made[numbers])
        return Facts(None, probe.width, probe.height), None

    async def _footage(self, blob: Blob, source: Source) -> tuple[Facts, str | None]:
        found = await self._maker.renderer.footage(source)
        facts = Facts(None, found.width, found.height, found.duration_ms)
        if found.width is None and not found.has_cover:
            return facts, NO_COVER
        there = await self._there(blob)
        for recipe in STANDARD:
            if name_of(recipe) not in there:
                made = await self._maker.render(blob, source, recipe)
                await self._maker.keep(blob.sha256, recipe, made)
        return facts, None

    async def _there(self, blob: Blob) -> set[str]:
        async with self._pool.acquire() as conn:
            return await variants.recipes(conn, blob.sha256)

    async def _give_up(self, job: Job, reason: str) -> None:
        log.info("no pictures are made", blob=job.blob.sha256.hex(), reason=reason)
        async with self._pool.acquire() as conn:
            await variants.settle(conn, job, "failed", Facts(), reason)

    async def _postpone(self, job: Job, delay: timedelta, reason: str, *, counts: bool) -> None:
        async with self._pool.acquire() as conn:
            await variants.postpone(conn, job, delay, reason, counts=counts)

    async def _give_back(self, job: Job) -> None:
        try:
            await self._postpone(job, timedelta(), "the archiver was stopped", counts=False)
        except (*DATABASE_AWAY, asyncpg.InterfaceError) as error:
            log.warning("a claim is not given back, its lease runs out", reason=str(error))
