"""A message becomes a command with its arguments, or a reply that says what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from archiver.control.commands import helping
from archiver.control.definition import Command
from archiver.control.line import Word, pointed, split
from archiver.control.reply import Code, Reply
from archiver.errors import ConfigError, Misused

_HELP = frozenset({"--help", "-h"})


@dataclass(frozen=True)
class Understood:
    """A command and its arguments by name."""

    command: Command
    params: dict[str, Any]


def understand(commands: Sequence[Command], prefix: str, line: str) -> Understood | Reply:
    """What a line that begins with the prefix means."""
    try:
        words = split(line)[1:]
    except ConfigError as error:
        return _failed(str(error), Code(pointed(line, (), "")))
    texts = _helped(commands, [word.text for word in words])
    found = helping.find(commands, texts)
    if found is None:
        return _failed(helping.unknown(commands, texts))
    command, rest = found
    try:
        return Understood(command, command.parse(rest))
    except Misused as error:
        return _misused(prefix, line, words[-len(rest) :] if rest else [], error)


def _misused(prefix: str, line: str, words: list[Word], error: Misused) -> Reply:
    message = str(error)
    shown = Code(pointed(line, words, message))
    return _failed(message, shown, f"Usage: {prefix} {error.usage}")


def _helped(commands: Sequence[Command], texts: list[str]) -> list[str]:
    """The words of `help`, if that is what they ask for."""
    if not texts:
        return ["help"]
    if _HELP.isdisjoint(texts):
        return texts
    others = [text for text in texts if text not in _HELP]
    found = helping.find(commands, others)
    return ["help", *(found[0].name.split() if found else others[:1])]


def _failed(*parts: str | Code) -> Reply:
    return Reply(parts, failed=True)
