"""`help`: what can be commanded, and how; and how the words of a command are found in the list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

import click

from archiver.control.asked import Asked
from archiver.control.definition import Command, command
from archiver.control.reply import Reply, Table, said
from archiver.errors import OperationError

SUGGESTED = 3
LONG = 64  # no name is near to what is longer, and comparing would take its time


def with_help(others: Sequence[Command]) -> tuple[Command, ...]:
    """These commands behind `help`, which tells of them and of itself."""

    @command("help")
    @click.argument("words", metavar="[COMMAND]...", nargs=-1)
    async def help_(asked: Asked, words: tuple[str, ...]) -> Reply:
        """List the commands, or tell how one is given."""
        return describe(commands, words)

    commands = (help_, *others)
    return commands


def describe(commands: Sequence[Command], words: Sequence[str]) -> Reply:
    """All commands, or the one that the words name. Raises OperationError where there is none."""
    if not words:
        rows = tuple((one.name, one.summary) for one in commands)
        data = [{"command": one.name, "usage": one.usage, "help": one.help} for one in commands]
        return said(Table(("", ""), rows), "`help COMMAND` tells more of one.", data=data)
    found = find(commands, words)
    if found is None and (family := _family(commands, words[0])):
        return describe(family, ())
    if found is None:
        raise OperationError(unknown(commands, words))
    one, _ = found
    arguments = tuple(_arguments(one))
    parts = (one.usage, _unwrapped(one.help), *([Table(("", ""), arguments)] if arguments else ()))
    return Reply(parts, data={"command": one.name, "usage": one.usage, "help": one.help})


def find(commands: Sequence[Command], words: Sequence[str]) -> tuple[Command, list[str]] | None:
    """The command that the words begin with, in any case, and the words behind its name."""
    names = {one.name: one for one in commands}
    for length in (2, 1):
        name = " ".join(words[:length]).casefold()
        if len(words) >= length and name in names:
            return names[name], list(words[length:])
    return None


def nearest(commands: Sequence[Command], words: Sequence[str]) -> list[str]:
    """The names that the words may have meant, the likeliest first, at most SUGGESTED."""
    if not words:
        return []
    family = [one.name for one in _family(commands, words[0])]
    names = [one.name for one in commands]
    close = [
        name
        for length in (2, 1)
        for name in get_close_matches(" ".join(words[:length])[:LONG].casefold(), names, SUGGESTED)
    ]
    return list(dict.fromkeys([*family, *close]))[:SUGGESTED]


def unknown(commands: Sequence[Command], words: Sequence[str]) -> str:
    """The sentence for words that name no command."""
    meant = " or ".join(f"`{name}`" for name in nearest(commands, words))
    advice = f"did you mean {meant}?" if meant else "`help` lists them"
    return f"there is no command `{words[0][:LONG] if words else ''}`: {advice}"


def _family(commands: Sequence[Command], word: str) -> list[Command]:
    """The commands of two words that begin with this one."""
    return [one for one in commands if one.name.startswith(f"{word.casefold()} ")]


def _arguments(one: Command) -> Iterator[tuple[str, str]]:
    """What its usage names, and what that means."""
    context = click.Context(click.Command(one.name))
    for param in one.params:
        if isinstance(param, click.Option):
            names = ", ".join(param.opts)
            value = "" if param.is_flag else f" {param.make_metavar(context)}"
            yield names + value, param.help or ""
        elif param_help := getattr(param, "help", None):
            yield param.make_metavar(context), param_help


def _unwrapped(text: str) -> str:
    """Paragraphs as lines of their own, broken by whoever shows them."""
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in text.split("\n\n"))
