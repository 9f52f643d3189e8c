"""Notices that the homeserver, or the proxy before it, was restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import aiohttp
import structlog

# Below the five seconds after which Apache drops an idle connection.
EVERY_SECONDS = 4.0
# A proxy that drops idle connections sooner than we ask would look like one that restarts.
STEADY_ANSWERS = 2
_TIMEOUT = aiohttp.ClientTimeout(total=10)

log = structlog.get_logger(__name__)


class Watch:
    """Asks for the versions over one connection that is kept alive.

    It was restarted when it answers again after it did not, or when the connection, kept so far,
    had to be made anew. A false alarm costs one comparison of all rooms. `ask` makes the
    homeserver push what it still holds back, and comes first; then `restarted` is called.
    """

    def __init__(
        self,
        homeserver_url: str,
        ask: Callable[[], Awaitable[object]],
        restarted: Callable[[], None],
        *,
        every: float = EVERY_SECONDS,
    ) -> None:
        self._url = f"{homeserver_url}/_matrix/client/versions"
        self._ask = ask
        self._restarted = restarted
        self._every = every
        self._steady = 0  # answers that came over the present connection
        self._anew = False
        self._was_away = False

    async def run(self) -> None:
        """Watches until cancelled."""
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(self._connected)
        connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=60 + 2 * self._every)
        async with aiohttp.ClientSession(
            connector=connector, trace_configs=[trace], cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            while True:
                if await self._was_restarted(session):
                    log.info("the homeserver was restarted")
                    await self._ask()
                    self._restarted()
                await asyncio.sleep(self._every)

    async def _was_restarted(self, session: aiohttp.ClientSession) -> bool:
        self._anew = False
        kept = await self._answers(session)
        if kept is None:
            if not self._was_away:
                log.warning("the homeserver is away")
            self._was_away, self._steady = True, 0
            return False
        suspicious = self._was_away or (self._anew and self._steady >= STEADY_ANSWERS)
        self._was_away = False
        self._steady = (0 if self._anew else self._steady) + 1 if kept else 0
        return suspicious

    async def _answers(self, session: aiohttp.ClientSession) -> bool | None:
        """None: no answer, or only a proxy's. Else whether the connection is kept after it."""
        try:
            async with session.get(self._url, allow_redirects=False, timeout=_TIMEOUT) as response:
                await response.read()
                if response.status >= 500:
                    return None
                return response.headers.get("Connection", "").lower() != "close"
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    async def _connected(
        self,
        _session: aiohttp.ClientSession,
        _context: SimpleNamespace,
        _params: aiohttp.TraceConnectionCreateEndParams,
    ) -> None:
        self._anew = True
