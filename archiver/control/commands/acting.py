"""Commands that read, try, hold, let in and show."""

from __future__ import annotations

from archiver.control.commands import (
    comparing,
    custody,
    holding,
    moving,
    previewing,
    reading_back,
    retaining,
    retrying,
    tokens,
)
from archiver.control.definition import Command

COMMANDS: tuple[Command, ...] = (
    *previewing.COMMANDS,
    *reading_back.COMMANDS,
    *comparing.COMMANDS,
    *retrying.COMMANDS,
    *holding.COMMANDS,
    *moving.COMMANDS,
    *retaining.COMMANDS,
    *custody.COMMANDS,
    *tokens.COMMANDS,
)
