"""`capture.on_redaction: delete`: what was redacted goes after a grace period, unless it is held.

First the rows, in one commit, then the bytes: a crash between leaves garbage that is collected
later, never a row without bytes.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import structlog

from archiver import metrics
from archiver.catalogue import deletion, garbage, moves
from archiver.db.pool import DATABASE_AWAY
from archiver.errors import StoreUnavailable
from archiver.model import Place, State

if TYPE_CHECKING:
    from archiver.db.pool import Pool
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
            try:
                await self.work()
            except DATABASE_AWAY as error:
                log.warning("deletion waits for the database", reason=str(error))
            except StoreUnavailable as error:
                log.warning("garbage waits for the object store", reason=str(error))
            except asyncpg.PostgresError as error:
                log.error("deletion failed, and is tried again", exc_info=error)
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
                await self._store.delete_object(sha256)
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
                await former.delete(left.sha256)
            return True
