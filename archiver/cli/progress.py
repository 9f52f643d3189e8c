"""What `archiver backfill` shows while it works."""

from __future__ import annotations

import time
from types import TracebackType

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from archiver.catalogue import backfill
from archiver.control.commands.reading_told import bytes_fetched
from archiver.units import format_size

PLAIN_SECONDS = 10.0


class ProgressView:
    """On standard error: bars in a terminal, elsewhere a line now and then."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._rooms = self._bars.add_task("rooms", total=None, more="")
        self._media = self._bars.add_task("media", total=None, more="")
        self._terminal = console.is_terminal
        self._started = self._said = time.monotonic()
        self._before: int | None = None

    def __enter__(self) -> ProgressView:
        self._bars.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def show(self, now: backfill.Progress) -> None:
        """Shows how far it is."""
        if self._before is None:
            self._before = now.events
        settled, fetched = now.done + now.failed, bytes_fetched()
        seconds = max(time.monotonic() - self._started, 1)
        rate = f"{(now.events - self._before) / seconds:,.0f}/s"
        read = f"{now.events:,} events, {rate}"
        size = f"{format_size(fetched)}, {format_size(fetched / seconds)}/s"
        if now.paced:
            size += f", {now.paced:,} wait for history.remote_rate"
        if self._terminal:
            tried = max(now.media - now.untried - now.paced, 0)
            self._bars.update(self._rooms, total=now.rooms, completed=settled, more=read)
            self._bars.update(self._media, total=now.media, completed=tried, more=size)
        elif time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            rooms, media = f"{settled} of {now.rooms} rooms", f"{now.untried:,} media to fetch"
            click.echo(f"{rooms}, {read}; {media}; {size}", err=True)
