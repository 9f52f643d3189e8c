"""Commands that tell what the archive knows, and change nothing."""

from __future__ import annotations

from archiver.control.commands.counting import stats
from archiver.control.commands.finding import find
from archiver.control.commands.places import room, rooms
from archiver.control.commands.settings import config, version
from archiver.control.commands.showing import show
from archiver.control.commands.standing import status
from archiver.control.definition import Command

COMMANDS: tuple[Command, ...] = (status, stats, rooms, room, show, find, config, version)
