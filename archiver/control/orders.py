"""What is done about a message or a reaction: who sent it, what it means, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from archiver.catalogue import inbox, questions
from archiver.catalogue.inbox import Item
from archiver.catalogue.questions import Question
from archiver.control.carrying import INTERRUPTED, Carrier
from archiver.control.definition import Command
from archiver.control.heard import Heard
from archiver.control.outcome import failed, outcome
from archiver.control.permission import Permission
from archiver.control.questions import Questions
from archiver.control.refusals import Refusals
from archiver.control.reply import Reply
from archiver.control.understanding import Understood, understand
from archiver.db.pool import Pool
from archiver.matrix.signs import CANCEL, OK

log = structlog.get_logger(__name__)


class Orders:
    """Deals with what people want from the bot.

    `aside` is set when it will take long, so that others need not wait for it.
    """

    def __init__(
        self,
        pool: Pool,
        commands: Sequence[Command],
        prefix: str,
        permission: Permission,
        refusals: Refusals,
        carrier: Carrier,
        questions: Questions,
    ) -> None:
        self._pool = pool
        self._commands = commands
        self._prefix = prefix
        self._permission = permission
        self._refusals = refusals
        self._carrier = carrier
        self._questions = questions

    async def told(self, item: Item, heard: Heard, aside: asyncio.Event) -> None:
        """Somebody gave a command. Raises DATABASE_AWAY while nothing was done."""
        if await self._is_refused(heard, "a command"):
            return
        meant = await self._meaning(heard)
        if isinstance(meant, Reply):
            await self._carrier.answer(heard, meant)
            return
        if meant.command.long:
            aside.set()
        if asks := meant.command.asks_first(meant.params):
            reply = await self._questions.ask(item, heard, meant, asks)
        else:
            reply = await self._carried_out(item, heard, meant)
        if reply is not None:
            await self._carrier.answer(heard, reply)

    async def reacted(self, item: Item, heard: Heard, aside: asyncio.Event) -> None:
        """Somebody put a sign under a message. Raises DATABASE_AWAY while nothing was done."""
        target, sign = heard.reaction or ("", "")
        if sign not in (OK, CANCEL):
            return
        async with self._pool.acquire() as conn:
            question = await questions.find(conn, target)
            running = await inbox.running(conn, target)
            if question is None and running is None:
                await inbox.drop(conn, item)
        if question is not None:
            await self._answered(item, heard, question, sign, aside)
        elif running is not None and sign == CANCEL:
            await self._cancelled(heard, running)

    async def _cancelled(self, heard: Heard, running: str) -> None:
        if await self._is_refused(heard, "a cancel"):
            return
        self._carrier.cancel(running)
        async with self._pool.acquire() as conn:
            await inbox.cancel(conn, running)

    async def _answered(
        self, item: Item, heard: Heard, question: Question, sign: str, aside: asyncio.Event
    ) -> None:
        if (heard.room_id, heard.sender) != (question.room_id, question.sender):
            log.info("an answer is not that of who was asked", sender=heard.sender)
            return
        if await self._is_refused(heard, "an answer"):
            return
        command = await self._questions.answered(item, question, sign)
        if command is None:
            return
        meant = await self._meaning(command)
        if isinstance(meant, Reply):
            reply = meant
        else:
            if meant.command.long:
                aside.set()
            reply = await self._carrier.carry_out(item, command, meant, meant.command.run)
        await self._carrier.answer(command, reply)
        await self._questions.finish(question)

    async def _carried_out(self, item: Item, heard: Heard, meant: Understood) -> Reply | None:
        command = meant.command
        once = command.changes and not command.long
        if once:
            async with self._pool.acquire() as conn:
                begun = await inbox.begin(conn, item)
            if begun is None:
                return None
            if not begun:
                return failed(INTERRUPTED)
        return await self._carrier.carry_out(item, heard, meant, command.run, once=once)

    async def _meaning(self, heard: Heard) -> Understood | Reply:
        async def meaning() -> Understood | Reply:
            return understand(self._commands, self._prefix, heard.body.strip())

        return await outcome(meaning())

    async def _is_refused(self, heard: Heard, what: str) -> bool:
        reason = await self._permission.refusal(heard)
        if reason is None:
            return False
        await self._refusals.note(heard, what, reason)
        return True
