"""What our bot says and does in rooms. It joins nothing but what it is told to."""

from __future__ import annotations

import logging
from typing import Any, cast

import aiohttp
from mautrix.api import HTTPAPI, Method, Path
from mautrix.errors import MatrixError
from mautrix.util.logging import TraceLogger

from archiver.matrix.registration import Registration

# What every call raises where its docstring says nothing else.
UNHEARD = (MatrixError, aiohttp.ClientError, OSError, TimeoutError)


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
        answer = await self._ask(Method.PUT, path, content)
        return str(answer["event_id"])

    async def _ask(self, method: Method, path: Any, content: dict[str, Any] | None = None) -> Any:
        # The registration's own user is another one, which may not sync.
        return await self._api.request(
            method, path, content, query_params={"user_id": self.user_id}
        )
