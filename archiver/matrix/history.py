"""The homeserver's history of a room, as far as our bot may read it.

An administrator's bot reads every room through Synapse's admin API, without being in any; another
one reads the rooms that it is in. Never as a person.
"""

from __future__ import annotations

import time
from typing import Literal
from urllib.parse import quote

import aiohttp
import orjson
from yarl import URL

from archiver.errors import HomeserverUnavailable, RoomUnreadable
from archiver.matrix.refusal import read_refusal

ROOMS_A_PAGE = 500
# Being made an administrator shows after so long at the latest.
REMEMBER_SECONDS = 60.0

_TIMEOUT = aiohttp.ClientTimeout(total=300, connect=10, sock_read=120)
_CLIENT = "_matrix/client/v3"
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
                answer = orjson.loads(await self._get(url, {}))
                self._admin = isinstance(answer, dict) and answer.get("admin") is True
            except RoomUnreadable:
                self._admin = False
            self._asked_at = time.monotonic()
        return self._admin

    async def rooms(self) -> list[str]:
        """The ids of all rooms that we may read.

        https://element-hq.github.io/synapse/latest/admin_api/rooms.html#list-room-api
        """
        if not await self.is_admin():
            answer = orjson.loads(await self._get(self._base / _CLIENT / "joined_rooms", {}))
            return [str(room_id) for room_id in answer["joined_rooms"]]
        found: list[str] = []
        query = {"limit": str(ROOMS_A_PAGE), "from": "0"}
        while True:
            answer = orjson.loads(await self._get(self._base / _ADMIN / "rooms", query))
            found += (str(room["room_id"]) for room in answer["rooms"])
            if answer.get("next_batch") is None:
                return list(dict.fromkeys(found))
            query["from"] = str(answer["next_batch"])

    async def messages(
        self, room_id: str, direction: Direction, token: str | None, limit: int
    ) -> bytes:
        """One page of a room's events; without a `token` it starts at the newest.

        https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3roomsroomidmessages
        """
        query = {"dir": direction, "limit": str(limit)}
        if token is not None:
            query["from"] = token
        return await self._get(await self._room(room_id) / "messages", query)

    async def state(self, room_id: str) -> bytes:
        """The room's present state as a body with a list under `state`, members included.

        https://element-hq.github.io/synapse/latest/admin_api/rooms.html#room-state-api
        """
        body = await self._get(await self._room(room_id) / "state", {})
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

    async def _room(self, room_id: str) -> URL:
        api = _ADMIN if await self.is_admin() else _CLIENT
        return _at(self._base / api / "rooms", room_id)

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
        raise refusal.error(by_homeserver=True)


def _at(url: URL, name: str) -> URL:
    """An identifier as one segment of a path, whatever is in it."""
    return url.joinpath(quote(name, safe=""), encoded=True)
