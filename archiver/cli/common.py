"""What every command does alike: read the configuration, run, and turn errors into sentences.

Exit status 0: it worked. 1: it did not. 2: wrong usage or configuration. An error is a sentence
on standard error; a traceback is a bug.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click
import uvloop

from archiver.config import Config, load_config
from archiver.errors import ArchiverError, ConfigError
from archiver.log import set_up_logging

DEFAULT_CONFIG = Path("config.yaml")

P = ParamSpec("P")
T = TypeVar("T")


class Failed(click.ClickException):
    """A sentence for the administrator, and the exit status that a script sees."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # click reads it from the instance
        """What the process ends with."""
        return self.status

    def show(self, file: Any = None) -> None:
        """Each line of the message becomes a line of its own on standard error."""
        for line in self.message.splitlines():
            click.echo(f"archiver: {line}", err=True)


def with_config(
    command: Callable[Concatenate[Config, P], Coroutine[Any, Any, T]],
) -> Callable[P, T]:
    """Makes an asynchronous function that takes a Config a command with `-c config.yaml`."""

    @click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(path_type=Path, dir_okay=False),
        default=DEFAULT_CONFIG,
        show_default=True,
        help="The configuration file.",
    )
    @functools.wraps(command)
    def run(config_path: Path, *args: P.args, **kwargs: P.kwargs) -> T:
        with sentences():
            config = load_config(config_path)
            set_up_logging(config.log.format, config.log.level)
            return uvloop.run(command(config, *args, **kwargs))

    return run  # type: ignore[return-value]  # click adds the option, which no type can say


class sentences:  # noqa: N801  # used like contextlib's own
    """Turns our errors into sentences with their exit status."""

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Only our own errors, alone or gathered by a task group, are sentences."""
        if isinstance(error, BaseExceptionGroup):
            ours, others = error.split(ArchiverError)
            if ours is not None and others is None:
                error = _first(ours)
        if isinstance(error, ArchiverError):
            raise Failed(str(error), 2 if isinstance(error, ConfigError) else 1) from error


def _first(group: BaseExceptionGroup[ArchiverError]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
