"""The user we act as. Never as a person, and with no more power than the registration gives."""

from __future__ import annotations

import asyncio
import logging
import secrets
from itertools import chain, repeat
from typing import cast

import aiohttp
import structlog
from mautrix.api import HTTPAPI, Method, Path
from mautrix.appservice import AppServiceAPI
from mautrix.appservice.state_store import ASStateStore
from mautrix.client.state_store import MemoryStateStore
from mautrix.errors import MatrixError, MForbidden
from mautrix.types import UserID, VersionsResponse
from mautrix.util.logging import TraceLogger

from archiver.matrix.registration import Registration

RETRY_SECONDS = (1, 2, 5, 10, 30)
AWAY = (MatrixError, aiohttp.ClientError, OSError, TimeoutError)

log = structlog.get_logger(__name__)


class _MemoryState(ASStateStore, MemoryStateStore):
    """mautrix asks for a place to note which users it has registered."""

    def __init__(self) -> None:
        ASStateStore.__init__(self)
        MemoryStateStore.__init__(self)


class Bot:
    """Our bot's account on the homeserver."""

    def __init__(
        self, session: aiohttp.ClientSession, homeserver_url: str, registration: Registration
    ) -> None:
        self._registration = registration
        quiet = cast(TraceLogger, logging.getLogger("mautrix"))
        self._stranger = HTTPAPI(homeserver_url, client_session=session, log=quiet)
        self._intent = AppServiceAPI(
            homeserver_url,
            bot_mxid=UserID(registration.bot),
            token=registration.as_token,
            log=quiet,
            state_store=_MemoryState(),
            client_session=session,
        ).bot_intent()

    async def register(self) -> None:
        """Creates the account where it is missing. Raises what mautrix does.

        https://spec.matrix.org/v1.16/application-service-api/#server-admin-style-permissions
        """
        await self._intent.ensure_registered()

    async def ping(self) -> int:
        """Lets the homeserver call us, so that it pushes what it held back, at once.

        Returns the round trip in milliseconds. Raises what mautrix does.
        https://spec.matrix.org/v1.16/application-service-api/#post_matrixclientv1appserviceappserviceidping
        """
        return int(await self._intent.appservice_ping(self._registration.id, secrets.token_hex(8)))

    async def versions(self) -> list[str]:
        """The versions of the specification that the homeserver speaks.

        Asked without a token: Synapse refuses one that it does not know even here.
        """
        answer = await self._stranger.request(Method.GET, Path.versions)
        return [str(version) for version in VersionsResponse.deserialize(answer).versions]

    async def whoami(self) -> str:
        """The user id that the homeserver takes us for. Raises what mautrix does."""
        return str((await self._intent.whoami()).user_id)

    async def is_admin(self) -> bool:
        """True when an administrator made the bot one, which opens the admin API to it."""
        path = Path.synapse_admin.v1.users[self._registration.bot].admin
        try:
            answer = await self._intent.api.request(Method.GET, path)
        except MForbidden:
            return False
        return bool(answer.get("admin"))

    async def try_ping(self) -> bool:
        """A ping whose failure is only logged. True when the homeserver reached us."""
        try:
            duration = await self.ping()
        except AWAY as error:
            log.warning("the homeserver does not reach us", reason=str(error))
            return False
        log.info("the homeserver reaches us", milliseconds=duration)
        return True

    async def announce(self, *, ping: bool) -> None:
        """Registers, and pings if asked to, again and again until the homeserver answers."""
        for seconds in chain(RETRY_SECONDS, repeat(RETRY_SECONDS[-1])):
            if await self._try_register() and (not ping or await self.try_ping()):
                return
            await asyncio.sleep(seconds)

    async def _try_register(self) -> bool:
        try:
            await self.register()
        except AWAY as error:
            log.warning("the homeserver is not ready for us", reason=str(error))
            return False
        return True
