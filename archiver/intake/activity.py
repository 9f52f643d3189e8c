"""In which rooms something happens: gathered in memory, written in batches, beside the pushes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Any, TypeGuard

import structlog

from archiver.capture.rows import ID_MAX_BYTES
from archiver.catalogue import moments, rooms
from archiver.catalogue.moments import Moment
from archiver.db.pool import DATABASE_AWAY, Pool

FLUSH_SECONDS = 5.0

log = structlog.get_logger(__name__)


def rooms_of(events: Iterable[Any]) -> set[str]:
    """The rooms of raw events, whatever their type; what cannot be a room's id is left out."""
    named = (event.get("room_id") for event in events if isinstance(event, dict))
    return {room_id for room_id in named if _is_room_id(room_id)}


def _is_room_id(value: Any) -> TypeGuard[str]:
    """True for what PostgreSQL takes as text, too: what prints has neither NUL nor half a pair of
    surrogates."""
    return (
        isinstance(value, str)
        and value.startswith("!")
        and value.isprintable()
        and len(value.encode()) <= ID_MAX_BYTES
    )


class Activity:
    """The rooms of the pushes since the last flush.

    `every` is how often active rooms are compared with history; None for never.
    """

    def __init__(self, pool: Pool, every: timedelta | None) -> None:
        self._pool = pool
        self._every = every
        self._rooms: set[str] = set()
        self._pushed = False

    def pushed(self, room_ids: Collection[str]) -> None:
        """A push came and was recorded, with events of these rooms, if any."""
        self._pushed = True
        self._rooms.update(room_ids)

    async def run(self) -> None:
        """Flushes every FLUSH_SECONDS until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Writes what was gathered; what cannot be written waits for the next time."""
        if not self._pushed:
            return
        noted = set(self._rooms)
        try:
            async with asyncio.timeout(FLUSH_SECONDS), self._pool.acquire() as conn:
                await rooms.active(conn, noted, self._every)
                await moments.note(conn, Moment.PUSH)
        except DATABASE_AWAY as error:
            log.warning("the rooms' activity is not noted yet", reason=str(error))
            return
        self._rooms -= noted
        self._pushed = bool(self._rooms)
