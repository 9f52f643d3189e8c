"""What the tests of fetching stand on: rows of the queue, and the parts of an archive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import asyncpg

from archiver.base import http_session
from archiver.catalogue import queue
from archiver.catalogue.queue import Job
from archiver.db.pool import Connection, Pool
from archiver.fetch.archive import Parts
from archiver.fetch.download import MediaSource
from archiver.model import Mxc
from archiver.store.base import BlobStore
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.spool import Spool
from tests.support.homeserver import BOT, TOKEN, mxc

INLINE_LIMIT = 10_000


async def add(
    conn: Connection | Pool, *names: str, due: timedelta = timedelta(), state: str = "pending"
) -> None:
    """Media of the test's homeserver, which became due `due` from now."""
    await conn.executemany(
        "INSERT INTO media (server_name, media_id, state, due_at, reason) "
        "VALUES ($1, $2, $3, now() + $4, 'a reason')",
        [(*mxc(name), state, due) for name in names],
    )


async def row(conn: Connection | Pool, media: str | Mxc) -> asyncpg.Record:
    """A media's row; `due_in` are the seconds until it is due."""
    found = await conn.fetchrow(
        "SELECT *, extract(epoch FROM due_at - now())::float8 AS due_in FROM media "
        "WHERE (server_name, media_id) = ($1, $2)",
        *(mxc(media) if isinstance(media, str) else media),
    )
    assert found is not None
    return found


async def claim(
    pool: Pool, limit: int = 1, lease: timedelta = timedelta(seconds=30), *, oldest: bool = False
) -> list[Job]:
    """Claims as a worker does; the youngest first, or the oldest."""
    async with pool.acquire() as conn:
        return await queue.claim(conn, limit, lease, oldest_first=oldest)


async def states(pool: Pool) -> dict[str, int]:
    """How many media there are of each state."""
    rows = await pool.fetch("SELECT state, count(*) FROM media GROUP BY state")
    return {record[0]: record[1] for record in rows}


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout: float = 30) -> None:
    """Polls until something is true. Raises TimeoutError that names it."""
    deadline = time.monotonic() + timeout
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s: {what}")
        await asyncio.sleep(0.01)


@asynccontextmanager
async def parts(
    pool: Pool,
    folder: Path,
    homeserver_url: str,
    *,
    objects: BlobStore | None = None,
    inline_limit: int = INLINE_LIMIT,
    max_size: int | None = None,
) -> AsyncIterator[Parts]:
    """An archive's parts, its objects below `folder` unless another store is given."""
    store = HybridStore(
        PostgresStore(pool), objects or FilesystemStore(folder / "objects"), inline_limit
    )
    await store.open()
    async with http_session() as session:
        source = MediaSource(session, homeserver_url, TOKEN, BOT, 64)
        yield Parts(pool, source, Spool(folder / "spool", inline_limit), store, max_size)


async def someone_waits(pool: Pool) -> bool:
    """True when a statement of this database waits for a lock."""
    return bool(
        await pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    )
