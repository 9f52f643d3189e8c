"""Shows archived bytes to a scanner, beside everything else; what is infected is quarantined.

Nobody waits for it: media is served before it was looked at. A scanner that is away, hangs or
breaks makes nothing infected: it is asked again later.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import structlog

from archiver import metrics
from archiver.catalogue import custody, scans
from archiver.catalogue.scans import Claimed, Found
from archiver.catalogue.targets import Target
from archiver.db.turns import outliving
from archiver.errors import BlobMissing, StoreUnavailable
from archiver.keep.quarantine import OURSELVES, quarantine
from archiver.scan.base import Outcome, ScanFailed, Scanner, ScannerAway, Verdict
from archiver.units import format_size

if TYPE_CHECKING:
    from archiver.db.pool import Pool
    from archiver.store.hybrid import HybridStore

POLL_SECONDS = 5.0
AWAY_SECONDS = 15.0
ENGINE_SECONDS = 60.0  # so long the scanner is not asked again which signatures it has
FIRST, LONGEST = timedelta(minutes=1), timedelta(hours=12)
ENCRYPTED = "it is encrypted, and only its readers have the key"

log = structlog.get_logger(__name__)


class Scanning:
    """Any number of them may share the worklist, in any number of processes."""

    def __init__(
        self,
        pool: Pool,
        store: HybridStore,
        scanner: Scanner | None,
        *,
        max_size: int,
        timeout: timedelta,
        concurrency: int,
        tell: bool = False,
    ) -> None:
        """`timeout` is the scanner's own, for one blob. Without a scanner nothing is scanned. With
        `tell` the homeserver is told of what is infected."""
        self._pool = pool
        self._store = store
        self._scanner = scanner
        self._max_size = max_size
        self._lease = 2 * timeout + timedelta(minutes=1)
        self._concurrency = concurrency
        self._tell = tell
        self._engine = ("", -math.inf)

    async def run(self) -> None:
        """Works until cancelled; without a scanner, only until that is known to everybody."""
        await self._switch()
        if self._scanner is None:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._schedule())
            for _ in range(self._concurrency):
                group.create_task(self._work_on(self._scanner))

    async def switch(self) -> None:
        """Lets what is archived from now on be scanned, or not, as there is a scanner or not."""
        async with self._pool.acquire() as conn:
            await (scans.switch_off(conn) if self._scanner is None else scans.switch_on(conn))

    async def schedule(self) -> bool:
        """Makes some of what was archived before due; False where there is nothing to do now."""
        async with self._pool.acquire() as conn, conn.transaction():
            return await scans.make_due(conn)

    async def work(self, scanner: Scanner) -> bool:
        """Has one blob scanned; False when none is due. Raises what is no blob's own trouble:
        ScannerAway, StoreUnavailable, and what asyncpg does."""
        async with self._pool.acquire() as conn:
            claimed = await scans.claim(conn, self._lease)
        if claimed is None:
            return False
        if claimed.blob.size > self._max_size:
            refusal = f"it is larger than {format_size(self._max_size)} (scan.max_size)"
            await self._settle(claimed, Found(Outcome.UNSCANNED, refusal, None))
            return True
        try:
            verdict, engine = await self._ask(scanner, claimed)
        except (ScanFailed, BlobMissing) as error:
            await self._put_off(claimed, str(error))
        except ScannerAway as error:
            await self._put_off(claimed, str(error))
            raise
        except StoreUnavailable:
            async with self._pool.acquire() as conn:
                await scans.give_back(conn, claimed)
            raise
        else:
            await self._take(claimed, verdict, engine)
        return True

    async def _switch(self) -> None:
        while True:
            with outliving("scanning", asyncpg.LockNotAvailableError):
                return await self.switch()
            await asyncio.sleep(AWAY_SECONDS)

    async def _schedule(self) -> None:
        while True:
            with outliving("scanning"):
                while await self.schedule():
                    pass
            await asyncio.sleep(POLL_SECONDS)

    async def _work_on(self, scanner: Scanner) -> None:
        while True:
            pause = AWAY_SECONDS
            with outliving("scanning", ScannerAway, StoreUnavailable):
                while await self.work(scanner):
                    pass
                pause = POLL_SECONDS
            await asyncio.sleep(pause)

    async def _ask(self, scanner: Scanner, claimed: Claimed) -> tuple[Verdict, str]:
        """Asked before the bytes are: signatures that came since are not said to have looked."""
        engine, until = self._engine
        if time.monotonic() >= until:
            engine = await scanner.version()
            self._engine = engine, time.monotonic() + ENGINE_SECONDS
        async with aclosing(self._store.read(claimed.blob)) as chunks:
            return await scanner.scan(chunks), engine

    async def _take(self, claimed: Claimed, verdict: Verdict, engine: str) -> None:
        outcome, reason = verdict
        if outcome is Outcome.INFECTED:
            await self._quarantine(claimed, str(reason))
        elif outcome is Outcome.CLEAN and await self._is_encrypted(claimed):
            outcome, reason = Outcome.UNSCANNED, ENCRYPTED
        await self._settle(claimed, Found(outcome, reason, engine))

    async def _is_encrypted(self, claimed: Claimed) -> bool:
        """Asked after it was looked at: a sender who only says so would hide it from the scanner,
        and could post it in the clear later."""
        async with self._pool.acquire() as conn:
            return await scans.is_encrypted(conn, claimed.blob.sha256)

    async def _quarantine(self, claimed: Claimed, signature: str) -> None:
        """Before the blob is said to be infected, so that a crash in between repeats it. What
        somebody released in spite of this signature stays so."""
        async with self._pool.acquire() as conn:
            if await scans.is_released(conn, claimed, signature):
                return
        target = Target("hash", f"sha256:{claimed.blob.sha256.hex()}")
        why = f"the scanner found {signature}"
        async for _ in quarantine(self._pool, target, why, OURSELVES, tell=self._tell):
            pass

    async def _settle(self, claimed: Claimed, found: Found) -> None:
        """Custody tells of what was infected, or is not any more."""
        name = f"sha256:{claimed.blob.sha256.hex()}"
        async with self._pool.acquire() as conn, conn.transaction():
            if not await scans.settle(conn, claimed, found):
                return
            if Outcome.INFECTED in (found.scan, claimed.scan):
                told = found.scan if found.reason is None else f"{found.scan}: {found.reason}"
                await custody.note(conn, *OURSELVES, "scan", name, found=told, engine=found.engine)
        metrics.SCANNED.labels(found.scan).inc()
        if found.scan == Outcome.INFECTED:
            log.warning("infected bytes are in quarantine", blob=name, found=found.reason)

    async def _put_off(self, claimed: Claimed, reason: str) -> None:
        delay = min(FIRST * 2 ** min(claimed.attempts - 1, 20), LONGEST)
        async with self._pool.acquire() as conn:
            await scans.put_off(conn, claimed, delay, reason)
        metrics.SCANNED.labels(Outcome.UNSCANNED).inc()
        log.info("bytes were not scanned", sha256=claimed.blob.sha256.hex(), reason=reason)
