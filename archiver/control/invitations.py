"""The bot joins its control room when an administrator invites it, and nothing else."""

from __future__ import annotations

import structlog

from archiver.control import messages
from archiver.control.heard import Heard
from archiver.control.permission import Permission
from archiver.control.refusals import Refusals
from archiver.control.reply import said
from archiver.control.voice import Voice, patiently
from archiver.errors import OperationError

log = structlog.get_logger(__name__)


class Invitations:
    """Looks at what happens to the bot's membership in rooms."""

    def __init__(
        self, voice: Voice, permission: Permission, refusals: Refusals, prefix: str
    ) -> None:
        self._voice = voice
        self._permission = permission
        self._refusals = refusals
        self._prefix = prefix

    async def told(self, heard: Heard) -> None:
        """Somebody changed a membership."""
        user_id, membership = heard.membership or ("", "")
        if user_id != self._voice.speech.user_id:
            return
        self._permission.forget()
        if membership != "invite":
            return
        control_room = await self._permission.find_room(again=True)
        if not self._permission.is_admin(heard.sender):
            await self._refusals.note(heard, "an invitation", "no administrator's")
        elif control_room is None:
            log.warning(
                "an administrator invites the bot, and there is no control room: to make this "
                "room the one, write its id as control_room under bot in config.yaml, start the "
                "archive again and invite the bot once more",
                room_id=heard.room_id,
                invited_by=heard.sender,
            )
            await self._refusals.note(heard, "an invitation", "there is no control room")
        elif heard.room_id != control_room:
            await self._refusals.note(heard, "an invitation", "not to the control room")
        else:
            await self._join(heard)

    async def _join(self, heard: Heard) -> None:
        speech, room_id = self._voice.speech, heard.room_id
        try:
            await patiently(lambda: speech.join(room_id))
            encrypted = await patiently(lambda: speech.is_encrypted(room_id))
        except OperationError as error:
            log.warning("the control room cannot be joined", room_id=room_id, reason=str(error))
            return
        log.info("the control room is joined", room_id=room_id, invited_by=heard.sender)
        hello = [
            "I am the media archive of this homeserver. "
            f"Say `{self._prefix} help` and I tell what I can do."
        ]
        if encrypted:
            hello.append(
                "This room is encrypted, so I cannot read what you say here: make a room without "
                "encryption, and let `bot.control_room` in config.yaml name that one."
            )
        await self._voice.say(room_id, messages.notice(said(*hello)), f"{heard.event_id}.hello")
