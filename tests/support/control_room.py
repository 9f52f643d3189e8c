"""A control room in a test: who sits in it, and the archive that its bot belongs to."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
import asyncpg
import yaml

from archiver.control.registry import find
from demo.people import People
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.control import DONE, FAILED, MESSAGE, Answer, Seat
from tests.support.matrix import CLIENT, MatrixUser
from tests.support.samples import png
from tests.support.synapse import Synapse

PREFIX = "!archive"
SOON = 60


@dataclass(frozen=True)
class Posted:
    """An image in the archive."""

    mxc: str
    event_id: str
    data: bytes


@dataclass(frozen=True)
class Control:
    """A control room with two administrators, `ann` and `ben`, and `eve`, who is none. They have
    another room without the bot, where Eve posts."""

    synapse: Synapse
    archive: Archiver
    http: aiohttp.ClientSession
    people: People
    alias: str
    room_id: str
    bot: str
    given: set[str] = field(default_factory=set)

    @property
    def ann(self) -> Seat:
        """The administrator who owns the control room, and the homeserver."""
        return Seat(self.people.admin, self.room_id, self.bot)

    @property
    def ben(self) -> Seat:
        """The other one."""
        return Seat(self.people.bob, self.room_id, self.bot)

    @property
    def eve(self) -> Seat:
        """Somebody in the control room who may not command."""
        return Seat(self.people.alice, self.room_id, self.bot)

    async def ask(self, text: str, *, worked: bool = True, thread: str | None = None) -> Answer:
        """Ann gives a command; what she is told, once it is done."""
        self._note(text)
        answer = await self.ann.ask(f"{PREFIX} {text}", thread)
        assert answer.worked is worked, answer.body
        return answer

    async def question(self, text: str) -> Answer:
        """Ann gives a command that asks her first; what it asks."""
        self._note(text)
        asked = await self.ann.question(f"{PREFIX} {text}")
        assert asked.keys == {DONE, FAILED}
        return asked

    async def settled(self, asked: Answer) -> Answer:
        """What a question's message says once the command behind it is done with."""
        await self.ann.marked(asked.said)
        return await self.ann.answer_to(asked.said, lambda _: True)

    async def dealt_with(self, event_id: str) -> None:
        """Waits until the archive is done with what somebody said, in one way or another."""

        async def is_done() -> bool:
            rows = await self.fetch("SELECT due_at FROM inbox WHERE event_id = $1", event_id)
            return bool(rows) and rows[0]["due_at"] is None

        await eventually(f"{event_id} is dealt with", is_done, SOON)

    async def invitations_dealt_with(self, user: MatrixUser, count: int) -> None:
        """Waits until the archive is done with so many of what a user did to its membership."""

        async def are_done() -> bool:
            rows = await self.fetch(
                "SELECT FROM inbox WHERE due_at IS NULL AND sender = $1"
                " AND strpos(convert_from(raw, 'UTF8'), 'm.room.member') > 0",
                user.user_id,
            )
            return len(rows) >= count

        await eventually(f"{count} invitations are dealt with", are_done, SOON)

    async def tries(self, reader: Reader, mxc: str, more_than: int) -> int:
        """How often the archive tried to fetch a media in vain, once that is so often."""
        tries = 0

        async def is_tried() -> bool:
            nonlocal tries
            state = await reader.state(mxc)
            tries = int(state.get("attempts", 0)) if state.get("reason") else 0
            return tries > more_than

        await eventually(f"{mxc} is tried", is_tried, SOON)
        return tries

    async def lose(self, posted: Posted) -> None:
        """The archive has never heard of it, as if it was posted before its time."""
        media_id = posted.mxc.rpartition("/")[2]
        await self.fetch("DELETE FROM reference WHERE media_id = $1", media_id)
        await self.fetch("DELETE FROM event WHERE event_id = $1", posted.event_id)
        await self.fetch("DELETE FROM media WHERE media_id = $1", media_id)

    def _note(self, text: str) -> None:
        if found := find(text.split()):
            self.given.add(found[0].name)

    async def invite(self, user: MatrixUser, room_id: str) -> None:
        """A user asks the bot into a room."""
        path = f"{CLIENT}/rooms/{quote(room_id)}/invite"
        await user.call("POST", path, json={"user_id": self.bot})

    async def bots_rooms(self) -> set[str]:
        """The rooms that the bot is in."""
        token = yaml.safe_load(self.archive.registration.read_text("utf-8"))["as_token"]
        bot = MatrixUser(self.http, self.synapse.url, self.bot, token)
        answer = await bot.call("GET", f"{CLIENT}/joined_rooms", params={"user_id": self.bot})
        return set(answer["joined_rooms"])

    async def custody(self, action: str | None = None) -> list[tuple[str, str | None]]:
        """Who did what to what in this control room: of one action, or of all."""
        rows = await self.fetch(
            "SELECT actor, target FROM custody WHERE place = $1 AND coalesce($2, action) = action"
            " ORDER BY id",
            self.room_id,
            action,
        )
        return [(row["actor"], row["target"]) for row in rows]

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """What the archive's database says."""
        conn = await asyncpg.connect(self.archive.dsn)
        try:
            return list(await conn.fetch(query, *arguments))
        finally:
            await conn.close()

    async def reader(self, scope: str) -> Reader:
        """Somebody who reads the archive."""
        name = f"{scope}-{secrets.token_hex(4)}"
        words = ("token", "create", name, "--scope", scope, "-c", str(self.archive.config))
        secret = (await asyncio.to_thread(self.archive.command, *words)).strip()
        return Reader(self.http, self.archive.url, secret)

    async def post(self, reader: Reader, name: str = "cat.png") -> Posted:
        """Eve posts an image, which is archived."""
        data = png(32, 24, (9, 99, 9)) + secrets.token_bytes(64)
        mxc = await self.people.alice.upload(data, filename=name)
        event_id = await self.people.alice.send_image(self.people.room, mxc, name)
        await reader.until("ready", mxc)
        return Posted(mxc, event_id, data)

    async def came(self) -> None:
        """Waits until the bot said something in the control room."""

        async def is_heard() -> bool:
            seen = await self.ann.seen()
            return any(event["type"] == MESSAGE for event in seen.by(self.bot))

        await eventually("the bot announces itself", is_heard, SOON)
