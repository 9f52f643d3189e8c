"""Somebody who speaks to the bot in the control room, and control rooms that listen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import inbox
from archiver.config import parse_config
from archiver.control.asked import Means
from archiver.control.definition import Command
from archiver.control.room import ControlRoom
from archiver.db.pool import Pool
from archiver.matrix.history import History
from archiver.matrix.registration import Registration
from archiver.matrix.speech import Speech
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from tests.support.fetching import until
from tests.support.homeserver import BOT, SERVER_NAME, TOKEN
from tests.support.talk import Said, Talk

ROOM = f"!control:{SERVER_NAME}"
ADMIN = f"@admin:{SERVER_NAME}"
OTHER_ADMIN = f"@other:{SERVER_NAME}"
STRANGER = f"@stranger:{SERVER_NAME}"


class Desk:
    """Puts into the inbox what the homeserver would push. The bot is in ROOM."""

    def __init__(
        self, pool: Pool, talk: Talk, session: aiohttp.ClientSession, folder: Path
    ) -> None:
        self.pool = pool
        self.talk = talk
        self._session = session
        self._folder = folder
        self._numbers = count()
        talk.joined.add(ROOM)

    def means(self, **bot: Any) -> Means:
        """What commands work with; `bot` is that section of the configuration."""
        told = {"control_room": ROOM, "admins": [ADMIN, OTHER_ADMIN], **bot}
        homeserver = {"url": self.talk.url, "server_name": SERVER_NAME}
        config = parse_config({"homeserver": homeserver, "bot": told}, self._folder)
        registration = Registration("archiver", TOKEN, TOKEN, BOT, BOT)
        store = HybridStore(PostgresStore(self.pool), FilesystemStore(self._folder), 1000)
        history = History(self._session, self.talk.url, TOKEN, BOT)
        speech = Speech(self._session, self.talk.url, registration)
        return Means(config, self.pool, store, history, speech, CapturePolicy(SERVER_NAME))

    @asynccontextmanager
    async def room(self, commands: Sequence[Command], **bot: Any) -> AsyncIterator[ControlRoom]:
        """A control room that runs until the end of the block, as a process does that is asked to
        end."""
        room = ControlRoom(self.means(**bot), commands)
        running = asyncio.create_task(room.run())
        try:
            yield room
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def say(
        self, body: str, sender: str = ADMIN, room_id: str = ROOM, **content: Any
    ) -> str:
        """A message. Returns its id, as all of these do."""
        said = {"msgtype": "m.text", "body": body, **content}
        return await self._push(room_id, sender, "m.room.message", said)

    async def react(
        self, event_id: str, key: str, sender: str = ADMIN, room_id: str = ROOM
    ) -> str:
        """A sign under a message."""
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self._push(room_id, sender, "m.reaction", {"m.relates_to": relation})

    async def invite(self, room_id: str, sender: str = ADMIN) -> str:
        """An invitation of the bot."""
        content = {"membership": "invite"}
        return await self._push(room_id, sender, "m.room.member", content, state_key=BOT)

    async def _push(
        self, room_id: str, sender: str, kind: str, content: dict[str, Any], **fields: Any
    ) -> str:
        event_id = f"$event-{next(self._numbers):04}"
        event = {"event_id": event_id, "room_id": room_id, "sender": sender, "type": kind}
        raw = orjson.dumps({**event, "content": content, **fields})
        async with self.pool.acquire() as conn:
            await inbox.put(conn, [(event_id, room_id, sender, raw)])
        return event_id

    async def settled(self) -> None:
        """Returns when everything that came is dealt with."""

        async def is_settled() -> bool:
            waiting = "SELECT count(*) FROM inbox WHERE due_at IS NOT NULL"
            return int(await self.pool.fetchval(waiting)) == 0

        await until(is_settled, "the inbox is empty")

    async def answer(self, event_id: str) -> Said:
        """The bot's answer to a command, once it is there."""

        async def is_there() -> bool:
            return bool(self.talk.signs(event_id))

        await until(is_there, "the command has its sign")
        [said] = [said for said in self.talk.messages() if said.txn == f"{event_id}.answer"]
        return said

    async def question(self, event_id: str) -> Said:
        """The question about a command, once it can be answered."""
        txn = f"{event_id}.question"

        async def is_there() -> bool:
            asked = [said for said in self.talk.said if said.txn == txn]
            return bool(asked) and len(self.talk.signs(asked[0].event_id)) == 2

        await until(is_there, "the question is asked")
        return next(said for said in self.talk.said if said.txn == txn)

    async def custody(self) -> list[tuple[str, str, str]]:
        """Who did what where."""
        rows = await self.pool.fetch("SELECT actor, place, action FROM custody ORDER BY id")
        return [tuple(row) for row in rows]
