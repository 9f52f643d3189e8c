"""`archiver backfill`: reads what was posted before the archive was there, by its own workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from datetime import datetime

import click

from archiver.app import start_workers
from archiver.base import Base
from archiver.catalogue.backfill import Progress
from archiver.catalogue.budget import BURST
from archiver.cli.progress import ProgressView
from archiver.cli.shell import shell
from archiver.control.arguments import Target
from archiver.control.asked import Asked, Means
from archiver.control.commands import reading_back
from archiver.control.commands.reading_told import told
from archiver.control.readable import not_admin
from archiver.control.reply import Reply, said
from archiver.db.listen import Listener
from archiver.errors import OperationError
from archiver.matrix.bot import AWAY, Bot
from archiver.matrix.registration import Registration, load_registration
from archiver.store.opening import open_store

LOOK_SECONDS = 0.5
# Behind what people post and read today, for whatever of the machine is left.
NICENESS = 10


async def _run(
    base: Base,
    asked: Asked,
    rooms: tuple[Target, ...],
    every_room: bool,
    since: datetime | None,
    until: datetime | None,
    no_wait: bool,
) -> Reply:
    """The same as in the control room, and the work as well."""
    reading_back.check(rooms, every_room, since, until)
    config = base.config
    registration = load_registration(config.appservice.registration, config.homeserver.server_name)
    await _known(Bot(base.session, config.homeserver.url, registration))
    wanted = await reading_back.chosen(asked.means, rooms, every_room, since, until)
    if not wanted.admin:
        click.echo(not_admin(config.homeserver.url, registration.bot), err=True)
    new = await reading_back.request(asked, wanted, since, until)
    if no_wait:
        asked_for = len(wanted.room_ids)
        return said(f"{new} of {asked_for} rooms are to be read; `archiver run` does it.")
    await _work_along(base, asked.means, registration, wanted.room_ids)
    return told((await reading_back.outcome(asked.means, wanted))._replace(advice=None))


NO_WAIT = click.Option(["--no-wait"], is_flag=True, help="Only ask; `archiver run` does the work.")
backfill = shell(reading_back.backfill, run=_run, extra=[NO_WAIT])


async def _known(bot: Bot) -> None:
    """Raises OperationError where the homeserver does not let the bot in."""
    try:
        await bot.register()
    except AWAY as error:
        raise OperationError(
            f"the homeserver does not know the bot ({error}): `archiver doctor` finds out why"
        ) from error


async def _work_along(
    base: Base, means: Means, registration: Registration, room_ids: Sequence[str]
) -> None:
    """One more worker, beside those of `archiver run` or alone, until nothing is left to try."""
    os.nice(NICENESS)
    listener = Listener(base.dsn)
    with ProgressView() as view:
        async with asyncio.TaskGroup() as group:
            tasks = start_workers(base, registration, listener, group)
            tasks += [group.create_task(open_store(base.store))]
            tasks += [group.create_task(listener.run())]
            while True:
                progress = await reading_back.look(means, room_ids)
                if progress is not None:
                    view.show(progress)
                    if _is_over(progress, base.config.history.remote_rate):
                        break
                await asyncio.sleep(LOOK_SECONDS)
            for task in tasks:
                task.cancel()


def _is_over(progress: Progress, rate: int | None) -> bool:
    """True when all is read and tried but what waits for the budget: that may take days."""
    if progress.done + progress.failed < progress.rooms or progress.untried:
        return False
    if not progress.paced:
        return True
    return rate is not None and progress.spent is not None and progress.spent > BURST / rate
