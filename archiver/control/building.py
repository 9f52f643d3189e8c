"""The control room of a process, and what the bot tells there by itself."""

from __future__ import annotations

import asyncio

import aiohttp

from archiver.control.asked import Means
from archiver.control.registry import COMMANDS
from archiver.control.room import ControlRoom
from archiver.control.watching.building import configured as notices
from archiver.db.listen import Listener


def start_control_room(
    means: Means, session: aiohttp.ClientSession, listener: Listener, group: asyncio.TaskGroup
) -> None:
    """Runs both until they are cancelled. To be said before the listener runs."""
    room = ControlRoom(means, COMMANDS, means.config.worker.lease)
    listener.on("inbox", room.wake)
    listener.on_payload("control_cancel", room.cancel)
    group.create_task(room.run())
    group.create_task(notices(means, session, room.known_room).run())
