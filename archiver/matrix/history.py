"""The homeserver's history of a room, as far as our bot may read it.

An administrator's bot reads every room through Synapse's admin API, without being in any; another
one reads the rooms that it is in. Never as a person.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from archiver.errors import (
    FetchFailed,
    HomeserverUnavailable,
    Retryable,
    RoomUnreadable,
    TokenRefused,
)
from archiver.matrix.refusal import read_refusal

ROOMS_A_PAGE = 500
# Being made an administrator shows after so long at the latest.
REMEMBER_SECONDS = 60.0

NOTHING_TO_READ = (
    "the bot may read no room, so pushes that got lost cannot be found: make the bot an "
    "administrator of the homeserver (README, old messages), or invite it to rooms"
)

_TIMEOUT = aiohttp.ClientTimeout(total=300, connect=10, sock_read=120)
_CLIENT = "_matrix/client/v3"
_CLIENT_V1 = "_matrix/client/v1"
_ADMIN = "_synapse/admin/v1"

Direction = Literal["b", "f"]


class History:
    """Reads rooms as our bot. Every call raises the Retryable errors of errors.py, and
    RoomUnreadable where trying again will not help.

    Bodies are returned as they came, because an event in them may be hostile.
    """

    def __init__(
        self, session: aiohttp.ClientSession, homeserver_url: str, as_token: str, bot: str
    ) -> None:
        self._session = session
        self._base = URL(homeserver_url)
        self._headers = {"Authorization": f"Bearer {as_token}"}
        self._bot = bot
        self._admin = False
        self._asked_at = float("-inf")

    async def is_admin(self) -> bool:
        """True when the homeserver lets us use its admin API; asked once a minute at most.

        https://element-hq.github.io/synapse/latest/admin_api/user_admin_api.html
        """
        if time.monotonic() - self._asked_at > REMEMBER_SECONDS:
            url = _at(self._base / _ADMIN / "users", self._bot) / "admin"
            try:
                self._admin = (await self._ask(url, {})).get("admin") is True
            except RoomUnreadable:
                self._admin = False
            self._asked_at = time.monotonic()
        return self._admin

    async def server_version(self) -> str | None:
        """The homeserver's own version, asked anew each time; None where it answers, and does not
        tell.

        https://element-hq.github.io/synapse/latest/admin_api/version_api.html
        """
        try:
            version = (await self._ask(self._base / _ADMIN / "server_version", {})).get(
                "server_version"
            )
        except RoomUnreadable:
            return None
        return version if isinstance(version, str) else None

    async def rooms(self) -> list[str]:
        """The ids of all rooms that we may read.

        https://element-hq.github.io/synapse/latest/admin_api/rooms.html#list-room-api
        """
        if not await self.is_admin():
            answer = await self._ask(self._base / _CLIENT / "joined_rooms", {})
            return _texts(answer.get("joined_rooms"))
        found: list[str] = []
        query = {"limit": str(ROOMS_A_PAGE), "from": "0"}
        while True:
            answer = await self._ask(self._base / _ADMIN / "rooms", query)
            rooms = answer.get("rooms")
            found += _texts(
                [room.get("room_id") for room in rooms or () if isinstance(room, dict)]
            )
            if not rooms or answer.get("next_batch") is None:
                return list(dict.fromkeys(found))
            query["from"] = str(answer["next_batch"])

    async def room_id(self, alias: str) -> str:
        """The room that an alias names. Raises RoomUnreadable where there is none.

        https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3directoryroomroomalias
        """
        url = _at(self._base / _CLIENT / "directory" / "room", alias)
        room_id = (await self._ask(url, {})).get("room_id")
        if not isinstance(room_id, str):
            raise RoomUnreadable("the homeserver does not say which room this is")
        return room_id

    async def token_at(self, room_id: str, at: datetime) -> str | None:
        """A token behind the first event that was sent at a time or later, so that reading back
        from it passes all that is older; None where the homeserver cannot tell.

        https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event
        """
        query = {"ts": str(int(at.timestamp() * 1000)), "dir": "f"}
        admin = await self.is_admin()
        finder = self._base / (_ADMIN if admin else _CLIENT_V1) / "rooms"
        try:
            found = await self._ask(_at(finder, room_id) / "timestamp_to_event", query)
            url = _at(await self._room(room_id) / "context", str(found.get("event_id")))
            end = (await self._ask(url, {"limit": "1"})).get("end")
        except (RoomUnreadable, FetchFailed):
            return None
        return end if isinstance(end, str) else None

    async def messages(
        self, room_id: str, direction: Direction, token: str | None, limit: int
    ) -> bytes:
        """One page of a room's events; without a `token` it starts at the newest.

        https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3roomsroomidmessages
        """
        query = {"dir": direction, "limit": str(limit)}
        if token is not None:
            query["from"] = token
        return await self._read(room_id, "messages", query)

    async def state(self, room_id: str) -> bytes:
        """The room's present state as a body with a list under `state`, members included.

        https://element-hq.github.io/synapse/latest/admin_api/rooms.html#room-state-api
        """
        body = await self._read(room_id, "state", {})
        return body if body.lstrip().startswith(b"{") else b'{"state":' + body + b"}"

    async def original(self, event_id: str) -> bytes | None:
        """An event as it was before a redaction emptied it, under `event`, while the homeserver
        has it; None when it has not, or when we are no administrator.

        https://element-hq.github.io/synapse/latest/admin_api/fetch_event.html
        """
        if not await self.is_admin():
            return None
        try:
            return await self._get(_at(self._base / _ADMIN / "fetch_event", event_id), {})
        except RoomUnreadable:
            return None

    async def _read(self, room_id: str, what: str, query: dict[str, str]) -> bytes:
        """Once more as a member, should the bot be no administrator any longer."""
        was_admin = await self.is_admin()
        try:
            return await self._get(await self._room(room_id) / what, query)
        except RoomUnreadable:
            if not was_admin or await self.is_admin():
                raise
            return await self._get(await self._room(room_id) / what, query)

    async def _room(self, room_id: str) -> URL:
        api = _ADMIN if await self.is_admin() else _CLIENT
        return _at(self._base / api / "rooms", room_id)

    async def _ask(self, url: URL, query: dict[str, str]) -> dict[str, Any]:
        try:
            answer = orjson.loads(await self._get(url, query))
        except orjson.JSONDecodeError as error:
            raise FetchFailed(f"the homeserver's answer is no JSON: {error}") from error
        if not isinstance(answer, dict):
            raise FetchFailed("the homeserver's answer is no JSON object")
        return answer

    async def _get(self, url: URL, query: dict[str, str]) -> bytes:
        try:
            async with self._session.get(
                url.with_query({**query, "user_id": self._bot}),
                headers=self._headers,
                allow_redirects=False,
                timeout=_TIMEOUT,
            ) as response:
                if response.status == 200:
                    return await response.read()
                refusal = await read_refusal(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise HomeserverUnavailable(f"the homeserver does not answer: {reason}") from error
        if refusal.status == 403:
            self._asked_at = float("-inf")
            raise RoomUnreadable(
                "the bot may not read it: make the bot an administrator of the homeserver "
                "(README, old messages), or invite it"
            )
        if refusal.status == 404:
            raise RoomUnreadable("the homeserver does not have it, or not any more")
        refused = refusal.error(by_homeserver=True)
        if refusal.status == 400 and "from" in query:
            raise TokenRefused(str(refused))
        raise refused if isinstance(refused, Retryable) else FetchFailed(str(refused))


def _at(url: URL, name: str) -> URL:
    """An identifier as one segment of a path, whatever is in it."""
    return url.joinpath(quote(name, safe=""), encoded=True)


def _texts(values: object) -> list[str]:
    found = values if isinstance(values, list) else []
    return [value for value in found if isinstance(value, str)]
