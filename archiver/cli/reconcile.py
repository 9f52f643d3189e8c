"""`archiver reconcile`: rooms are compared with the homeserver's history, by this process too."""

from __future__ import annotations

from datetime import timedelta

from archiver.base import Base
from archiver.cli.shell import shell
from archiver.control.arguments import Target
from archiver.control.asked import Asked
from archiver.control.commands import comparing
from archiver.control.readable import ids_of
from archiver.control.reply import Reply
from archiver.history.reconcile import Reconciler


async def _run(base: Base, asked: Asked, rooms: tuple[Target, ...]) -> Reply:
    """The same as in the control room, and the work as well."""
    means = asked.means
    room_ids = await ids_of(rooms, means.history) if rooms else None
    async with base.pool.acquire() as conn:
        await comparing.note(conn, asked, room_ids)
    every = base.config.history.reconcile_every or timedelta(days=1)
    began = await Reconciler(base.pool, means.history, means.policy, every).compare(room_ids)
    return await comparing.outcome(base.pool, began, room_ids)


reconcile = shell(comparing.reconcile, run=_run)
