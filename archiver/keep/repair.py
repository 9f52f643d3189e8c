"""Mends damaged blobs: their bytes are got again, as long as somebody still has them: what a move
left in another store first, then the homeserver.

Only bytes that hash to the blob's name are taken; encrypted ones are bytes like any others. What
was made of other blobs is not fetched but made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from archiver import metrics
from archiver.catalogue import custody, garbage, repairs
from archiver.catalogue.repairs import Patient
from archiver.db.turns import outliving, woken
from archiver.errors import (
    ArchiverError,
    BodyMismatch,
    HomeserverUnavailable,
    RateLimited,
    StoreUnavailable,
)
from archiver.keep.copying import copied
from archiver.keep.quarantine import OURSELVES
from archiver.keep.verify import Verdict, verdict_of
from archiver.model import Blob, Mxc, Place
from archiver.store.base import Body
from archiver.store.spool import in_thread

if TYPE_CHECKING:
    from archiver.db.pool import Pool
    from archiver.store.hybrid import HybridStore
    from archiver.store.spool import Spool

POLL_SECONDS = 30.0
OUTAGES = (HomeserverUnavailable, RateLimited, StoreUnavailable)  # no media's own trouble
LEASE = timedelta(hours=1)
FIRST, LONGEST = timedelta(minutes=1), timedelta(hours=12)

log = structlog.get_logger(__name__)


# Gets a media's bytes again, hashed, and no more than so many; raises Retryable and Permanent.
Fetch = Callable[[Mxc, int], AbstractAsyncContextManager[Body]]


class Repairer:
    """Any number of them may share the worklist."""

    def __init__(self, pool: Pool, store: HybridStore, spool: Spool, fetch: Fetch) -> None:
        self._pool = pool
        self._store = store
        self._spool = spool
        self._fetch = fetch
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be damage that nobody has tried to mend."""
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            self._wake.clear()
            with outliving("repair", *OUTAGES):
                while await self.work():
                    pass
            await woken(self._wake, POLL_SECONDS)

    async def work(self) -> bool:
        """Tries one damaged blob; False when none is due. Raises what is no blob's own trouble:
        HomeserverUnavailable, RateLimited, StoreUnavailable, and what asyncpg does."""
        async with self._pool.acquire() as conn:
            patient = await repairs.claim(conn, LEASE)
        if patient is None:
            return False
        try:
            reason = await self._treat(patient.blob)
        except OUTAGES:
            async with self._pool.acquire() as conn:
                await repairs.give_back(conn, patient)
            raise
        if reason:
            await self._put_off(patient, reason)
        return True

    async def _treat(self, blob: Blob) -> str | None:
        """None when there is nothing left to do, else why it is still damaged."""
        if await self._is_right(blob):
            await self._mended(blob, "itself")
            return None
        if source := await self._from_elsewhere(blob):
            return await self._outcome(blob, source)
        async with self._pool.acquire() as conn:
            media = await repairs.media_of(conn, blob.sha256)
        if not media:
            return await self._drop_picture(blob)
        reasons = []
        for mxc in media:
            try:
                async with self._fetch(mxc, blob.size) as body:
                    if body.sha256 != blob.sha256:
                        raise BodyMismatch("the homeserver has other bytes by now")
                    await self._put(blob, body)
            except OUTAGES:
                raise
            except ArchiverError as error:
                reasons.append(f"{mxc}: {error}")
            else:
                return await self._outcome(blob, str(mxc))
        return "; ".join(reasons)

    async def _from_elsewhere(self, blob: Blob) -> str | None:
        """The name of the store whose copy was taken, if one has a right one."""
        for name, store in self._store.elsewhere(blob):
            try:
                async with copied(self._spool, blob, store.read(blob.sha256)) as body:
                    if body is None:
                        continue
                    await self._put(blob, body)
            except StoreUnavailable as error:
                log.info("a store was not looked into for a repair", store=name, reason=str(error))
            else:
                return name
        return None

    async def _outcome(self, blob: Blob, source: str) -> str | None:
        """As `_treat`, once its bytes were stored anew."""
        if not await self._is_right(blob):
            return "its bytes were stored anew, and are not right even so: see the disk"
        await self._mended(blob, source)
        return None

    async def _is_right(self, blob: Blob) -> bool:
        verdict = await verdict_of(self._store, blob)
        if isinstance(verdict, StoreUnavailable):
            raise verdict
        return verdict is Verdict.RIGHT

    async def _put(self, blob: Blob, body: Body) -> None:
        if blob.place is Place.OBJECT:
            await self._store.replace_object(body)
            return
        data = body.data
        if data is None:
            data = await in_thread(None, body.read_at, 0, body.size)
        async with self._pool.acquire() as conn:
            await repairs.put_inline(conn, blob.sha256, data)

    async def _mended(self, blob: Blob, source: str) -> None:
        """`source`: "itself" where it came right so, like a disk that is mounted again."""
        name = blob.sha256.hex()
        async with self._pool.acquire() as conn, conn.transaction():
            if await repairs.mend(conn, blob):
                await custody.note(conn, *OURSELVES, "repaired", name, source=source)
                metrics.REPAIRED.inc()
                log.info("a damaged blob was repaired", sha256=name, source=source)
            elif blob.place is Place.OBJECT and not await repairs.is_there(conn, blob.sha256):
                await garbage.discard(conn, blob.sha256)

    async def _drop_picture(self, blob: Blob) -> str | None:
        async with self._pool.acquire() as conn, conn.transaction():
            if not await repairs.drop_picture(conn, blob.sha256):
                return "no media has it; a thumbnail is made again a day after it was made"
            if blob.place is Place.OBJECT:
                await self._store.delete_object(blob.sha256)
            name = blob.sha256.hex()
            await custody.note(conn, *OURSELVES, "repaired", name, dropped="a thumbnail")
        metrics.REPAIRED.inc()
        return None

    async def _put_off(self, patient: Patient, reason: str) -> None:
        delay = min(FIRST * 2 ** min(patient.attempts - 1, 20), LONGEST)
        name = patient.blob.sha256.hex()
        log.warning("a damaged blob could not be repaired", sha256=name, reason=reason)
        async with self._pool.acquire() as conn:
            await repairs.put_off(conn, patient, delay, reason)
