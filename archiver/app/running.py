"""`archiver run`: the parts of a process, from its start to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import AsyncExitStack
from enum import StrEnum

import structlog

from archiver.app.building import capture_policy, fetching_parts, means
from archiver.app.keeping import start_keeping
from archiver.app.working import start_comparing, start_making, start_workers
from archiver.base import Base, open_base
from archiver.config import Config
from archiver.control.building import start_control_room
from archiver.db.listen import Listener
from archiver.fetch.demand import Demand, open_demand
from archiver.history.reading import GENTLE
from archiver.intake.activity import Activity
from archiver.intake.recovery import Recovery
from archiver.intake.transactions import Intake
from archiver.matrix.bot import Bot
from archiver.matrix.registration import Registration, load_registration
from archiver.processes import children, door, is_child
from archiver.serve.access import configured
from archiver.serve.listening import listening
from archiver.serve.server import Serving
from archiver.signals import Stopped, until_signalled
from archiver.store.opening import open_store
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
    async with open_base(config) as base, AsyncExitStack() as servers:
        listener = Listener(base.dsn)
        making = config.storage.spool, config.thumbnails.helpers
        maker = await servers.enter_async_context(open_maker(base.pool, base.store, *making))
        bot = Bot(base.session, config.homeserver.url, registration)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(until_signalled())
                group.create_task(open_store(base.store))
                demand = None
                if Part.SERVE in parts:
                    demand = await _demand(base, registration, servers)
                    serving = _serving(base, registration, listener, maker, demand)
                    app = serving.application()
                    await servers.enter_async_context(listening(app, *door(config)))
                    group.create_task(children(config, base.dsn).run())
                if Part.INTAKE in parts:
                    await _start_intake(base, registration, bot, group, servers)
                if Part.WORKER in parts:
                    start_workers(base, registration, listener, group, GENTLE, demand)
                    start_comparing(base, registration, bot, group)
                    start_making(base, maker, group)
                    start_keeping(base, registration, listener, group)
                if Part.BOT in parts:
                    group.create_task(bot.announce(ping=Part.INTAKE in parts))
                    work_with = means(base, registration)
                    start_control_room(work_with, base.session, listener, group)
                group.create_task(listener.run())
                log.info("the archive is up", parts=[str(part) for part in Part if part in parts])
        except* Stopped:
            log.info("the archive has stopped")


async def _start_intake(
    base: Base,
    registration: Registration,
    bot: Bot,
    group: asyncio.TaskGroup,
    servers: AsyncExitStack,
) -> None:
    config = base.config
    recovery = Recovery(base.pool, bot.try_ping)
    group.create_task(recovery.run())
    activity = Activity(base.pool, config.history.reconcile_every)
    group.create_task(activity.run())
    servers.push_async_callback(activity.flush)
    policy, told = capture_policy(config, registration), (recovery.push_refused, activity.pushed)
    who = registration.hs_token, registration.bot, config.bot.prefix
    app = Intake(base.pool, *who, policy, *told).application()
    await servers.enter_async_context(listening(app, config.appservice.listen))


async def _demand(
    base: Base, registration: Registration, servers: AsyncExitStack
) -> Demand | None:
    if not base.config.serve.read_through:
        return None
    demand = open_demand(fetching_parts(base, registration), base.config.worker.lease)
    return await servers.enter_async_context(demand)


def _serving(
    base: Base,
    registration: Registration,
    listener: Listener,
    maker: Maker,
    demand: Demand | None,
) -> Serving:
    policy = capture_policy(base.config, registration)
    hides = base.config.capture.on_redaction != "keep"
    access = configured(base.session, base.config.homeserver, base.config.serve)
    return Serving(
        base.pool, base.store, listener, policy, access, maker, counts=not is_child(),
        hides_redacted=hides, hot_cache=base.config.serve.hot_cache, demand=demand,
    )  # fmt: skip
