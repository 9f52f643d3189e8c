"""All commands, in the order in which help lists them."""

from __future__ import annotations

from collections.abc import Sequence

from archiver.control.commands import acting, helping, keeping, knowing
from archiver.control.definition import Command

COMMANDS: tuple[Command, ...] = helping.with_help(
    (*knowing.COMMANDS, *acting.COMMANDS, *keeping.COMMANDS)
)


def find(words: Sequence[str]) -> tuple[Command, list[str]] | None:
    """The command that the words begin with, in any case, and the words behind its name."""
    return helping.find(COMMANDS, words)


def nearest(words: Sequence[str]) -> list[str]:
    """The names that the words may have meant, the likeliest first, three at most."""
    return helping.nearest(COMMANDS, words)
