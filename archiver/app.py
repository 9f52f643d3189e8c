"""The only place that builds the parts and wires them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager as Context
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum

import aiohttp
import structlog

from archiver.capture.policy import CapturePolicy
from archiver.config import Config
from archiver.db.embedded import EmbeddedPostgres
from archiver.db.listen import Listener
from archiver.db.migrate import bring_up_to_date
from archiver.db.pool import Pool, open_pool
from archiver.fetch.archive import Parts
from archiver.fetch.building import configured as fetching
from archiver.fetch.demand import Demand, open_demand
from archiver.fetch.pacer import Pacer
from archiver.fetch.worker import Worker
from archiver.history.backfill import Backfiller
from archiver.history.reading import FAST, GENTLE, Speed
from archiver.history.reconcile import Reconciler
from archiver.history.watch import Watch
from archiver.intake.activity import Activity
from archiver.intake.recovery import Recovery
from archiver.intake.transactions import Intake
from archiver.keep.redaction_policy import followers
from archiver.keep.redactions import Redactor
from archiver.matrix.bot import Bot
from archiver.matrix.history import History
from archiver.matrix.registration import Registration, load_registration
from archiver.processes import children, door, is_child
from archiver.serve.access import configured
from archiver.serve.listening import listening
from archiver.serve.server import Serving
from archiver.signals import Stopped, until_signalled
from archiver.store.hybrid import HybridStore
from archiver.store.opening import object_store, open_store
from archiver.store.postgres import PostgresStore
from archiver.variants.background import Background
from archiver.variants.maker import Maker, open_maker

MOST_CONNECTIONS = 50  # the embedded server takes 200, and other processes have their share
DISK_THREADS = 16

log = structlog.get_logger(__name__)


class Part(StrEnum):
    """What one process can do; by default it does all of it."""

    INTAKE = "intake"
    WORKER = "worker"
    SERVE = "serve"
    BOT = "bot"


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
    # By default there are two more than cores, too few for what waits for a disk.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(DISK_THREADS))
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(open_database(config))
        connections = min(2 * config.worker.concurrency + 12, MOST_CONNECTIONS)
        pool = await stack.enter_async_context(open_pool(dsn, connections))
        await bring_up_to_date(pool, embedded=config.database.url == "embedded")
        session = await stack.enter_async_context(http_session())
        store = HybridStore(
            PostgresStore(pool), object_store(config.storage), config.storage.inline_limit
        )
        stack.push_async_callback(store.close)
        yield Base(config, dsn, pool, session, store)


async def run(config: Config, parts: Collection[Part] = tuple(Part)) -> None:
    """Runs the archive until SIGINT or SIGTERM. Raises OperationError and ConfigError."""
    registration = load_registration(config.appservice.registration, config.homeserver.server_name)
    async with open_base(config) as base, AsyncExitStack() as servers:
        listener = Listener(base.dsn)
        making = config.storage.spool, config.thumbnails.helpers
        maker = await servers.enter_async_context(open_maker(base.pool, base.store, *making))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(until_signalled())
                group.create_task(open_store(base.store))
                demand = None
                if Part.SERVE in parts:
                    demand = await servers.enter_async_context(_demand(base, registration))
                    app = _serving(base, listener, maker, demand).application()
                    await servers.enter_async_context(listening(app, *door(config)))
                    group.create_task(children(config, base.dsn).run())
                bot = Bot(base.session, config.homeserver.url, registration)
                if Part.INTAKE in parts:
                    recovery = Recovery(base.pool, bot.try_ping)
                    group.create_task(recovery.run())
                    activity = Activity(base.pool, config.history.reconcile_every)
                    group.create_task(activity.run())
                    servers.push_async_callback(activity.flush)
                    app = _intake(base, registration, recovery, activity).application()
                    await servers.enter_async_context(listening(app, config.appservice.listen))
                if Part.WORKER in parts:
                    start_workers(base, registration, listener, group, GENTLE, demand)
                    _start_comparing(base, registration, bot, group)
                    _start_making(base, maker, group)
                if Part.BOT in parts:
                    group.create_task(bot.announce(ping=Part.INTAKE in parts))
                group.create_task(listener.run())
                log.info("the archive is up", parts=[str(part) for part in Part if part in parts])
        except* Stopped:
            log.info("the archive has stopped")


def start_workers(
    base: Base,
    registration: Registration,
    listener: Listener,
    group: asyncio.TaskGroup,
    speed: Speed = FAST,
    demand: Demand | None = None,
) -> list[asyncio.Task[None]]:
    """What fetches media and reads old messages, until cancelled."""
    config, reader = base.config, history(base, registration)
    policy, lease = capture_policy(config), config.worker.lease
    parts: dict[str, Worker | Pacer | Backfiller | Redactor] = {
        "media_pending": _worker(base, registration, demand),
        "media_paced": Pacer(base.pool, config.history.remote_rate),
        "backfill": Backfiller(base.pool, reader, policy, lease, speed),
        "redaction_due": Redactor(base.pool),
    }
    for channel, part in parts.items():
        listener.on(channel, part.wake)
    rule, delete_after = config.capture.on_redaction, config.capture.delete_after
    tidy = followers(base.pool, base.store, reader, policy, rule, delete_after)
    return [group.create_task(part.run()) for part in (*parts.values(), *tidy)]


def _start_comparing(
    base: Base, registration: Registration, bot: Bot, group: asyncio.TaskGroup
) -> None:
    config = base.config
    if config.history.reconcile_every is None:
        return
    reader, policy = history(base, registration), capture_policy(config)
    reconciler = Reconciler(base.pool, reader, policy, config.history.reconcile_every)
    watch = Watch(config.homeserver.url, bot.try_ping, reconciler.restarted)
    group.create_task(reconciler.run())
    group.create_task(watch.run())


def _start_making(base: Base, maker: Maker, group: asyncio.TaskGroup) -> None:
    """One helper is left to those who ask for something."""
    if base.config.thumbnails.background:
        for _ in range(max(1, base.config.thumbnails.helpers - 1)):
            group.create_task(Background(base.pool, maker).run())


def history(base: Base, registration: Registration) -> History:
    """The homeserver's rooms as the bot reads them."""
    url = base.config.homeserver.url
    return History(base.session, url, registration.as_token, registration.bot)


def _intake(
    base: Base, registration: Registration, recovery: Recovery, activity: Activity
) -> Intake:
    policy, told = capture_policy(base.config), (recovery.push_refused, activity.pushed)
    return Intake(base.pool, registration.hs_token, registration.bot, policy, *told)


def _serving(base: Base, listener: Listener, maker: Maker, demand: Demand | None) -> Serving:
    hides = base.config.capture.on_redaction != "keep"
    policy = capture_policy(base.config)
    access = configured(base.session, base.config.homeserver, base.config.serve)
    return Serving(
        base.pool, base.store, listener, policy, access, maker, counts=not is_child(),
        hides_redacted=hides, hot_cache=base.config.serve.hot_cache, demand=demand,
    )  # fmt: skip


def capture_policy(config: Config) -> CapturePolicy:
    """What the configuration leaves out."""
    rooms, remote_media = config.capture.rooms, config.capture.remote_media
    only, excluded = frozenset(rooms.only), frozenset(rooms.except_)
    return CapturePolicy(config.homeserver.server_name, only, excluded, remote_media)


def _fetching(base: Base, registration: Registration) -> Parts:
    """For the worker, and for what is asked for: neither waits for the other's downloads."""
    return fetching(base.config, registration, base.pool, base.session, base.store)


def _worker(base: Base, registration: Registration, demand: Demand | None) -> Worker:
    rules, parts = base.config.worker, _fetching(base, registration)
    # As many again may be on their way into the store, so that neither side waits.
    at_once = 2 * rules.concurrency
    lease, stop_within = rules.lease, rules.stop_within
    return Worker(parts, concurrency=at_once, lease=lease, stop_within=stop_within, demand=demand)


def _demand(base: Base, registration: Registration) -> Context[Demand | None]:
    if not base.config.serve.read_through:
        return nullcontext()
    return open_demand(_fetching(base, registration), base.config.worker.lease)


@asynccontextmanager
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    """For the homeserver, and whom it redirects to: without cookies."""
    async with aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0),
        read_bufsize=256 * 1024,
    ) as session:
        yield session
