"""What fetches media, reads old messages, compares rooms and makes pictures."""

from __future__ import annotations

import asyncio

from archiver.app.building import capture_policy, fetching_parts, history
from archiver.base import Base
from archiver.db.listen import Listener
from archiver.fetch.demand import Demand
from archiver.fetch.pacer import Pacer
from archiver.fetch.worker import Worker
from archiver.history.backfill import Backfiller
from archiver.history.reading import FAST, Speed
from archiver.history.reconcile import Reconciler
from archiver.history.watch import Watch
from archiver.keep.locking import Locking
from archiver.keep.redaction_policy import followers
from archiver.keep.redactions import Redactor
from archiver.matrix.bot import Bot
from archiver.matrix.registration import Registration
from archiver.variants.background import Background
from archiver.variants.maker import Maker


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
    parts: dict[str, Worker | Pacer | Backfiller | Redactor | Locking] = {
        "media_pending": _worker(base, registration, demand),
        "media_paced": Pacer(base.pool, config.history.remote_rate),
        "backfill": Backfiller(base.pool, reader, policy, lease, speed),
        "redaction_due": Redactor(base.pool),
        "hold_changed": Locking(base.dsn, base.pool, base.store),
    }
    for channel, part in parts.items():
        listener.on(channel, part.wake)
    rule, delete_after = config.capture.on_redaction, config.capture.delete_after
    tidy = followers(base.pool, base.store, reader, policy, rule, delete_after)
    return [group.create_task(part.run()) for part in (*parts.values(), *tidy)]


def start_comparing(
    base: Base, registration: Registration, bot: Bot, group: asyncio.TaskGroup
) -> None:
    """Finds what was never pushed, until cancelled, unless it is not wanted."""
    config = base.config
    if config.history.reconcile_every is None:
        return
    reader, policy = history(base, registration), capture_policy(config, registration)
    reconciler = Reconciler(base.pool, reader, policy, config.history.reconcile_every)
    watch = Watch(config.homeserver.url, bot.try_ping, reconciler.restarted)
    group.create_task(reconciler.run())
    group.create_task(watch.run())


def start_making(base: Base, maker: Maker, group: asyncio.TaskGroup) -> None:
    """Makes pictures before they are asked for. One helper is left to those who ask."""
    if base.config.thumbnails.background:
        for _ in range(max(1, base.config.thumbnails.helpers - 1)):
            group.create_task(Background(base.pool, maker).run())


def _worker(base: Base, registration: Registration, demand: Demand | None) -> Worker:
    rules, parts = base.config.worker, fetching_parts(base, registration)
    # As many again may be on their way into the store, so that neither side waits.
    at_once = 2 * rules.concurrency
    lease, stop_within = rules.lease, rules.stop_within
    return Worker(parts, concurrency=at_once, lease=lease, stop_within=stop_within, demand=demand)
