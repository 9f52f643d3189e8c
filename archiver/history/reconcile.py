"""What was never pushed is found by comparing rooms with the homeserver's history.

Synapse loses pushes that wait in its memory when it is restarted (element-hq/synapse#11637), and
says nothing of it. So whenever pushes may be missing a *doubt* is raised, and every room has its
turn, the active ones first; between doubts active rooms are compared often and silent ones
once a day.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

import structlog

from archiver import metrics
from archiver.capture.policy import ROOM_EXCLUDED, CapturePolicy
from archiver.catalogue import moments, rooms
from archiver.catalogue.rooms import Claim
from archiver.db.pool import DATABASE_AWAY, Pool
from archiver.db.turns import woken
from archiver.errors import ArchiverError, HomeserverUnavailable, RateLimited, RoomUnreadable
from archiver.history.pace import Pace
from archiver.history.pages import ClaimLost
from archiver.history.visit import LEASE, Visitor
from archiver.matrix.history import NOTHING_TO_READ, History

POLL_SECONDS = 1.0
GRACE = partial(asyncio.sleep, 2.0)
# A tenth of the time at most the homeserver is busy with us.
REST = 9.0
LONGEST_PAUSE = 60.0
GIVE_BACK_SECONDS = 5.0

# Nothing was learnt of the room, so it keeps its turn.
AWAY = (HomeserverUnavailable, RateLimited)

LIST_ROOMS_EVERY = timedelta(hours=1)
ASK_FOR_RIGHTS_EVERY = timedelta(minutes=1)
LOOK_BACK_EVERY = timedelta(hours=6)
UNREADABLE_AGAIN = timedelta(days=1)
FIRST_SILENCE, LONGEST_SILENCE = timedelta(minutes=10), timedelta(hours=6)

log = structlog.get_logger(__name__)


class Reconciler:
    """Compares one room after the other. Several processes share the rooms.

    `every`: how often an active room has its turn. `grace`: see `Visitor`. `rest`: how much longer
    than a request took it waits before the next.
    """

    def __init__(
        self,
        pool: Pool,
        history: History,
        policy: CapturePolicy,
        every: timedelta,
        *,
        grace: Callable[[], Awaitable[object]] = GRACE,
        rest: float = REST,
    ) -> None:
        self._pool = pool
        self._history = history
        self._policy = policy
        self._every = every
        self._pace = Pace(rest)
        self._visitor = Visitor(pool, history, self._pace, policy, every, grace)
        self._doubts: list[str] = []
        self._wake = asyncio.Event()
        self._listed_at = float("-inf")
        self._admin: bool | None = None
        self._outages = 0

    def restarted(self) -> None:
        """The homeserver was restarted: what waited in its memory may be lost."""
        self._raise("the homeserver was restarted")

    async def run(self) -> None:
        """Compares until cancelled. The start is a doubt: we may have been away for long."""
        self._raise("the archive was started")
        while True:
            self._wake.clear()
            try:
                busy = await self._turn()
                self._outages = 0
            except (ArchiverError, *DATABASE_AWAY) as error:
                await self._pause(error)
                continue
            if not busy:
                await woken(self._wake, POLL_SECONDS)

    async def compare(self, room_ids: Collection[str] | None) -> datetime:
        """Compares these rooms, or all, with whoever else does; returns when it began.

        Raises what `History` and asyncpg do.
        """
        began = await self.doubt("somebody asked for it", room_ids)
        while True:
            if await self.visit_next(room_ids):
                continue
            async with self._pool.acquire() as conn:
                if not await rooms.still_open(conn, began, room_ids):
                    return began
            await asyncio.sleep(POLL_SECONDS)

    async def doubt(self, why: str, room_ids: Collection[str] | None = None) -> datetime:
        """From now on these rooms, or all, count as incomplete until they are compared."""
        async with self._pool.acquire() as conn, conn.transaction():
            began = await rooms.ask(conn, room_ids)
        if room_ids is None:
            log.info("pushes may be missing, every room is compared", why=why)
            await self._list_rooms()
        return began

    async def visit_next(self, room_ids: Collection[str] | None = None) -> bool:
        """Compares the next room that is due, of these or of all. False: there is none."""
        await self._pace.rested()
        async with self._pool.acquire() as conn:
            claim = await rooms.claim(conn, LEASE, LOOK_BACK_EVERY, room_ids)
            if claim is None:
                if await rooms.end_pass(conn):
                    log.info("every room that can be read is compared")
                return False
        try:
            await self._visit(claim)
        except (*AWAY, *DATABASE_AWAY, asyncio.CancelledError):
            await self._give_back(claim)
            raise
        return True

    async def _turn(self) -> bool:
        if self._doubts:
            doubts, self._doubts = self._doubts, []
            try:
                await self.doubt(doubts[0])
            except (ArchiverError, *DATABASE_AWAY):
                self._doubts += doubts
                raise
        elif self._listing_is_due():
            await self._list_rooms()
        busy = await self.visit_next()
        if not busy and await self._is_silent():
            self._raise("nothing was pushed for a while")
        return busy

    async def _visit(self, claim: Claim) -> None:
        if self._policy.leaves_out_room(claim.room_id):
            await self._put_off(claim, ROOM_EXCLUDED, UNREADABLE_AGAIN)
            return
        try:
            found = await self._visitor.compare(claim)
        except ClaimLost:
            return
        except AWAY:
            raise
        except RoomUnreadable as error:
            metrics.ROOM_VISITS.labels("unreadable").inc()
            log.debug("a room cannot be read", room_id=claim.room_id, reason=str(error))
            await self._put_off(claim, str(error), UNREADABLE_AGAIN)
        except ArchiverError as error:
            metrics.ROOM_VISITS.labels("failed").inc()
            log.warning("a room was not compared", room_id=claim.room_id, reason=str(error))
            await self._put_off(claim, str(error), self._every)
        else:
            metrics.ROOM_VISITS.labels("new" if found else "same").inc()

    async def _list_rooms(self) -> None:
        room_ids = await self._pace.ask(self._history.rooms)
        self._listed_at = time.monotonic()
        async with self._pool.acquire() as conn:
            await rooms.see(conn, room_ids)
        admin = await self._history.is_admin()
        if not admin and not room_ids and self._admin is not False:
            log.warning(NOTHING_TO_READ)
        if admin and self._admin is False:
            self._raise("the bot is an administrator now")
        self._admin = admin

    def _listing_is_due(self) -> bool:
        every = ASK_FOR_RIGHTS_EVERY if self._admin is False else LIST_ROOMS_EVERY
        return time.monotonic() - self._listed_at > every.total_seconds()

    async def _is_silent(self) -> bool:
        async with self._pool.acquire() as conn:
            return await moments.is_silent(conn, FIRST_SILENCE, LONGEST_SILENCE)

    async def _put_off(self, claim: Claim, reason: str, wait: timedelta) -> None:
        async with self._pool.acquire() as conn:
            await rooms.put_off(conn, claim, reason, wait)

    async def _give_back(self, claim: Claim) -> None:
        with suppress(*DATABASE_AWAY):
            async with asyncio.timeout(GIVE_BACK_SECONDS), self._pool.acquire() as conn:
                await rooms.release(conn, claim)

    async def _pause(self, error: BaseException) -> None:
        """Nobody can be reached, or the homeserver wants a rest."""
        self._outages += 1
        seconds = min(2.0 ** min(self._outages - 1, 6), LONGEST_PAUSE)
        if isinstance(error, RateLimited):
            seconds = max(seconds, error.retry_after)
        log.warning("comparing rooms pauses", reason=str(error), seconds=seconds)
        await asyncio.sleep(seconds)

    def _raise(self, why: str) -> None:
        self._doubts.append(why)
        self._wake.set()
