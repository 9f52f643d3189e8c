"""Long work in steps leaves a good part of the time to those who read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

SHARE = 0.75  # of the time that a step took
LONGEST_REST = 1.0  # seconds

T = TypeVar("T")


async def gently(steps: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same steps, with a rest behind each by how long it took."""
    async with aclosing(steps):
        began = time.monotonic()
        async for step in steps:
            took = time.monotonic() - began
            yield step
            await asyncio.sleep(min(took * SHARE, LONGEST_REST))
            began = time.monotonic()
