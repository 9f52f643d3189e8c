"""Asks what may hang, such as a disk that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Asking(Generic[T]):
    """A question that is not asked a second time while the first one has no answer.

    Its thread would hang as well, and threads are few.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._ask = ask
        self._seconds = seconds
        self._under_way: asyncio.Future[T] | None = None

    async def answer(self) -> T:
        """The answer, or its exception. Raises TimeoutError when it takes too long."""
        task = self._under_way or asyncio.ensure_future(self._ask())
        self._under_way = task
        if not (await asyncio.wait([task], timeout=self._seconds))[0]:
            raise TimeoutError
        self._under_way = None
        return task.result()
