"""Rooms are compared with the homeserver's history now, by whichever process compares rooms."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from archiver.catalogue import custody
from archiver.catalogue import rooms as catalogue
from archiver.control.arguments import ROOM, Target
from archiver.control.asked import Asked
from archiver.control.definition import command
from archiver.control.readable import ids_of
from archiver.control.reply import Reply, Table, said
from archiver.control.words import plural, span
from archiver.db.pool import Pool
from archiver.errors import Cancelled, OperationError
from archiver.matrix.history import NOTHING_TO_READ

if TYPE_CHECKING:
    from archiver.db.pool import Connection

LOOK_SECONDS = 2.0
# Longer than whoever compares rests after a homeserver that was away.
QUIET_SECONDS = 120.0
# What fits on a phone; `--json` on the shell has all.
MOST_ROOMS = 20

NOBODY_COMPARES = (
    "history.reconcile_every is null, so `archiver run` compares nothing: set it, or give "
    "`archiver reconcile` on the shell, which compares by itself"
)


@command("reconcile", changes=True, long=True)
@click.argument("rooms", metavar="[ROOM]...", nargs=-1, type=ROOM)
async def reconcile(asked: Asked, rooms: tuple[Target, ...]) -> Reply:
    """Look for events that were never pushed, in these rooms or in all, and archive them.

    ROOM is an id, an alias or a link. Ends when every room is compared; an archive that runs
    takes its share of them.
    """
    if asked.means.config.history.reconcile_every is None:
        raise OperationError(NOBODY_COMPARES)
    room_ids = await ids_of(rooms, asked.means.history) if rooms else None
    listed = room_ids if rooms else await asked.means.history.rooms()
    async with asked.means.pool.acquire() as conn, conn.transaction():
        await catalogue.see(conn, listed or ())
        began = await catalogue.ask(conn, room_ids)
        await note(conn, asked, room_ids)
    await _watch(asked, began, room_ids)
    return await outcome(asked.means.pool, began, room_ids)


async def note(conn: Connection, asked: Asked, room_ids: Sequence[str] | None) -> None:
    """Custody tells who asked for it, of which rooms."""
    target = room_ids[0] if room_ids and len(room_ids) == 1 else None
    rooms = len(room_ids) if room_ids else "all"
    await custody.note(conn, asked.actor, asked.place, "reconcile", target, rooms=rooms)


async def outcome(pool: Pool, began: datetime, room_ids: Collection[str] | None) -> Reply:
    """What comparing since then brought; failed where no room could be compared.

    Raises OperationError where there is no room.
    """
    async with pool.acquire() as conn:
        found = await catalogue.found(conn, began, room_ids)
    if not found:
        raise OperationError(NOTHING_TO_READ)
    compared = [row for row in found if row["reason"] is None]
    unread = [row for row in found if row["reason"] is not None]
    lost = sum(row["found"] for row in compared)
    brought = f"{plural(lost, 'missing event')} archived now" if lost else "nothing was missing"
    parts: list[str | Table] = [
        *_rooms("events that were missing", [(row["room_id"], f"{row['found']:,}")
                                             for row in found if row["found"]]),
        *_rooms("not compared", [(row["room_id"], row["reason"]) for row in unread]),
        f"{plural(len(compared), 'room')} compared, {brought}.",
    ]  # fmt: skip
    return Reply(tuple(parts), data=[dict(row) for row in found], failed=not compared)


async def _watch(asked: Asked, began: datetime, room_ids: Collection[str] | None) -> None:
    """Returns when all is compared. Raises OperationError when nothing is for a while."""
    quiet, before = 0.0, -1
    while True:
        async with asked.means.pool.acquire() as conn:
            now = await catalogue.compared(conn, began, room_ids)
        if not now.open:
            return
        told = f"{now.compared:,} of {plural(now.compared + now.open, 'room')} compared"
        quiet = 0.0 if now.under_way or now.open != before else quiet + LOOK_SECONDS
        if quiet >= QUIET_SECONDS:
            raise OperationError(_stuck(told, quiet))
        before = now.open
        await asked.progress(said(told))
        try:
            await asked.pause(LOOK_SECONDS)
        except Cancelled as error:
            raise Cancelled(f"{told}; the others get their turn all the same") from error


def _stuck(told: str, seconds: float) -> str:
    return (
        f"{told}, and none for {span(seconds)}: `archiver run` compares them, in a process that "
        "has the part `worker`, while the homeserver answers; its log says what holds it up"
    )


def _rooms(what: str, rows: list[tuple[str, str]]) -> list[str | Table]:
    if not rows:
        return []
    shown: list[str | Table] = [Table(("room", what), tuple(rows[:MOST_ROOMS]))]
    if len(rows) > MOST_ROOMS:
        shown.append(f"And {len(rows) - MOST_ROOMS:,} rooms more.")
    return shown


COMMANDS = (reconcile,)
