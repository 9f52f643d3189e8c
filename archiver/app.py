"""The only place that builds the parts and wires them together."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

import aiohttp
import structlog
from aiohttp import web

from archiver.capture.policy import CapturePolicy
from archiver.config import Address, Config, S3Storage
from archiver.db.embedded import EmbeddedPostgres
from archiver.db.listen import Listener
from archiver.db.migrate import is_empty, migrate, pending
from archiver.db.pool import Pool, open_pool
from archiver.errors import OperationError, StoreUnavailable
from archiver.fetch.archive import Parts
from archiver.fetch.download import MediaSource
from archiver.fetch.worker import Worker
from archiver.intake.recovery import Recovery
from archiver.intake.transactions import Intake
from archiver.matrix.bot import Bot
from archiver.matrix.registration import Registration, load_registration
from archiver.serve.server import Serving
from archiver.store.base import BlobStore
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.s3 import S3Store
from archiver.store.spool import Spool

STORE_RETRY_SECONDS = 3.0
SMALL = 1024 * 1024  # bodies up to here never touch the spool's disk, whatever the inline limit
MOST_CONNECTIONS = 50  # the embedded server takes 60, and other processes have their share
DISK_THREADS = 16
# Whoever signals a process and its group (timeout(1) does) means it once.
ONE_REQUEST_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Part(StrEnum):
    """What one process can do; by default it does all of it."""

    INTAKE = "intake"
    WORKER = "worker"
    SERVE = "serve"
    BOT = "bot"


class _Stopped(Exception):
    """A signal asked us to end."""


@dataclass(frozen=True)
class Base:
    """What every part and command stands on."""

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
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(open_database(config))
        connections = min(2 * config.worker.concurrency + 12, MOST_CONNECTIONS)
        pool = await stack.enter_async_context(open_pool(dsn, connections))
        await _bring_up_to_date(pool, embedded=config.database.url == "embedded")
        session = await stack.enter_async_context(http_session())
        store = HybridStore(
            PostgresStore(pool), object_store(config, session), config.storage.inline_limit
        )
        stack.push_async_callback(store.close)
        yield Base(config, dsn, pool, session, store)


def object_store(config: Config, session: aiohttp.ClientSession) -> BlobStore:
    """The store that `storage.objects` chooses."""
    if config.storage.objects == "filesystem":
        return FilesystemStore(config.storage.filesystem.path)
    s3: S3Storage = config.storage.s3
    return S3Store(**dict(s3), session=session)


async def run(config: Config, parts: Collection[Part] = tuple(Part)) -> None:
    """Runs the archive until SIGINT or SIGTERM. Raises OperationError and ConfigError."""
    registration = load_registration(config.appservice.registration, config.homeserver.server_name)
    # By default there are two more than cores, too few for what waits for a disk.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(DISK_THREADS))
    async with open_base(config) as base, AsyncExitStack() as servers:
        listener = Listener(base.dsn)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_until_signalled())
                group.create_task(_open_store(base.store))
                if Part.SERVE in parts:
                    app = Serving(base.pool, base.store, listener).application()
                    await servers.enter_async_context(_listening(app, config.serve.listen))
                bot = Bot(base.session, config.homeserver.url, registration)
                if Part.INTAKE in parts:
                    recovery = Recovery(base.pool, bot.try_ping)
                    group.create_task(recovery.run())
                    app = _intake(base, registration, recovery).application()
                    await servers.enter_async_context(_listening(app, config.appservice.listen))
                if Part.WORKER in parts:
                    worker = _worker(base, registration)
                    listener.on("media_pending", worker.wake)
                    group.create_task(worker.run())
                if Part.BOT in parts:
                    group.create_task(bot.announce(ping=Part.INTAKE in parts))
                group.create_task(listener.run())
                log.info("the archive is up", parts=[str(part) for part in Part if part in parts])
        except* _Stopped:
            log.info("the archive has stopped")


def _intake(base: Base, registration: Registration, recovery: Recovery) -> Intake:
    capture = base.config.capture
    policy = CapturePolicy(
        base.config.homeserver.server_name,
        frozenset(capture.rooms.only),
        frozenset(capture.rooms.except_),
        capture.remote_media,
    )
    return Intake(
        base.pool, registration.hs_token, registration.bot, policy, recovery.push_refused
    )


def _worker(base: Base, registration: Registration) -> Worker:
    config, storage = base.config, base.config.storage
    storage.spool.mkdir(parents=True, exist_ok=True)
    downloads = config.worker.concurrency
    parts = Parts(
        base.pool,
        MediaSource(
            base.session, config.homeserver.url, registration.as_token, registration.bot, downloads
        ),
        Spool(storage.spool, max(storage.inline_limit, SMALL)),
        base.store,
        config.capture.max_size,
    )
    return Worker(
        parts,
        # As many again may be on their way into the store, so that neither side waits.
        concurrency=2 * downloads,
        lease=config.worker.lease,
        stop_within=config.worker.stop_within,
    )


async def _bring_up_to_date(pool: Pool, *, embedded: bool) -> None:
    """Migrates a database that is ours alone; one that others may care for only on command."""
    async with pool.acquire() as conn:
        if embedded or await is_empty(conn):
            for name in await migrate(conn):
                log.info("the database was migrated", migration=name)
        elif waiting := await pending(conn):
            raise OperationError(
                f"the database lacks {len(waiting)} migration(s), from {waiting[0].name} on: "
                "make a backup, then run `archiver migrate`"
            )


async def _open_store(store: HybridStore) -> None:
    """Small media need no object store, so its absence at the start stops nothing."""
    while True:
        try:
            await store.open()
        except StoreUnavailable as error:
            log.warning("the object store is away, large media wait", reason=str(error))
            await asyncio.sleep(STORE_RETRY_SECONDS)
        else:
            return


@asynccontextmanager
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    """For the homeserver and for S3; without cookies, which the one must not get of the other."""
    async with aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0),
        read_bufsize=256 * 1024,
    ) as session:
        yield session


@asynccontextmanager
async def _listening(app: web.Application, address: Address) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=10)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, *address).start()
        except OSError as error:
            raise OperationError(
                f"cannot listen on {address.host}:{address.port} ({error.strerror}): is another "
                "archiver running? appservice.listen and serve.listen choose the addresses"
            ) from error
        yield
    finally:
        await runner.cleanup()


async def _until_signalled() -> None:
    """Ends by raising at the first signal; a later one ends the process on the spot."""
    loop = asyncio.get_running_loop()
    asked_at = loop.create_future()

    def asked() -> None:
        if not asked_at.done():
            asked_at.set_result(loop.time())
        elif loop.time() - asked_at.result() > ONE_REQUEST_SECONDS:
            os._exit(1)

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, asked)
    await asked_at
    log.info("stopping; once more to stop at once")
    raise _Stopped
