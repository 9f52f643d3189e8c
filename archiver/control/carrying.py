"""A command is carried out, and what came of it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count

from archiver.catalogue.inbox import Item
from archiver.control import messages
from archiver.control.asked import Asked, Means
from archiver.control.definition import Run
from archiver.control.heard import Heard
from archiver.control.outcome import failed, outcome
from archiver.control.progress import Progress
from archiver.control.reply import Reply
from archiver.control.understanding import Understood
from archiver.control.voice import Voice, patiently
from archiver.db.pool import DATABASE_AWAY
from archiver.errors import Cancelled
from archiver.matrix.signs import CANCEL, OK

MOST_ATTEMPTS = 5
INTERRUPTED = (
    "I was interrupted while doing this: look whether it is done, and say it again if not."
)


class Carrier:
    """Carries out commands for whoever holds an item of the inbox, and answers them."""

    def __init__(self, means: Means, voice: Voice) -> None:
        self._means = means
        self._voice = voice
        self._under_way: dict[str, Progress] = {}

    def cancel(self, event_id: str | None) -> None:
        """Nobody wants what came of this event any more, if it is done here."""
        if event_id in self._under_way:
            self._under_way[event_id].cancel()

    async def carry_out(
        self, item: Item, heard: Heard, meant: Understood, work: Run, *, once: bool = False
    ) -> Reply:
        """What the work replied, or why it did not. `once`: it must not be done again.

        Raises DATABASE_AWAY for what may be done again.
        """
        try:
            if meant.command.long:
                return await self._at_length(item, heard, meant, work)
            asked = self._asked(heard, _nothing, asyncio.sleep)
            return await outcome(_awaited(work(asked, **meant.params)))
        except DATABASE_AWAY as error:
            if once:
                return failed(f"the database went away. {INTERRUPTED}")
            if item.attempts < MOST_ATTEMPTS:
                raise
            return failed(f"the database does not answer: {error}")

    async def answer(self, heard: Heard, reply: Reply) -> None:
        """Replies to a command, and puts a sign under it."""
        to, room_id = heard.event_id, heard.room_id
        if reply.parts:
            await self._voice.say(room_id, messages.answer(reply, heard.raw), f"{to}.answer")
        if reply.picture is not None:
            shown = messages.picture(reply.picture, heard.raw)
            await self._voice.say(room_id, shown, f"{to}.picture")
        await self._voice.react(room_id, to, CANCEL if reply.failed else OK, f"{to}.sign")

    async def _at_length(self, item: Item, heard: Heard, meant: Understood, work: Run) -> Reply:
        progress = Progress(self._means.pool, self._voice, item, heard)
        self._under_way[item.event_id] = progress
        asked = self._asked(heard, progress.show, partial(_pause, progress))
        try:
            reply = await outcome(_awaited(work(asked, **meant.params)))
            await progress.close(reply)
        finally:
            del self._under_way[item.event_id]
            await progress.stop()
        return reply

    def _asked(
        self,
        heard: Heard,
        progress: Callable[[Reply], Awaitable[None]],
        pause: Callable[[float], Awaitable[None]],
    ) -> Asked:
        numbers = count()

        async def tell_alone(reply: Reply) -> None:
            speech, content = self._voice.speech, messages.notice(reply)
            txn = f"{heard.event_id}.alone.{next(numbers)}"
            room_id = await patiently(lambda: speech.direct_room(heard.sender))
            await patiently(lambda: speech.send(room_id, "m.room.message", content, txn))

        return Asked(self._means, heard.sender, heard.room_id, progress, tell_alone, pause)


async def _nothing(_reply: Reply) -> None:
    """What is over at once shows no progress."""


async def _pause(progress: Progress, seconds: float) -> None:
    await progress.wait(seconds)
    if progress.cancelled:
        raise Cancelled("Cancelled.")


async def _awaited(work: Awaitable[Reply]) -> Reply:
    reply = await work
    # What cannot be put into words is a fault of the command, not of whoever says it.
    messages.notice(reply)
    return reply
