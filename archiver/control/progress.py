"""One message that tells how far a long command is: sent once, then edited."""

from __future__ import annotations

import asyncio

import structlog

from archiver.catalogue import inbox
from archiver.catalogue.inbox import Item
from archiver.control import messages
from archiver.control.heard import Heard
from archiver.control.reply import Reply, plain
from archiver.control.voice import Voice
from archiver.db.pool import DATABASE_AWAY, Pool
from archiver.db.turns import woken
from archiver.matrix.signs import CANCEL
from archiver.matrix.speech import UNHEARD

EDIT_SECONDS = 2.0
HOW_TO_CANCEL = f"{CANCEL} cancels."

log = structlog.get_logger(__name__)


class Progress:
    """Shows what it was told last, at most every EDIT_SECONDS, until it is closed.

    The homeserver's troubles hold up nothing but what is shown.
    """

    def __init__(self, pool: Pool, voice: Voice, item: Item, heard: Heard) -> None:
        self._pool = pool
        self._voice = voice
        self._item = item
        self._heard = heard
        self._message = item.reply_id
        self._wanted: Reply | None = None
        self._text = self._shown = ""
        self._edits = 0
        self._cancellable = False
        self._sending = asyncio.Lock()
        self._news = asyncio.Event()
        self._cancelled = asyncio.Event()
        self._painting = asyncio.create_task(self._paint())

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """True after a cancel."""
        return self._cancelled.is_set()

    async def wait(self, seconds: float) -> None:
        """Returns after so many seconds, or when it is cancelled."""
        await woken(self._cancelled, seconds)

    async def show(self, reply: Reply) -> None:
        """How far it is."""
        self._text = plain(reply)
        self._wanted = reply
        self._news.set()

    async def stop(self) -> None:
        """Shows nothing more."""
        self._painting.cancel()
        await asyncio.wait([self._painting])

    async def close(self, outcome: Reply) -> None:
        """Shows how it ended, whenever the homeserver is there to hear it."""
        async with self._sending:  # or nobody would know of what is on its way
            await self.stop()
        if self._message is None:
            return
        end = "Cancelled." if self.cancelled else "It did not work." if outcome.failed else "Done."
        parts = self._wanted.parts if self._wanted else ()
        ended = messages.answer(Reply((*parts, end)), self._heard.raw)
        content = messages.edit(self._message, ended)
        txn = self._txn(f"{self._item.attempts}.end")
        await self._voice.say(self._heard.room_id, content, txn)

    async def _paint(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                async with self._sending:
                    if self._wanted and self._text != self._shown:
                        await self._send(self._wanted, self._text)
                    if self._message and not self._cancellable:
                        await self._offer_cancel(self._message)
            except (*UNHEARD, *DATABASE_AWAY) as error:
                log.info("progress is not shown", reason=str(error))
                self._news.set()
            await asyncio.sleep(EDIT_SECONDS)

    async def _send(self, reply: Reply, text: str) -> None:
        shown, txn = Reply((*reply.parts, HOW_TO_CANCEL)), self._txn("")
        content = messages.answer(shown, self._heard.raw)
        if self._message is not None:
            self._edits += 1
            content = messages.edit(self._message, content)
            txn = self._txn(f"{self._item.attempts}.{self._edits}")
        room_id = self._heard.room_id
        sent = await self._voice.speech.send(room_id, "m.room.message", content, txn)
        self._message, self._shown = self._message or sent, text

    async def _offer_cancel(self, message: str) -> None:
        async with self._pool.acquire() as conn:
            await inbox.set_reply(conn, self._item, message)
        room_id, txn = self._heard.room_id, self._txn("cancel")
        await self._voice.speech.react(room_id, message, CANCEL, txn)
        self._cancellable = True

    def _txn(self, what: str) -> str:
        return f"{self._item.event_id}.progress.{what}"
