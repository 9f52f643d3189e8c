"""The control room: what came for the bot is dealt with, in the order in which it came."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import structlog

from archiver.catalogue import inbox
from archiver.catalogue.inbox import Item
from archiver.control.asked import Means
from archiver.control.carrying import Carrier
from archiver.control.definition import Command
from archiver.control.heard import heard
from archiver.control.invitations import Invitations
from archiver.control.orders import Orders
from archiver.control.permission import Permission
from archiver.control.questions import Questions
from archiver.control.refusals import Refusals
from archiver.control.surely import surely
from archiver.control.voice import Voice
from archiver.db.pool import DATABASE_AWAY
from archiver.db.turns import woken

POLL_SECONDS = 2.0
LOOK_FOR_ROOM_SECONDS = 60.0
PURGE_SECONDS = 3600.0
KEPT = timedelta(days=30)
TRY_AGAIN = timedelta(seconds=2)
MOST_ATTEMPTS = 5
GIVE_BACK_SECONDS = 5.0

log = structlog.get_logger(__name__)


class ControlRoom:
    """Deals with the inbox, one item after the other, each under a `lease` that is renewed while
    it takes; what takes long goes on beside. Several may run: they share the inbox."""

    def __init__(
        self,
        means: Means,
        commands: Sequence[Command],
        lease: timedelta = timedelta(seconds=30),
    ) -> None:
        self._pool = means.pool
        self._lease = lease
        bot, voice = means.config.bot, Voice(means.speech)
        self._permission = Permission(means.speech, bot)
        refusals = Refusals(means.pool)
        self._invitations = Invitations(voice, self._permission, refusals, bot.prefix)
        self._carrier = Carrier(means, voice)
        self._questions = Questions(means.pool, voice, self._carrier, bot.confirm_within)
        self._orders = Orders(
            means.pool, commands, bot.prefix, self._permission, refusals, self._carrier,
            self._questions,
        )  # fmt: skip
        self._held: set[Item] = set()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something may have come."""
        self._wake.set()

    def known_room(self) -> str | None:
        """The control room's id; None while there is none, or nobody could ask for it."""
        return self._permission.room_id

    def cancel(self, event_id: str | None) -> None:
        """What came of this event is to be cancelled, wherever it is dealt with."""
        self._carrier.cancel(event_id)

    async def run(self) -> None:
        """Deals with what comes until cancelled; then gives back what it holds."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(self._lease.total_seconds() / 3, self._renew))
            group.create_task(self._every(POLL_SECONDS, self._questions.expire))
            group.create_task(self._every(PURGE_SECONDS, self._purge))
            group.create_task(self._every(LOOK_FOR_ROOM_SECONDS, self._look_for_room))
            while True:
                self._wake.clear()
                item = await self._claim()
                if item is not None:
                    aside = asyncio.Event()
                    await _first(group.create_task(self._hold(item, aside)), aside)
                    continue
                await woken(self._wake, POLL_SECONDS)

    async def _every(self, seconds: float, do: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await do()
            except DATABASE_AWAY as error:
                log.warning("the database does not answer", reason=str(error))
            await asyncio.sleep(seconds)

    async def _claim(self) -> Item | None:
        try:
            async with self._pool.acquire() as conn:
                return await inbox.claim(conn, self._lease)
        except DATABASE_AWAY as error:
            log.warning("the control room waits for the database", reason=str(error))
            return None

    async def _hold(self, item: Item, aside: asyncio.Event) -> None:
        self._held.add(item)
        dealing = asyncio.create_task(self._deal(item, aside))
        try:
            await asyncio.wait([dealing])
        finally:
            dealing.cancel()
            await asyncio.wait([dealing], timeout=GIVE_BACK_SECONDS)
            if not dealing.done() or dealing.cancelled():
                await self._put_back(item, timedelta())
            self._held.discard(item)
        if dealing.cancelled():
            return
        error = dealing.exception()
        if error is not None and not isinstance(error, DATABASE_AWAY):
            # Nobody foresaw it, and the same may happen again.
            log.error("what came for the bot was not dealt with", exc_info=error)
            if item.attempts >= MOST_ATTEMPTS:
                error = None
        if error is None:
            await surely(self._pool, lambda conn: inbox.done(conn, item))
        else:
            await self._put_back(item, TRY_AGAIN)

    async def _deal(self, item: Item, aside: asyncio.Event) -> None:
        event = heard(item.event_id, item.room_id, item.sender, item.raw)
        if event is None:
            return
        if event.kind == "m.room.member":
            await self._invitations.told(event)
        elif event.kind == "m.reaction":
            await self._orders.reacted(item, event, aside)
        elif event.kind == "m.room.message":
            await self._orders.told(item, event, aside)

    async def _put_back(self, item: Item, delay: timedelta) -> None:
        try:
            async with asyncio.timeout(GIVE_BACK_SECONDS), self._pool.acquire() as conn:
                await inbox.postpone(conn, item, delay)
        except DATABASE_AWAY as error:
            log.warning("it is not given back, its lease runs out", reason=str(error))

    async def _renew(self) -> None:
        if self._held:
            async with self._pool.acquire() as conn:
                await inbox.renew(conn, list(self._held), self._lease)

    async def _look_for_room(self) -> None:
        await self._permission.find_room(again=True)

    async def _purge(self) -> None:
        async with self._pool.acquire() as conn:
            await inbox.purge(conn, KEPT)


async def _first(dealing: asyncio.Task[None], aside: asyncio.Event) -> None:
    """Returns when it is dealt with, or goes on aside."""
    going_aside = asyncio.create_task(aside.wait())
    try:
        await asyncio.wait([dealing, going_aside], return_when=asyncio.FIRST_COMPLETED)
    finally:
        going_aside.cancel()
