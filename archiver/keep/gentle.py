"""Long work in steps leaves half of the time to those who read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

LONGEST_REST = 1.0  # seconds

T = TypeVar("T")


async def gently(steps: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same steps, with a rest behind each for as long as it took."""
    async with aclosing(steps):
        began = time.monotonic()
        async for step in steps:
            took = time.monotonic() - began
            yield step
            await asyncio.sleep(min(took, LONGEST_REST))
            began = time.monotonic()
