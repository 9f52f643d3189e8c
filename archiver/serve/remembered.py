"""What the database said a moment ago, so that a request need not ask it again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

from archiver.serve.database import DatabaseUnavailable, connection

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

REMEMBER_SECONDS = 10.0
MOST_REMEMBERED = 10_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memory(Generic[K, V]):
    """Values by their keys, each until a moment of `time.monotonic()`; the oldest make room."""

    def __init__(self) -> None:
        self._known: dict[K, tuple[V, float]] = {}

    def get(self, key: K) -> V | None:
        """What is known, unless its time is over."""
        value, until = self._known.get(key, (None, 0.0))
        return value if time.monotonic() < until else None

    def last(self, key: K) -> V | None:
        """What is known, or was lately."""
        return self._known.get(key, (None, 0.0))[0]

    def put(self, key: K, value: V, until: float) -> None:
        """Knows it from now on."""
        self._known.pop(key, None)
        if len(self._known) >= MOST_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[key] = (value, until)

    def drop(self, key: K) -> None:
        """Knows it no longer."""
        self._known.pop(key, None)

    def clear(self) -> None:
        """Knows nothing any more."""
        self._known.clear()


class Remembered(Generic[K, V]):
    """Looks things up by their keys, and remembers each that was found for a few seconds.

    `forget` is to be called when any of them changes, wherever that happens.
    """

    def __init__(self, pool: Pool, look: Callable[[Connection, K], Awaitable[V | None]]) -> None:
        self._pool = pool
        self._look = look
        self._memory = Memory[K, V]()
        self._changes = 0

    def __contains__(self, key: K) -> bool:
        """True for what was found lately, though it may have to be looked up again."""
        return self._memory.last(key) is not None

    def forget(self) -> None:
        """Look everything up again."""
        self._memory.clear()
        self._changes += 1

    async def find(self, key: K) -> V | None:
        """None: there is none. Raises DatabaseUnavailable, but not for what was found lately."""
        known = self._memory.get(key)
        if known is not None:
            return known
        changes = self._changes
        try:
            async with connection(self._pool) as conn:
                found = await self._look(conn, key)
        except DatabaseUnavailable:
            last = self._memory.last(key)
            if last is None:
                raise
            return last  # without the database there is no media to see, but how the archive does
        self._memory.drop(key)
        # Unless something changed since it was looked up: it may have been this.
        if found is not None and changes == self._changes:
            self._memory.put(key, found, time.monotonic() + REMEMBER_SECONDS)
        return found
