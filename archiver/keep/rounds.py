"""Goes through all blobs and hashes them anew, slowly and for ever, so that damage is found while
there is still somebody who has the bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import structlog

from archiver.catalogue import variants, verification
from archiver.db.turns import outliving, woken
from archiver.errors import StoreUnavailable
from archiver.keep.quarantine import OURSELVES
from archiver.keep.verify import READERS, Verifier

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool
    from archiver.model import Blob
    from archiver.store.hybrid import HybridStore

PAUSE_SECONDS = 60.0
BUSY_SECONDS = 5.0
MUCH_DUE = 100  # media that are to be fetched come first
ANSWERS_WITHIN = 60.0  # seconds
LEAST = 16 * 1024  # bytes that a blob counts as: a small one costs more than its bytes

LOCK = 0x6D6D61_09  # one of all processes verifies
TRY_LOCK = "SELECT pg_try_advisory_lock($1)"
UNLOCK = "SELECT pg_advisory_unlock($1)"

log = structlog.get_logger(__name__)


class Rounds:
    """Verifies what was not verified for `every`, at `rate` bytes a second.

    One of all processes does, whichever holds the lock; a round takes hours, so it is held by a
    connection that is not the pool's. A round whose connection breaks ends, and the next one goes
    on where it was.
    """

    def __init__(
        self, dsn: str, pool: Pool, store: HybridStore, rate: int, every: timedelta
    ) -> None:
        self._dsn = dsn
        self._pool = pool
        self._verifier = Verifier(pool, store, OURSELVES, self._pace)
        self._rate = rate
        self._every = every
        self._free_at = 0.0
        self._lost = asyncio.Event()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            with outliving("verification", StoreUnavailable):
                await self.once()
            await asyncio.sleep(PAUSE_SECONDS)

    async def once(self) -> None:
        """All that is due, unless another process is at it. Raises StoreUnavailable, and what
        asyncpg does."""
        conn = await asyncpg.connect(self._dsn, command_timeout=ANSWERS_WITHIN)
        self._lost = lost = asyncio.Event()
        conn.add_termination_listener(lambda _conn: lost.set())
        try:
            if await conn.fetchval(TRY_LOCK, LOCK):
                await self._all(conn)
                await conn.execute(UNLOCK, LOCK)
        finally:
            conn.terminate()  # and with it the lock, a moment later

    async def _all(self, conn: Connection) -> None:
        async with aclosing(verification.pages(self._pool, self._every)) as pages:
            async for page in pages:
                for start in range(0, len(page), READERS):
                    await _until_idle(conn)
                    await self._verify(page[start : start + READERS])

    async def _verify(self, blobs: Sequence[Blob]) -> None:
        checked = await self._verifier.check(blobs)
        for found in checked.findings:
            log.error("bytes are damaged", sha256=found.sha256.hex(), found=str(found.verdict))
        await self._pace(sum(max(0, LEAST - blob.size) for blob in blobs))

    async def _pace(self, size: int) -> None:
        """Returns when so many bytes more are within the rate; who asks later waits longer.

        Raises asyncpg.InterfaceError once the lock is lost, and another process may have it.
        """
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + size / self._rate
        await woken(self._lost, self._free_at - now)
        if self._lost.is_set():
            raise asyncpg.InterfaceError("the connection that holds the round's lock is closed")


async def _until_idle(conn: Connection) -> None:
    busy = await variants.is_busy(conn, MUCH_DUE)
    while busy:
        await asyncio.sleep(BUSY_SECONDS)
        busy = await variants.is_busy(conn, MUCH_DUE)
