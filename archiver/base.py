"""What every part and command stands on: the database, the stores, a session for HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp

from archiver.config import Config
from archiver.db.embedded import EmbeddedPostgres
from archiver.db.migrate import bring_up_to_date
from archiver.db.pool import Pool, open_pool
from archiver.store.hybrid import HybridStore
from archiver.store.opening import former_store, object_store
from archiver.store.postgres import PostgresStore

MOST_CONNECTIONS = 50  # the embedded server takes 200, and other processes have their share
DISK_THREADS = 16


@dataclass(frozen=True)
class Base:
    """Opened once a process, by `open_base`."""

    config: Config
    dsn: str
    pool: Pool
    session: aiohttp.ClientSession
    store: HybridStore


@asynccontextmanager
async def open_database(config: Config) -> AsyncIterator[str]:
    """The DSN of the configured database; an embedded server runs until the end of the block."""
    if config.database.url != "embedded":
        yield config.database.url
        return
    async with EmbeddedPostgres(config.database.data_dir) as dsn:
        yield dsn


@asynccontextmanager
async def open_base(config: Config) -> AsyncIterator[Base]:
    """Database, schema and stores, closed again at the end of the block. Raises OperationError."""
    # By default there are two more than cores, too few for what waits for a disk.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(DISK_THREADS))
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(open_database(config))
        connections = min(2 * config.worker.concurrency + 12, MOST_CONNECTIONS)
        pool = await stack.enter_async_context(open_pool(dsn, connections))
        await bring_up_to_date(pool, embedded=config.database.url == "embedded")
        session = await stack.enter_async_context(http_session())
        store = HybridStore(
            PostgresStore(pool),
            object_store(config.storage),
            config.storage.inline_limit,
            former_store(config.storage),
        )
        stack.push_async_callback(store.close)
        yield Base(config, dsn, pool, session, store)


@asynccontextmanager
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    """For the homeserver, and whom it redirects to: without cookies."""
    async with aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0),
        read_bufsize=256 * 1024,
    ) as session:
        yield session
