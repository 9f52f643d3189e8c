"""What our bot says and does in rooms. It joins nothing but what it is told to."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterable
from typing import Any, cast

import aiohttp
from mautrix.api import HTTPAPI, MediaPath, Method, Path, PathBuilder
from mautrix.errors import MatrixError, MatrixResponseError, MNotFound
from mautrix.util.logging import TraceLogger

from archiver.matrix.registration import Registration
from archiver.model import Mxc

# What every call raises where its docstring says nothing else.
UNHEARD = (MatrixError, aiohttp.ClientError, OSError, TimeoutError)

# Who is written to alone may not bring others along, to whom the room's past would be shown.
DIRECT_ROOM = {
    "preset": "private_chat",
    "is_direct": True,
    "power_level_content_override": {"invite": 100},
}

_PRESENT = frozenset({"join", "invite", "knock"})
_MXC = re.compile(r"mxc://([^/]*)/([^/]*)")


class Speech:
    """Our bot in rooms; every call raises UNHEARD.

    Not by mautrix's intent, which joins rooms by itself where it may not speak.
    """

    def __init__(
        self, session: aiohttp.ClientSession, homeserver_url: str, registration: Registration
    ) -> None:
        self.user_id = registration.bot
        quiet = cast(TraceLogger, logging.getLogger("mautrix"))
        token = registration.as_token
        self._api = HTTPAPI(homeserver_url, token=token, client_session=session, log=quiet)

    async def send(self, room_id: str, kind: str, content: dict[str, Any], txn: str) -> str:
        """Sends an event and returns its id. The same `txn` again is the same event.

        https://spec.matrix.org/v1.16/client-server-api/#put_matrixclientv3roomsroomidsendeventtypetxnid
        """
        path = Path.v3.rooms[room_id].send[kind][txn]
        return _text(await self._ask(Method.PUT, path, content), "event_id")

    async def react(self, room_id: str, event_id: str, key: str, txn: str) -> str:
        """Puts a reaction under an event and returns the reaction's id; `txn` as in `send`.

        https://spec.matrix.org/v1.16/client-server-api/#event-annotations-and-reactions
        """
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self.send(room_id, "m.reaction", {"m.relates_to": relation}, txn)

    async def upload(self, data: AsyncIterable[bytes], size: int, mimetype: str, name: str) -> Mxc:
        """Uploads `size` bytes as they come, and returns what the homeserver calls them.

        https://spec.matrix.org/v1.16/client-server-api/#post_matrixmediav3upload
        """
        headers = {"Content-Type": mimetype, "Content-Length": str(size)}
        answer = await self._ask(
            Method.POST, MediaPath.v3.upload, data, headers=headers, query={"filename": name}
        )
        uri = _text(answer, "content_uri")
        match = _MXC.fullmatch(uri)
        mxc = Mxc.checked(*match.groups()) if match else None
        if mxc is None:
            raise MatrixResponseError(f"the homeserver calls the upload {uri!r}, which is no mxc")
        return mxc

    async def join(self, room_id: str) -> None:
        """Joins a room that is public, or to which the bot is invited.

        https://spec.matrix.org/v1.16/client-server-api/#post_matrixclientv3roomsroomidjoin
        """
        await self._ask(Method.POST, Path.v3.rooms[room_id].join, {})

    async def leave(self, room_id: str, reason: str) -> None:
        """Leaves a room, or declines the invitation to it, and says why.

        https://spec.matrix.org/v1.16/client-server-api/#post_matrixclientv3roomsroomidleave
        """
        await self._ask(Method.POST, Path.v3.rooms[room_id].leave, {"reason": reason})

    async def room_of(self, alias: str) -> str | None:
        """The room that an alias names; None where there is none.

        https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3directoryroomroomalias
        """
        try:
            answer = await self._ask(Method.GET, Path.v3.directory.room[alias])
        except MNotFound:
            return None
        return _text(answer, "room_id")

    async def joined_rooms(self) -> set[str]:
        """The rooms that the bot is in.

        https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3joined_rooms
        """
        answer = await self._ask(Method.GET, Path.v3.joined_rooms)
        return {room_id for room_id in _list(answer, "joined_rooms") if isinstance(room_id, str)}

    async def power_levels(self, room_id: str) -> dict[str, Any]:
        """Who may do what in a room: the event's content, empty where a room has none.

        https://spec.matrix.org/v1.16/client-server-api/#mroompower_levels
        """
        return await self._state(room_id, "m.room.power_levels") or {}

    async def created(self, room_id: str) -> dict[str, Any]:
        """The event that made a room, whose sender may do everything there since room version 12,
        and is not in its power levels; empty where a homeserver has none.

        https://spec.matrix.org/v1.16/rooms/v12/#room-creators-have-infinite-power-levels
        """
        return await self._state(room_id, "m.room.create", {"format": "event"}) or {}

    async def is_encrypted(self, room_id: str) -> bool:
        """True when what is said in a room is to be encrypted.

        https://spec.matrix.org/v1.16/client-server-api/#mroomencryption
        """
        return await self._state(room_id, "m.room.encryption") is not None

    async def direct_room(self, user_id: str) -> str:
        """A room for a user and the bot alone. The one of the last time while the user has not
        left it and nobody else came; otherwise a new one, to which the user is invited.

        https://spec.matrix.org/v1.16/client-server-api/#direct-messaging
        """
        path = Path.v3.user[self.user_id].account_data["m.direct"]
        try:
            known = await self._ask(Method.GET, path)
        except MNotFound:
            known = {}
        joined, rooms = await self.joined_rooms(), known.get(user_id)
        for room_id in rooms if isinstance(rooms, list) else ():
            if room_id in joined and await self._present(room_id) == {self.user_id, user_id}:
                return str(room_id)
        content = {**DIRECT_ROOM, "invite": [user_id]}
        room_id = _text(await self._ask(Method.POST, Path.v3.createRoom, content), "room_id")
        await self._ask(Method.PUT, path, {**known, user_id: [room_id]})
        return room_id

    async def _present(self, room_id: str) -> set[str]:
        """Who is in a room, or may come in at once."""
        answer = await self._ask(Method.GET, Path.v3.rooms[room_id].members)
        members = [member for member in _list(answer, "chunk") if isinstance(member, dict)]
        return {
            _text(member, "state_key")
            for member in members
            if isinstance(content := member.get("content"), dict)
            and content.get("membership") in _PRESENT
        }

    async def _state(
        self, room_id: str, kind: str, query: dict[str, str] | None = None
    ) -> dict[str, Any] | None:
        try:
            return await self._ask(Method.GET, Path.v3.rooms[room_id].state[kind], query=query)
        except MNotFound:
            return None

    async def _ask(
        self,
        method: Method,
        path: PathBuilder,
        content: dict[str, Any] | AsyncIterable[bytes] | None = None,
        *,
        headers: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        # The registration's own user is another one, which may not sync.
        query = {**(query or {}), "user_id": self.user_id}
        try:
            answer = await self._api.request(
                method, path, cast(Any, content), headers=headers, query_params=query
            )
        except (ValueError, TypeError) as error:  # mautrix takes every body for a JSON object
            raise MatrixResponseError(f"the homeserver's answer is no JSON: {error}") from error
        if not isinstance(answer, dict):
            raise MatrixResponseError("the homeserver's answer is no JSON object")
        return answer


def _text(answer: dict[str, Any], key: str) -> str:
    value = answer.get(key)
    if not isinstance(value, str):
        raise MatrixResponseError(f"the homeserver's answer has no {key}")
    return value


def _list(answer: dict[str, Any], key: str) -> list[Any]:
    value = answer.get(key)
    if not isinstance(value, list):
        raise MatrixResponseError(f"the homeserver's answer has no {key}")
    return value
