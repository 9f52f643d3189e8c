"""The readers' way to the database: short questions, answered soon or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from archiver.db.pool import DATABASE_AWAY
from archiver.errors import StoreUnavailable

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

ANSWER_SECONDS = 10.0


class DatabaseUnavailable(StoreUnavailable):
    """The database does not answer, or not soon enough."""


@asynccontextmanager
async def connection(pool: Pool, seconds: float = ANSWER_SECONDS) -> AsyncIterator[Connection]:
    """A connection for so long. Raises DatabaseUnavailable."""
    async with answering(), asyncio.timeout(seconds), pool.acquire() as conn:
        yield conn


@asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """Work that asks the database by itself. Raises DatabaseUnavailable where that is away."""
    try:
        yield
    except DATABASE_AWAY as error:
        raise DatabaseUnavailable(
            f"the database does not answer ({str(error) or type(error).__name__}):"
            " check database.url and that PostgreSQL runs"
        ) from error
