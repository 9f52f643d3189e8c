"""`capture.on_redaction: delete`: what was redacted goes after a grace period, unless it is held.

First the rows, in one commit, then the bytes: a crash between leaves garbage that is collected
later, never a row without bytes.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from archiver import metrics
from archiver.catalogue import deletion, garbage, locks, moves
from archiver.db.turns import outliving
from archiver.errors import StoreUnavailable
from archiver.model import Place, State
from archiver.store.base import ObjectLocked
from archiver.store.s3 import S3Store

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool
    from archiver.store.base import BlobStore
    from archiver.store.hybrid import HybridStore

POLL_SECONDS = 10.0
AT_ONCE = 100

log = structlog.get_logger(__name__)


class Deletion:
    """Any number of them may work at once. `grace` is `capture.delete_after`, or None while the
    policy deletes nothing: then only what another policy deleted before is tidied up."""

    def __init__(self, pool: Pool, store: HybridStore, grace: timedelta | None) -> None:
        self._pool = pool
        self._store = store
        self._grace = grace

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            with outliving("deletion", StoreUnavailable):
                await self.work()
            await asyncio.sleep(POLL_SECONDS)

    async def work(self) -> None:
        """All that is due now. Raises StoreUnavailable, and what asyncpg does."""
        async with self._pool.acquire() as conn:
            await deletion.revive(conn)
        if self._grace is not None:
            await self._delete(self._grace)
        while await self._collect():
            pass
        while await self._collect_leftover():
            pass

    async def _delete(self, grace: timedelta) -> None:
        async with self._pool.acquire() as conn:
            while media := await deletion.due(conn, grace, AT_ONCE):
                for mxc in media:
                    if await deletion.delete_media(conn, mxc, grace):
                        metrics.MEDIA_SETTLED.labels(State.DELETED).inc()
                        log.info("deleted after its redaction", mxc=str(mxc))
            while await deletion.empty_words(conn, grace, AT_ONCE):
                pass

    async def _collect(self) -> bool:
        """Removes the bytes of one object; a crash or an outage undoes that it was taken."""
        async with self._pool.acquire() as conn, conn.transaction():
            sha256 = await garbage.take(conn)
            if sha256 is None:
                return False
            if not await garbage.is_needed(conn, sha256):
                try:
                    await self._unlock(conn, sha256, self._store.bucket)
                    await self._store.delete_object(sha256)
                except ObjectLocked as error:
                    log.warning("bytes cannot be deleted", reason=str(error))
                    await garbage.discard(conn, sha256)  # to be tried again in a day
            return True

    async def _collect_leftover(self) -> bool:
        """Removes what a move left of one blob, if all of it is where it rests now."""
        former, name = self._store.former, self._store.former_name
        stores = [Place.INLINE, name] if name else [Place.INLINE]
        async with self._pool.acquire() as conn, conn.transaction():
            left = await moves.take(conn, stores)
            if left is None:
                return False
            if former is None or left.store != name:
                return True
            blob = left.blob
            if not blob or blob.place is Place.INLINE or await self._store.has_object(blob):
                try:
                    await self._unlock(conn, left.sha256, former)
                    await former.delete(left.sha256)
                except ObjectLocked as error:
                    log.warning("bytes cannot be deleted", reason=str(error))
                    await moves.leave(conn, [left.sha256], name)
            return True

    async def _unlock(self, conn: Connection, sha256: bytes, store: BlobStore | None) -> None:
        """Takes our own lock off bytes that are to go: nobody holds them, or they were moved."""
        if (
            isinstance(store, S3Store)
            and await locks.is_ours(conn, sha256)
            and await store.unlock(sha256)
        ):
            await locks.forget(conn, sha256)
