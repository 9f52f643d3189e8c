"""LISTEN on a connection of its own, for as long as the process runs."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import asyncpg
import structlog

from archiver.db.pool import DATABASE_AWAY

RECONNECT_AFTER = 2.0

log = structlog.get_logger(__name__)


class Listener:
    """Tells this process what others NOTIFY.

    A notification may be missed while the database is away, so whoever listens is also called
    once after every (re)connection. `connected`: whether it is listening, to every channel.
    """

    def __init__(self, dsn: str) -> None:
        self.connected = False
        self._dsn = dsn
        self._callbacks: defaultdict[str, list[Callable[[str | None], None]]] = defaultdict(list)

    def on(self, channel: str, callback: Callable[[], None]) -> None:
        """Calls back for every notification on `channel`. To be said before `run`."""
        self.on_payload(channel, lambda _payload: callback())

    def on_payload(self, channel: str, callback: Callable[[str | None], None]) -> None:
        """The same, with what was sent along; None after a (re)connection: it may be anything."""
        self._callbacks[channel].append(callback)

    async def run(self) -> None:
        """Listens until cancelled."""
        while True:
            try:
                await self._listen()
            except DATABASE_AWAY as error:
                log.warning("no longer listening to the database", reason=str(error))
            await asyncio.sleep(RECONNECT_AFTER)

    async def _listen(self) -> None:
        conn = await asyncpg.connect(self._dsn)
        closed = asyncio.Event()
        try:
            conn.add_termination_listener(lambda _conn: closed.set())
            for channel in self._callbacks:
                await conn.add_listener(channel, self._notified)
                self._notified(None, 0, channel, None)
            self.connected = not closed.is_set()
            await closed.wait()
        finally:
            self.connected = False
            conn.terminate()

    def _notified(self, _conn: Any, _pid: int, channel: str, payload: Any) -> None:
        for callback in self._callbacks[channel]:
            callback(payload)
