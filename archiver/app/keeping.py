"""What looks after that which is archived: damage, retention, scans, quarantine, custody."""

from __future__ import annotations

import asyncio

from archiver.app.building import fetching_parts
from archiver.base import Base
from archiver.db.listen import Listener
from archiver.fetch.again import again
from archiver.keep.repair import Repairer
from archiver.keep.retention import Expiry, Retention
from archiver.keep.rounds import Rounds
from archiver.keep.scanning import Scanning
from archiver.keep.sealing import Sealer
from archiver.keep.telling import Teller
from archiver.matrix.curtain import Curtain
from archiver.matrix.registration import Registration
from archiver.scan.opening import scanner


def start_keeping(
    base: Base, registration: Registration, listener: Listener, group: asyncio.TaskGroup
) -> None:
    """Works until cancelled. To be said before the listener runs."""
    _start_mending(base, registration, listener, group)
    _start_expiring(base, group)
    group.create_task(_teller(base, registration).run())
    group.create_task(_scanning(base).run())
    group.create_task(Sealer(base.pool).run())


def _start_mending(
    base: Base, registration: Registration, listener: Listener, group: asyncio.TaskGroup
) -> None:
    """What finds damage, and what fetches damaged bytes again."""
    rules, parts = base.config.worker, fetching_parts(base, registration)
    repairer = Repairer(base.pool, base.store, parts.spool, again(parts))
    listener.on("blob_damaged", repairer.wake)
    group.create_task(repairer.run())
    if rules.verify_rate is not None:
        rounds = Rounds(base.dsn, base.pool, base.store, rules.verify_rate, rules.verify_every)
        group.create_task(rounds.run())


def _start_expiring(base: Base, group: asyncio.TaskGroup) -> None:
    rules, every = base.config.retention.rules, base.config.retention.every
    if rules:
        retention = Retention(base.pool, rules, base.config.homeserver.server_name)
        group.create_task(Expiry(base.pool, retention, every).run())


def _scanning(base: Base) -> Scanning:
    rules = base.config.scan
    limits = {"max_size": rules.max_size, "concurrency": rules.concurrency}
    tell = base.config.quarantine.tell_homeserver
    looking = scanner(rules)
    return Scanning(base.pool, base.store, looking, timeout=rules.timeout, tell=tell, **limits)


def _teller(base: Base, registration: Registration) -> Teller:
    """What tells the homeserver of quarantine, also what single commands asked for."""
    url, token = base.config.homeserver.url, registration.as_token
    return Teller(base.pool, Curtain(base.session, url, token, registration.bot))
