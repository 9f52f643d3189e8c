"""What destroys asks first, and is carried out after the OK of whoever gave the command."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog

from archiver.catalogue import questions
from archiver.catalogue.inbox import Item
from archiver.catalogue.questions import Question
from archiver.control import messages
from archiver.control.carrying import Carrier
from archiver.control.definition import Run
from archiver.control.heard import Heard, heard
from archiver.control.outcome import failed
from archiver.control.reply import Reply
from archiver.control.surely import surely
from archiver.control.understanding import Understood
from archiver.control.voice import Voice
from archiver.db.pool import Pool
from archiver.matrix.signs import CANCEL, OK

log = structlog.get_logger(__name__)


class Questions:
    """Each is a message of ours with an OK and a Cancel under it, and a row that expires."""

    def __init__(self, pool: Pool, voice: Voice, carrier: Carrier, within: timedelta) -> None:
        self._pool = pool
        self._voice = voice
        self._carrier = carrier
        self._within = within

    async def ask(self, item: Item, command: Heard, meant: Understood, asks: Run) -> Reply | None:
        """None when it was asked; otherwise the answer, because there is nothing to ask."""
        question = await surely(self._pool, lambda conn: questions.asked(conn, item.event_id))
        if question is None:
            reply = await self._carrier.carry_out(item, command, meant, asks)
            if reply.failed:
                return reply
            question = await self._put(command, reply)
        if question is not None:
            for sign in (OK, CANCEL):
                txn = f"{command.event_id}.question.{sign}"
                await self._voice.react(command.room_id, question, sign, txn)
        return None

    async def answered(self, item: Item, question: Question, sign: str) -> Heard | None:
        """The command that is to be carried out now, with the OK of whoever gave it.

        A Cancel is dealt with here; so is what comes too late.
        """
        command = heard(question.command_id, question.room_id, question.sender, question.raw)
        given: questions.Answer = "ok" if sign == OK else "cancel"
        async with self._pool.acquire() as conn:
            if not await questions.answer(conn, question.event_id, given, item.event_id):
                log.info("an answer comes too late", sender=item.sender, event_id=item.event_id)
                return None
        if command is not None and given == "cancel":
            await self._carrier.answer(command, failed("Cancelled, nothing was changed."))
            await self.finish(question)
        return command if given == "ok" else None

    async def finish(self, question: Question) -> None:
        """It needs nothing more."""
        await surely(self._pool, lambda conn: questions.finish(conn, question.event_id))

    async def expire(self) -> None:
        """Tells of the questions that nobody answered in time. Raises DATABASE_AWAY."""
        async with self._pool.acquire() as conn:
            expired = await questions.expire(conn)
        for question in expired:
            command = heard(question.command_id, question.room_id, question.sender, question.raw)
            if command is not None:
                over = Reply(("This question has expired, and nothing was changed.",))
                content = messages.edit(question.event_id, messages.answer(over, command.raw))
                txn = f"{question.command_id}.expired"
                await self._voice.say(question.room_id, content, txn)
            await self.finish(question)

    async def _put(self, command: Heard, preview: Reply) -> str | None:
        expires_at = datetime.now(UTC) + self._within
        how = f"React with {OK} to go on or {CANCEL} to cancel, until {expires_at:%H:%M} UTC."
        content = messages.answer(Reply((*preview.parts, how)), command.raw)
        txn = f"{command.event_id}.question"
        question = await self._voice.say(command.room_id, content, txn)
        if question is not None:
            await surely(
                self._pool,
                lambda conn: questions.ask(conn, question, command.event_id, expires_at),
            )
        return question
