"""Which room is the control room, and who may command there."""

from __future__ import annotations

import time

import structlog

from archiver.capture.powers import Powers
from archiver.config.sections import Bot
from archiver.control.heard import Heard
from archiver.control.voice import patiently
from archiver.errors import OperationError
from archiver.matrix.speech import Speech

REMEMBERED_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Permission:
    """Asks the homeserver, and waits for it, when it does not remember."""

    def __init__(self, speech: Speech, bot: Bot) -> None:
        self._speech = speech
        self._bot = bot
        self._looked = False
        named = bot.control_room
        self.room_id = named if named and named.startswith("!") else None
        self._asked_at = float("-inf")
        self._is_in = False
        self._powers = Powers()

    async def find_room(self, *, again: bool = False) -> str | None:
        """The control room's id; None while there is none, or its alias names nothing, which is
        asked once unless it is to be asked `again`."""
        alias = self._bot.control_room
        if self.room_id is None and alias is not None and (again or not self._looked):
            try:
                self.room_id = await patiently(lambda: self._speech.room_of(alias))
            except OperationError as error:
                log.warning("the control room is unknown", alias=alias, reason=str(error))
            self._looked = True
        return self.room_id

    def is_admin(self, user_id: str) -> bool:
        """True for those whom the configuration names."""
        return user_id in self._bot.admins

    async def refusal(self, heard: Heard) -> str | None:
        """Why this is not answered; None when its sender may command."""
        room_id = await self.find_room()
        if room_id is None:
            return "there is no control room"
        if heard.room_id != room_id:
            return "not in the control room"
        try:
            await self._ask(room_id)
        except OperationError as error:
            return str(error)
        if not self._is_in:
            return "the bot is not in the control room"
        return None if self._may(heard.sender) else "may not command"

    def forget(self) -> None:
        """What the homeserver told may have changed."""
        self._asked_at = float("-inf")

    async def _ask(self, room_id: str) -> None:
        if time.monotonic() - self._asked_at < REMEMBERED_SECONDS:
            return
        self._is_in = room_id in await patiently(self._speech.joined_rooms)
        if self._is_in and self._bot.power_level is not None:
            levels = await patiently(lambda: self._speech.power_levels(room_id))
            made = await patiently(lambda: self._speech.created(room_id))
            self._powers = Powers(levels or None, made.get("content"), made.get("sender"))
        self._asked_at = time.monotonic()

    def _may(self, user_id: str) -> bool:
        enough = self._bot.power_level
        return self.is_admin(user_id) or (
            enough is not None and self._powers.level(user_id) >= enough
        )
