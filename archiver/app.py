"""The only place that builds the parts and wires them together."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager as Context
from contextlib import AsyncExitStack, nullcontext
from enum import StrEnum

import structlog

from archiver.base import Base, open_base
from archiver.capture.policy import CapturePolicy
from archiver.config import Config
from archiver.control.asked import Means
from archiver.control.building import start_control_room
from archiver.db.listen import Listener
from archiver.fetch.again import again
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
from archiver.keep.repair import Repairer
from archiver.keep.retention import Expiry, Retention
from archiver.keep.rounds import Rounds
from archiver.keep.sealing import Sealer
from archiver.matrix.bot import Bot
from archiver.matrix.history import History
from archiver.matrix.registration import Registration, load_registration
from archiver.matrix.speech import Speech
from archiver.processes import children, door, is_child
from archiver.serve.access import configured
from archiver.serve.listening import listening
from archiver.serve.server import Serving
from archiver.signals import Stopped, until_signalled
from archiver.store.opening import open_store
from archiver.variants.background import Background
from archiver.variants.maker import Maker, open_maker

log = structlog.get_logger(__name__)


class Part(StrEnum):
    """What one process can do; by default it does all of it."""

    INTAKE = "intake"
    WORKER = "worker"
    SERVE = "serve"
    BOT = "bot"


async def run(config: Config, parts: Collection[Part] = tuple(Part)) -> None:
    """Runs the archive until SIGINT or SIGTERM. Raises OperationError and ConfigError."""
    registration = load_registration(config.appservice.registration, config.homeserver.server_name)
    policy = capture_policy(config, registration)
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
                    app = _serving(base, policy, listener, maker, demand).application()
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
                    _start_mending(base, registration, group)
                    _start_expiring(base, group)
                    group.create_task(Sealer(base.pool).run())
                if Part.BOT in parts:
                    group.create_task(bot.announce(ping=Part.INTAKE in parts))
                    work_with = means(base, registration)
                    start_control_room(work_with, base.session, listener, group)
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
    policy, lease = capture_policy(config, registration), config.worker.lease
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
    reader, policy = history(base, registration), capture_policy(config, registration)
    reconciler = Reconciler(base.pool, reader, policy, config.history.reconcile_every)
    watch = Watch(config.homeserver.url, bot.try_ping, reconciler.restarted)
    group.create_task(reconciler.run())
    group.create_task(watch.run())


def _start_mending(base: Base, registration: Registration, group: asyncio.TaskGroup) -> None:
    """What finds damage, and what fetches damaged bytes again."""
    rules, fetch = base.config.worker, again(_fetching(base, registration))
    group.create_task(Repairer(base.pool, base.store, fetch).run())
    if rules.verify_rate is not None:
        rounds = Rounds(base.pool, base.store, rules.verify_rate, rules.verify_every)
        group.create_task(rounds.run())


def _start_making(base: Base, maker: Maker, group: asyncio.TaskGroup) -> None:
    """One helper is left to those who ask for something."""
    if base.config.thumbnails.background:
        for _ in range(max(1, base.config.thumbnails.helpers - 1)):
            group.create_task(Background(base.pool, maker).run())


def _start_expiring(base: Base, group: asyncio.TaskGroup) -> None:
    rules, every = base.config.retention.rules, base.config.retention.every
    if rules:
        retention = Retention(base.pool, rules, base.config.homeserver.server_name)
        group.create_task(Expiry(base.pool, retention, every).run())


def history(base: Base, registration: Registration) -> History:
    """The homeserver's rooms as the bot reads them."""
    url = base.config.homeserver.url
    return History(base.session, url, registration.as_token, registration.bot)


def means(base: Base, registration: Registration) -> Means:
    """What commands work with."""
    speech = Speech(base.session, base.config.homeserver.url, registration)
    reader, policy = history(base, registration), capture_policy(base.config, registration)
    return Means(base.config, base.pool, base.store, reader, speech, policy)


def _intake(
    base: Base, registration: Registration, recovery: Recovery, activity: Activity
) -> Intake:
    config, told = base.config, (recovery.push_refused, activity.pushed)
    policy, bot = capture_policy(config, registration), registration.bot
    return Intake(base.pool, registration.hs_token, bot, config.bot.prefix, policy, *told)


def _serving(
    base: Base, policy: CapturePolicy, listener: Listener, maker: Maker, demand: Demand | None
) -> Serving:
    hides = base.config.capture.on_redaction != "keep"
    access = configured(base.session, base.config.homeserver, base.config.serve)
    return Serving(
        base.pool, base.store, listener, policy, access, maker, counts=not is_child(),
        hides_redacted=hides, hot_cache=base.config.serve.hot_cache, demand=demand,
    )  # fmt: skip


def capture_policy(config: Config, registration: Registration) -> CapturePolicy:
    """What the configuration leaves out, and what our own bot says."""
    rooms, remote_media = config.capture.rooms, config.capture.remote_media
    only, excluded = frozenset(rooms.only), frozenset(rooms.except_)
    server_name, bot = config.homeserver.server_name, registration.bot
    prefix = config.bot.prefix
    return CapturePolicy(server_name, only, excluded, remote_media, bot, prefix)


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
