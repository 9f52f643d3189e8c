"""Tells the homeserver what is in quarantine, and what is not any more, however long it is away.

The archive's own quarantine never waits for it. Whatever is told twice is the same as told once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from archiver.catalogue import custody, telling
from archiver.db.turns import outliving
from archiver.errors import ArchiverError, FetchFailed, HomeserverUnavailable, RateLimited
from archiver.keep.quarantine import OURSELVES
from archiver.matrix.curtain import AdminRefused

if TYPE_CHECKING:
    from archiver.catalogue.telling import Order
    from archiver.db.pool import Pool
    from archiver.model import Mxc

POLL_SECONDS = 2.0
LONGEST_PAUSE = 300.0
AT_ONCE = 5
LEASE = timedelta(minutes=1)  # longer than so many can take
FIRST, LONGEST = timedelta(minutes=1), timedelta(hours=1)
WHILE_SHARED = timedelta(hours=1)
SHARED = "other media with the same bytes is still in quarantine, and the homeserver hides bytes"
OUTAGES = (AdminRefused, HomeserverUnavailable, RateLimited)  # no media's own trouble

log = structlog.get_logger(__name__)


class Homeserver(Protocol):
    """`matrix.curtain`."""

    def draw(self, mxc: Mxc, *, hidden: bool) -> Awaitable[bool]:
        """Hides a media, or shows it again; False where it does not know it."""


class Teller:
    """Any number of them may share the worklist."""

    def __init__(self, pool: Pool, homeserver: Homeserver) -> None:
        self._pool = pool
        self._homeserver = homeserver
        self._outages = 0

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            pause = POLL_SECONDS
            with outliving("telling the homeserver"):
                try:
                    while await self.work():
                        pass
                except OUTAGES as error:
                    self._outages += 1
                    pause = self._pause(error)
                    told = "the homeserver is told later what is in quarantine"
                    log.warning(told, reason=str(error), seconds=pause)
            await asyncio.sleep(pause)

    async def work(self) -> bool:
        """Tells some of what is due; False when nothing is. Raises what is no media's own trouble:
        AdminRefused, HomeserverUnavailable, RateLimited, and what asyncpg does."""
        async with self._pool.acquire() as conn:
            orders = await telling.claim(conn, AT_ONCE, LEASE)
        if not orders:
            return False
        told: list[Order] = []
        unknown: list[Order] = []
        tried = 0
        try:
            for order in orders:
                tried += 1
                known = await self._tell(order)
                if known is not None:
                    (told if known else unknown).append(order)
        except OUTAGES as error:
            # The one at which it happened goes last, lest it is its own trouble and stops all.
            again = [*orders[tried:], *orders[:tried]]
            await self._done(told, unknown, again, str(error))
            raise
        await self._done(told, unknown)
        return True

    async def _tell(self, order: Order) -> bool | None:
        """True when it was told, False when the homeserver does not know the media, None when it
        waits."""
        if order.shared:
            await self._put_off(order, WHILE_SHARED, SHARED, failed=False)
            return None
        try:
            known = await self._homeserver.draw(order.mxc, hidden=order.hidden)
        except FetchFailed as error:
            delay = min(FIRST * 2 ** min(order.failures, 20), LONGEST)
            told = "the homeserver did not hide or show a media"
            log.warning(told, mxc=str(order.mxc), reason=str(error))
            await self._put_off(order, delay, str(error), failed=True)
            return None
        self._outages = 0
        return known

    async def _put_off(self, order: Order, delay: timedelta, reason: str, *, failed: bool) -> None:
        async with self._pool.acquire() as conn:
            await telling.put_off(conn, order, delay, reason, failed=failed)

    async def _done(
        self,
        told: Sequence[Order],
        unknown: Sequence[Order],
        orders: Sequence[Order] = (),
        reason: str = "",
    ) -> None:
        """One commit. What is left of `orders` is tried again as soon as anything is, and in this
        order."""
        async with self._pool.acquire() as conn, conn.transaction():
            await telling.done(conn, [*told, *unknown])
            for place, order in enumerate(orders):
                delay = timedelta(milliseconds=place - len(orders))
                await telling.put_off(conn, order, delay, reason, failed=False)
            if told or unknown:
                detail = _detail(told, unknown)
                await custody.note(conn, *OURSELVES, "told homeserver", None, **detail)

    def _pause(self, error: ArchiverError) -> float:
        pause: float = min(POLL_SECONDS * 2 ** min(self._outages, 20), LONGEST_PAUSE)
        return max(pause, error.retry_after) if isinstance(error, RateLimited) else pause


def _detail(told: Sequence[Order], unknown: Sequence[Order]) -> dict[str, Any]:
    """For custody."""
    detail = {
        "hidden": [str(order.mxc) for order in told if order.hidden],
        "shown": [str(order.mxc) for order in told if not order.hidden],
        "unknown": [str(order.mxc) for order in unknown],
    }
    return {name: media for name, media in detail.items() if media}
