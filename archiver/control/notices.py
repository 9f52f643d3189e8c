"""What the bot tells the control room by itself: trouble and recovery, and what was found.

Each is told once, however many processes know of it: a statement decides who tells, and it is
committed only once the homeserver has taken the message. One that was taken and not committed is
sent again under the same transaction id, which makes it the same message.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta
from typing import NamedTuple

import structlog

from archiver.catalogue import infections, notices
from archiver.catalogue.notices import Spell
from archiver.control.messages import notice
from archiver.control.reply import Reply
from archiver.control.watching import sentences
from archiver.control.watching.conditions import ANSWER_SECONDS, Condition, Surroundings
from archiver.db.pool import DATABASE_AWAY, Connection, Pool
from archiver.errors import HomeserverUnavailable
from archiver.matrix.speech import UNHEARD, Speech

REASONS_SHOWN = 5
DAMAGED_SHOWN = 5
INFECTED_SHOWN = 5

log = structlog.get_logger(__name__)


class Pace(NamedTuple):
    """How often to look, how long a trouble lasts before it is told, how long what was found has
    to rest before it is counted, and how often it is told at most."""

    every: timedelta = timedelta(seconds=30)
    patience: timedelta = timedelta(minutes=1)
    settling: timedelta = timedelta(minutes=1)
    findings_every: timedelta = timedelta(hours=1)


STEADY = Pace()


class _Outage(NamedTuple):
    """Of the database, by this process's clock, in seconds."""

    name: str
    begun: float
    ended: float | None = None


class _Told(NamedTuple):
    """What is told, and of which begin."""

    cause: str
    spell: Spell
    reply: Reply


_Decide = Callable[[Connection], Awaitable[_Told | None]]


class Notices:
    """Looks at what is around and into the archive, and tells the control room.

    While there is no control room, nothing counts as told. `kinds` are those of `bot.notify`.
    """

    def __init__(
        self,
        pool: Pool,
        speech: Speech,
        room: Callable[[], str | None],
        surroundings: Surroundings,
        kinds: Collection[str],
        prefix: str,
        *,
        pace: Pace = STEADY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._speech = speech
        self._room = room
        self._surroundings = surroundings
        self._kinds = frozenset(kinds)
        self._prefix = prefix
        self._pace = pace
        self._clock = clock
        self._outage: _Outage | None = None

    async def run(self) -> None:
        """Looks and tells until cancelled."""
        while self._kinds:
            await self.look()
            await asyncio.sleep(self._pace.every.total_seconds())

    async def look(self) -> None:
        """Looks once, and tells what is to be told. What cannot be told now is told later."""
        room_id = self._room()
        if room_id is None:
            return
        answers = await self._surroundings.homeserver_answers()
        conditions = await self._conditions(answers)
        try:
            async with self._pool.acquire(timeout=ANSWER_SECONDS) as conn:
                await notices.watch(conn)
                self._database_answers()
                for condition in conditions:
                    if condition.bad:
                        await notices.seen(conn, condition.cause)
                if answers:
                    await self._tell_all(conn, room_id, conditions)
        except DATABASE_AWAY as error:
            log.warning("the control room is told nothing for now", reason=str(error))
            begun = self._outage or _Outage(secrets.token_hex(8), self._clock())
            self._outage = begun._replace(ended=None)

    async def _conditions(self, answers: bool) -> list[Condition]:
        found: list[Condition] = []
        if "trouble" in self._kinds:
            found += await self._surroundings.troubles(answers, self._pace.patience)
        if "disk" in self._kinds:
            found += await self._surroundings.disks()
        if "scan" in self._kinds:
            found += await self._surroundings.scanning(self._pace.patience)
        return found

    def _database_answers(self) -> None:
        if self._outage is None or self._outage.ended is not None:
            return
        ended = self._clock()
        short = ended - self._outage.begun < self._pace.patience.total_seconds()
        forget = short or "trouble" not in self._kinds
        self._outage = None if forget else self._outage._replace(ended=ended)

    async def _tell_all(self, conn: Connection, room_id: str, conditions: list[Condition]) -> None:
        if self._outage is not None and await self._tell(conn, room_id, self._outage_over):
            self._outage = None
        for condition in conditions:
            if condition.bad is not None:
                await self._tell(conn, room_id, _of(condition))
        findings = {
            "failed": self._failed,
            "gaps": self._gaps,
            "damage": self._damage,
            "custody": self._custody,
            "infected": self._infected,
        }
        for kind, decide in findings.items():
            if kind in self._kinds:
                await self._tell(conn, room_id, decide)

    async def _tell(self, conn: Connection, room_id: str, decide: _Decide) -> bool:
        """Tells what is decided, in one commit with the decision. False: it was not heard."""
        try:
            async with conn.transaction():
                told = await decide(conn)
                if told is not None:
                    await self._send(room_id, told)
        except HomeserverUnavailable as error:
            log.warning("the control room was not told", reason=str(error))
            return False
        return True

    async def _send(self, room_id: str, told: _Told) -> None:
        name = f"{told.cause} {told.spell.begun_at.isoformat()}"
        txn = f"notice-{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._speech.send(room_id, "m.room.message", notice(told.reply), txn)
        except UNHEARD as error:
            raise HomeserverUnavailable(f"{type(error).__name__}: {error}") from error
        log.info("the control room was told", cause=told.cause)

    async def _outage_over(self, conn: Connection) -> _Told | None:
        outage = self._outage
        if outage is None or outage.ended is None:
            return None
        now = self._clock()
        begun, ended = (timedelta(seconds=now - at) for at in (outage.begun, outage.ended))
        spell = await notices.database_back(conn, begun, ended)
        return spell and _Told(f"database {outage.name}", spell, sentences.database_back(spell))

    async def _failed(self, conn: Connection) -> _Told | None:
        spell = await notices.next_failed(conn, self._pace.settling)
        if spell is None:
            return None
        failed = await notices.failed(conn, spell, REASONS_SHOWN)
        if not failed.total:
            return None
        return _Told("failed", spell, sentences.failures(spell, failed, self._prefix))

    async def _gaps(self, conn: Connection) -> _Told | None:
        spell = await notices.next_gaps(conn, self._pace.findings_every, self._pace.settling)
        return spell and _Told("gaps", spell, sentences.gaps(*await notices.gaps(conn, spell)))

    async def _damage(self, conn: Connection) -> _Told | None:
        spell = await notices.next_damage(conn, self._pace.findings_every, self._pace.settling)
        if spell is None:
            return None
        found = await notices.damaged(conn, spell, DAMAGED_SHOWN)
        return _Told("damage", spell, sentences.damage(found, self._prefix))

    async def _custody(self, conn: Connection) -> _Told | None:
        spell = await notices.next_custody(conn, self._pace.settling)
        if spell is None:
            return None
        head = await notices.head(conn, spell)
        return _Told("custody", spell, sentences.custody(spell, head, self._prefix))

    async def _infected(self, conn: Connection) -> _Told | None:
        pace = self._pace.findings_every, self._pace.settling
        spell = await infections.next_infected(conn, *pace)
        if spell is None:
            return None
        found = await infections.infected(conn, spell, INFECTED_SHOWN)
        return _Told("infected", spell, sentences.infected(found, self._prefix))


def _of(condition: Condition) -> _Decide:
    async def begun(conn: Connection) -> _Told | None:
        if condition.begun is None:
            return None
        spell = await notices.say(conn, condition.cause, condition.patience)
        return spell and _Told(condition.cause, spell, condition.begun(spell))

    async def over(conn: Connection) -> _Told | None:
        patience = condition.patience if condition.unsaid else None
        spell = await notices.over(conn, condition.cause, patience)
        if spell is None or not spell.told:
            return None
        return _Told(f"{condition.cause} over", spell, condition.over(spell))

    return begun if condition.bad else over
