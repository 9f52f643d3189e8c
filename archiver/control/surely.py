"""What must be written because it was already done: as soon as the database answers again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from typing import TypeVar

import structlog

from archiver.db.pool import DATABASE_AWAY, Connection, Pool

PAUSES = (0.2, 0.5, 1, 2, 5)

T = TypeVar("T")

log = structlog.get_logger(__name__)


async def surely(pool: Pool, write: Callable[[Connection], Awaitable[T]]) -> T:
    """What `write` returns, which is called in a transaction until it works."""
    for seconds in chain(PAUSES, repeat(PAUSES[-1])):
        try:
            async with pool.acquire() as conn, conn.transaction():
                return await write(conn)
        except DATABASE_AWAY as error:
            log.warning("the database does not answer", reason=str(error), again_in_s=seconds)
        await asyncio.sleep(seconds)
    raise AssertionError
