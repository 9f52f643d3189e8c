"""Work that rests behind each of its steps."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from archiver.keep.gentle import SHARE, gently

STEP = 0.05
STEPS = 4


async def test_it_rests_by_how_long_it_works() -> None:
    """A part of the time is left to others, and the steps come as they are."""

    async def work() -> AsyncGenerator[int, None]:
        for n in range(STEPS):
            time.sleep(STEP)  # noqa: ASYNC251  # work is not idle
            yield n

    began = time.monotonic()
    assert [n async for n in gently(work())] == list(range(STEPS))
    assert time.monotonic() - began >= (1 + SHARE) * STEPS * STEP


async def test_given_up_the_work_is_closed() -> None:
    """Whoever stops in the middle leaves nothing open behind."""
    closed = False

    async def work() -> AsyncGenerator[None, None]:
        nonlocal closed
        try:
            while True:
                yield None
        finally:
            closed = True

    async with aclosing(gently(work())) as steps:
        async for _ in steps:
            break
    assert closed
