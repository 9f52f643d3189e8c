"""How much of its time the homeserver gives to being read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from archiver import metrics

LONGEST_REST = 300.0

T = TypeVar("T")


class Pace:
    """One request after the other, with a rest of `rest` times as long as each took."""

    def __init__(self, rest: float) -> None:
        self._rest = rest
        self._free_at = 0.0

    async def rested(self) -> None:
        """Returns when the homeserver had its rest."""
        await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))

    async def ask(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer to a request, which begins when it may."""
        await self.rested()
        started = time.monotonic()
        answer = await request()
        took = time.monotonic() - started
        self._free_at = started + took + min(self._rest * took, LONGEST_REST)
        metrics.ROOM_SECONDS.observe(took)
        return answer
