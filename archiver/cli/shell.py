"""A command of the control room as a command of the shell."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import click

from archiver.app import means
from archiver.base import Base, open_base
from archiver.cli.common import with_config
from archiver.cli.showing import Terminal
from archiver.config import Config
from archiver.control.asked import SHELL, Asked
from archiver.control.definition import Command
from archiver.control.reply import Reply
from archiver.errors import ConfigError
from archiver.log import set_up_logging
from archiver.matrix.registration import load_registration

# What a terminal does in its own way; None: it has shown its outcome itself.
ShellRun = Callable[..., Awaitable[Reply | None]]

JSON = click.Option(["--json", "as_json"], is_flag=True, help="For scripts.")
YES = click.Option(["--yes"], is_flag=True, help="Do it without being asked.")


def shell(
    command: Command, *, run: ShellRun | None = None, extra: Sequence[click.Parameter] = ()
) -> click.Command:
    """`archiver NAME`, with the same arguments and the same help; of two words, the second.

    `run` takes the place of the command's own, and is called as run(base, asked, **params), with
    what the `extra` options say among the params.
    """

    async def give(config: Config, as_json: bool, yes: bool = False, **params: Any) -> None:
        asks = None if yes else command.asks_first(params)
        if asks and not sys.stdin.isatty():
            raise ConfigError("nobody is here to be asked whether it may be done: say --yes")
        if config.log.level == "info":  # which is for who watches a service
            set_up_logging(config.log.format, "warning")
        with Terminal(as_json=as_json) as terminal:
            async with open_base(config) as base:
                asked = _asked(base, terminal)
                if asks:
                    terminal.confirm(await asks(asked, **params))
                carried_out = run(base, asked, **params) if run else command.run(asked, **params)
                reply = await carried_out
            if reply:
                terminal.tell(reply)
        if reply and reply.failed:
            raise click.exceptions.Exit(1)

    params = [*command.params, *extra, JSON, *([YES] if command.asks else [])]
    name = command.name.rpartition(" ")[2]
    make = click.command(name, params=params, help=command.help, short_help=command.summary)
    return make(with_config(give))


class _Family(click.Group):
    """A command of one word, and those of two words that begin with it."""

    def __init__(self, alone: click.Command) -> None:
        super().__init__(alone.name, params=alone.params, help=alone.help)
        self._alone = alone

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Of a group, where the next word names one of them; else of the command itself."""
        named = bool(args) and args[0] in self.commands
        command = click.Group(self.name, self.commands) if named else self._alone
        return command.make_context(info_name, args, parent, **extra)


def install(main: click.Group, commands: Mapping[str, click.Command]) -> None:
    """Adds the commands by their names, those of two words in a group of the first one."""
    for name, command in commands.items():
        first, _, second = name.rpartition(" ")
        group = main
        if first:
            found = main.commands.get(first)
            alone = _Family(found) if found else click.Group(first)
            group = found if isinstance(found, click.Group) else alone
            main.add_command(group)
        group.add_command(command, second)


def _asked(base: Base, terminal: Terminal) -> Asked:
    config = base.config
    registration = load_registration(config.appservice.registration, config.homeserver.server_name)
    return Asked(
        means(base, registration),
        actor=f"shell:{login_name()}",
        place=SHELL,
        progress=terminal.progress,
        tell_alone=terminal.tell_alone,
        pause=asyncio.sleep,
    )


def login_name() -> str:
    """Who sits at the terminal."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
