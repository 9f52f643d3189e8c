"""`archiver backfill`: reads what was posted before the archive was there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from datetime import UTC, datetime

import click

from archiver.app import Base, capture_policy, history, open_base, start_workers
from archiver.catalogue import backfill as catalogue
from archiver.catalogue.backfill import Progress
from archiver.catalogue.budget import BURST
from archiver.cli.common import with_config
from archiver.cli.progress import Outcome, ProgressView, show_json, show_tables
from archiver.config import Config
from archiver.db.listen import Listener
from archiver.db.pool import DATABASE_AWAY
from archiver.errors import ConfigError, OperationError, RoomUnreadable
from archiver.log import set_up_logging
from archiver.matrix.bot import AWAY, Bot
from archiver.matrix.history import History
from archiver.matrix.registration import Registration, load_registration
from archiver.store.opening import open_store
from archiver.units import parse_duration

LOOK_SECONDS = 0.5
# Behind what people post and read today, for whatever of the machine is left.
NICENESS = 10


class _Time(click.ParamType[datetime]):
    """A day, a time, or how long ago."""

    name = "date"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """`2024-05-31`, `2024-05-31T12:00+02:00`, or `30d` before now; UTC unless it says so."""
        try:
            at = datetime.fromisoformat(str(value))
        except ValueError:
            try:
                return datetime.now(UTC) - parse_duration(value)
            except (ValueError, OverflowError):
                self.fail(f"{value!r} is no date like 2024-05-31, and no time ago like 30d")
        return at if at.tzinfo else at.replace(tzinfo=UTC)


@click.command()
@click.argument("rooms", nargs=-1, metavar="[ROOM]...")
@click.option("--all", "every_room", is_flag=True, help="Every room that the bot may read.")
@click.option("--since", type=_Time(), help="Nothing older: a date, or 30d for the last 30 days.")
@click.option("--until", type=_Time(), help="Nothing newer.")
@click.option("--no-wait", is_flag=True, help="Only ask; `archiver run` does the work.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@with_config
async def backfill(
    config: Config,
    rooms: tuple[str, ...],
    every_room: bool,
    since: datetime | None,
    until: datetime | None,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Read the old messages of rooms, and archive their media.

    ROOM is an id or an alias. What was read is not read again, and whoever stops it goes on with
    the same command. It may run beside `archiver run`.
    """
    if bool(rooms) == every_room:
        raise ConfigError("name the rooms to read, or say --all")
    if since and until and since >= until:
        raise ConfigError("--since is not before --until")
    if config.log.level == "info":  # which is for who watches a service
        set_up_logging(config.log.format, "warning")
    registration = load_registration(config.appservice.registration, config.homeserver.server_name)
    async with open_base(config) as base:
        asked, left_out = await _which(base, registration, rooms)
        async with base.pool.acquire() as conn:
            new = await catalogue.request(conn, asked, since, until)
        if left_out:
            click.echo(f"{left_out} rooms are left out by capture.rooms.", err=True)
        if no_wait:
            click.echo(f"{new} of {len(asked)} rooms are to be read; `archiver run` does it.")
            return
        await _work_along(base, registration, asked)
        outcome = await _outcome(base, asked, left_out)
    show_json(outcome) if as_json else show_tables(outcome)
    if failed := outcome.progress.failed:
        raise OperationError(
            f"{failed} of {len(asked)} rooms could not be read: the reasons are above, and the "
            "same command tries them again"
        )


async def _which(
    base: Base, registration: Registration, names: Sequence[str]
) -> tuple[list[str], int]:
    """The ids of the rooms to read, and how many are left out on purpose."""
    try:
        await Bot(base.session, base.config.homeserver.url, registration).register()
    except AWAY as error:
        raise OperationError(
            f"the homeserver does not know the bot ({error}): `archiver doctor` finds out why"
        ) from error
    reader, policy = history(base, registration), capture_policy(base.config)
    if not await reader.is_admin():
        click.echo(_not_admin(base.config.homeserver.url, registration.bot), err=True)
    if not names:
        rooms = await reader.rooms()
        wanted = [room_id for room_id in rooms if not policy.leaves_out_room(room_id)]
        return wanted, len(rooms) - len(wanted)
    rooms = [await _room_id(reader, name) for name in names]
    for name, room_id in zip(names, rooms, strict=True):
        if policy.leaves_out_room(room_id):
            raise ConfigError(f"{name} is left out: change capture.rooms to have it archived")
    return list(dict.fromkeys(rooms)), 0


async def _room_id(reader: History, name: str) -> str:
    if name.startswith("!"):
        return name
    if not name.startswith("#"):
        raise ConfigError(f"{name} is no room: its id starts with !, an alias of it with #")
    try:
        return await reader.room_id(name)
    except RoomUnreadable as error:
        raise OperationError(f"{name}: {error}") from error


def _not_admin(url: str, bot: str) -> str:
    return (
        f"{bot} is no administrator of the homeserver, so only the rooms that it is in can be "
        "read. To have every room read, an administrator makes it one, with the own access "
        f"token:\n  curl -X PUT -H 'Authorization: Bearer …' -d '{{\"admin\": true}}' "
        f"'{url}/_synapse/admin/v1/users/{bot}/admin'"
    )


async def _work_along(base: Base, registration: Registration, asked: list[str]) -> None:
    """One more worker, beside those of `archiver run` or alone, until nothing is left to try."""
    os.nice(NICENESS)
    listener = Listener(base.dsn)
    with ProgressView() as view:
        async with asyncio.TaskGroup() as group:
            tasks = start_workers(base, registration, listener, group)
            tasks += [group.create_task(open_store(base.store))]
            tasks += [group.create_task(listener.run())]
            while True:
                progress = await _look(base, asked)
                if progress is not None:
                    view.show(progress)
                    if _is_over(progress, base.config.history.remote_rate):
                        break
                await asyncio.sleep(LOOK_SECONDS)
            for task in tasks:
                task.cancel()


async def _outcome(base: Base, asked: list[str], left_out: int) -> Outcome:
    async with base.pool.acquire() as conn:
        return Outcome(
            await catalogue.progress(conn, asked),
            await catalogue.troubles(conn, asked),
            await catalogue.outcomes(conn, asked),
            left_out,
        )


async def _look(base: Base, asked: list[str]) -> Progress | None:
    try:
        async with base.pool.acquire() as conn:
            return await catalogue.progress(conn, asked)
    except DATABASE_AWAY:  # its workers say so
        return None


def _is_over(progress: Progress, rate: int | None) -> bool:
    """True when all is read and tried but what waits for the budget: that may take days."""
    if progress.done + progress.failed < progress.rooms or progress.untried:
        return False
    if not progress.paced:
        return True
    return rate is not None and progress.spent is not None and progress.spent > BURST / rate
