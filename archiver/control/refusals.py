"""Who was not answered, and why: in the log, and in custody as often as a disk can bear."""

from __future__ import annotations

import time
from collections import OrderedDict

import structlog

from archiver.catalogue import custody
from archiver.control.heard import Heard
from archiver.db.pool import Pool

EVERY_SECONDS = 60.0
MOST_REMEMBERED = 1000

log = structlog.get_logger(__name__)


class Refusals:
    """One line of custody a minute for a sender in a room, and a thousand for all of them."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._noted: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def note(self, heard: Heard, what: str, reason: str) -> None:
        """Raises DATABASE_AWAY."""
        who = heard.sender, heard.room_id
        log.warning("refused", what=what, sender=who[0], room_id=who[1], reason=reason)
        self._forget_old()
        if who in self._noted or len(self._noted) >= MOST_REMEMBERED:
            return
        async with self._pool.acquire() as conn:
            await custody.note(conn, *who, "refused", heard.event_id, what=what, reason=reason)
        self._noted[who] = time.monotonic()

    def _forget_old(self) -> None:
        past = time.monotonic() - EVERY_SECONDS
        while self._noted and next(iter(self._noted.values())) < past:
            self._noted.popitem(last=False)
