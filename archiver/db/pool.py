"""The pool of connections, and what counts as the database being away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

from archiver.errors import OperationError

# Text, because asyncpg's classes take parameters in their type stubs only.
Row: TypeAlias = "asyncpg.Record"
Connection: TypeAlias = "asyncpg.Connection[Row] | PoolConnectionProxy[Row]"
Pool: TypeAlias = "asyncpg.Pool[Row]"

START_SECONDS = 5.0
RETRY_SECONDS = 0.5

# It answers, and does not let us in: told at once at the start, and an outage later on.
LOCKED_OUT = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)

# The server or the way to it failed, not the statement: the same call may succeed later.
DATABASE_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # A killed server's last words leave a connection between two states, as asyncpg calls it.
    asyncpg.InternalClientError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    *LOCKED_OUT,
)


@asynccontextmanager
async def open_pool(dsn: str, max_size: int) -> AsyncIterator[Pool]:
    """A pool that is closed on exit. Raises OperationError when the database stays away."""
    pool = await _connect(dsn, max_size)
    try:
        yield pool
    finally:
        await _close(pool)


async def _connect(dsn: str, max_size: int) -> Pool:
    """Waits a little for a server that is still starting; a wrong password is told at once."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=max_size,
                command_timeout=60,
                reset=_nothing_to_reset,
                server_settings={"application_name": "matrix-media-archiver"},
            )
        except ValueError:  # its own words could show a part of the password
            raise OperationError(
                "database.url cannot be read: it is like postgresql://user:password@host/name, "
                "and any of / : @ # ? % in the password is written as %2F %3A %40 %23 %3F %25"
            ) from None
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            away = isinstance(error, DATABASE_AWAY) and not isinstance(error, LOCKED_OUT)
            if not away or time.monotonic() > deadline:
                raise OperationError(
                    f"the database does not answer ({error}): "
                    "check database.url and that PostgreSQL runs"
                ) from error
        await asyncio.sleep(RETRY_SECONDS)


async def _nothing_to_reset(_conn: Connection) -> None:
    """Nobody here changes a connection's settings, so a statement at every return is saved."""


async def _close(pool: Pool) -> None:
    try:
        await pool.close()
    except DATABASE_AWAY:
        pool.terminate()
