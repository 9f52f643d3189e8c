"""A command, defined once for the control room and the shell, its arguments in click's words."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from archiver.control.reply import Reply
from archiver.errors import Misused

Run = Callable[..., Awaitable[Reply]]


@dataclass(frozen=True)
class Command:
    """`name` may have two words, like `token create`. `run` is called with what Asked knows and
    the arguments by name.

    `asks`, called alike, tells what would go and destroys nothing; such a command is carried out
    after its OK alone; with `asks_if`, the name of a flag, only where that is given. `changes`:
    custody tells who gave it. `long`: it may take minutes, shows its progress, and does no harm
    when it is begun a second time.
    """

    name: str
    help: str
    params: tuple[click.Parameter, ...]
    run: Run
    asks: Run | None = None
    changes: bool = False
    long: bool = False
    asks_if: str | None = None

    def asks_first(self, params: Mapping[str, Any]) -> Run | None:
        """What asks before it is carried out with these arguments, or None."""
        return self.asks if self.asks_if is None or params[self.asks_if] else None

    @property
    def summary(self) -> str:
        """The first sentence of its help."""
        return self.help.partition("\n")[0]

    @property
    def usage(self) -> str:
        """Its name and arguments, like `hold TARGET REASON...`."""
        pieces = [piece for param in self.params for piece in param.get_usage_pieces(self._bare)]
        options = [_option(param) for param in self.params if isinstance(param, click.Option)]
        return " ".join([self.name, *pieces, *options])

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The arguments by name. Raises Misused, which says what is wrong with which of them."""
        command = click.Command(self.name, params=list(self.params), add_help_option=False)
        try:
            return command.make_context(self.name, list(words)).params
        except click.UsageError as error:
            raise Misused(error.format_message(), self.usage) from error

    @property
    def _bare(self) -> click.Context:
        return click.Context(click.Command(self.name))


def command(
    name: str,
    *,
    asks: Run | None = None,
    changes: bool = False,
    long: bool = False,
    asks_if: str | None = None,
) -> Callable[[Run], Command]:
    """Makes an asynchronous function with click's arguments a command; its docstring is the help.

    What asks before it is carried out changes something.
    """

    def define(run: Run) -> Command:
        params: list[click.Parameter] = list(getattr(run, "__click_params__", []))
        words = inspect.cleandoc(run.__doc__ or "")
        changing = changes or asks is not None
        return Command(name, words, tuple(reversed(params)), run, asks, changing, long, asks_if)

    return define


def _option(option: click.Option) -> str:
    name = max(option.opts, key=len)
    if option.is_flag:
        return f"[{'/'.join((name, *option.secondary_opts))}]"
    value = f"{name} {option.make_metavar(click.Context(click.Command('')))}"
    return value if option.required else f"[{value}]"
