"""Old messages are read, by whichever worker there is; this asks for them and watches."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click

from archiver.catalogue import backfill as catalogue
from archiver.catalogue import custody, steering
from archiver.catalogue.backfill import Progress
from archiver.control.arguments import ROOM, Target
from archiver.control.asked import Asked, Means
from archiver.control.commands.reading_told import Outcome, Reading, told
from archiver.control.dates import DATE
from archiver.control.definition import command
from archiver.control.readable import Rooms, not_admin, readable
from archiver.control.reply import Reply
from archiver.control.words import plural
from archiver.db.pool import DATABASE_AWAY
from archiver.errors import Cancelled, ConfigError

LOOK_SECONDS = 3.0


@command("backfill", changes=True, long=True)
@click.argument("rooms", metavar="[ROOM]...", nargs=-1, type=ROOM)
@click.option("--all", "every_room", is_flag=True, help="Every room that the bot may read.")
@click.option("--since", type=DATE, help="Nothing older: a date, or 30d for the last 30 days.")
@click.option("--until", type=DATE, help="Nothing newer.")
async def backfill(
    asked: Asked,
    rooms: tuple[Target, ...],
    every_room: bool,
    since: datetime | None,
    until: datetime | None,
) -> Reply:
    """Read the old messages of rooms, and archive their media.

    ROOM is an id, an alias or a link. What was read is not read again, and whoever stops it goes
    on with the same command. It may run beside `archiver run`.
    """
    wanted = await chosen(asked.means, rooms, every_room, since, until)
    await request(asked, wanted, since, until)
    reading = Reading()
    try:
        while True:
            progress = await look(asked.means, wanted.room_ids)
            if progress is not None:
                if progress.done + progress.failed >= progress.rooms:
                    break
                await asked.progress(reading.shown(progress))
            await asked.pause(LOOK_SECONDS)
    except Cancelled as error:
        raise Cancelled(await _withdraw(asked, wanted)) from error
    return told(await outcome(asked.means, wanted))


async def chosen(
    means: Means,
    rooms: Sequence[Target],
    every_room: bool,
    since: datetime | None,
    until: datetime | None,
) -> Rooms:
    """The rooms to read. Raises what `check` and `readable` do."""
    check(rooms, every_room, since, until)
    return await readable(means, rooms)


def check(
    rooms: Sequence[Target], every_room: bool, since: datetime | None, until: datetime | None
) -> None:
    """Raises ConfigError for arguments that contradict each other."""
    if bool(rooms) == every_room:
        raise ConfigError("name the rooms to read, or say --all")
    if since and until and since >= until:
        raise ConfigError("--since is not before --until")


async def request(
    asked: Asked, wanted: Rooms, since: datetime | None, until: datetime | None
) -> int:
    """Asks for the rooms' old messages. Returns how many rooms that is something new for."""
    async with asked.means.pool.acquire() as conn, conn.transaction():
        new = await catalogue.request(conn, wanted.room_ids, since, until)
        if new:
            some = wanted.room_ids[:100]
            await custody.note(
                conn, asked.actor, asked.place, "backfill", some[0] if len(some) == 1 else None,
                rooms=len(wanted.room_ids), new=new, since=_text(since), until=_text(until),
                begins_with=some,
            )  # fmt: skip
    return new


async def look(means: Means, room_ids: Sequence[str]) -> Progress | None:
    """How far it is; None while the database is away."""
    try:
        async with means.pool.acquire() as conn:
            return await catalogue.progress(conn, room_ids)
    except DATABASE_AWAY:  # the workers say so
        return None


async def outcome(means: Means, wanted: Rooms) -> Outcome:
    """What came of it. Reads all events of these rooms."""
    bot = means.speech.user_id
    async with means.pool.acquire() as conn:
        return Outcome(
            await catalogue.progress(conn, wanted.room_ids),
            await catalogue.troubles(conn, wanted.room_ids),
            await catalogue.outcomes(conn, wanted.room_ids),
            wanted.left_out,
            None if wanted.admin else not_admin(means.config.homeserver.url, bot),
        )


async def _withdraw(asked: Asked, wanted: Rooms) -> str:
    """Ends it, and says how far it came."""
    async with asked.means.pool.acquire() as conn, conn.transaction():
        reason = f"{asked.actor} cancelled it"
        withdrawn = await steering.withdraw(conn, wanted.room_ids, reason)
        await custody.note(conn, asked.actor, asked.place, "backfill cancelled", rooms=withdrawn)
        now = await catalogue.progress(conn, wanted.room_ids)
    return (
        f"Cancelled: {now.done:,} of {plural(now.rooms, 'room')} read, {now.events:,} events. "
        "The same command goes on from there."
    )


def _text(when: datetime | None) -> str | None:
    return when.isoformat() if when else None


COMMANDS = (backfill,)
