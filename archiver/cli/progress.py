"""What `archiver backfill` shows while it works, and what it shows at the end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import NamedTuple

import click
import orjson
from prometheus_client import REGISTRY
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from archiver.catalogue import backfill
from archiver.model import Place
from archiver.units import format_size

PLAIN_SECONDS = 10.0


class Outcome(NamedTuple):
    """What is told at the end. `left_out`: rooms that the configuration leaves out."""

    progress: backfill.Progress
    troubles: list[backfill.Trouble]
    media: list[backfill.Outcome]
    left_out: int


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
        settled, fetched = now.done + now.failed, _bytes_fetched()
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


def show_json(outcome: Outcome) -> None:
    """For scripts."""
    now = outcome.progress
    document = {
        "rooms": {
            "asked": now.rooms,
            "done": now.done,
            "failed": now.failed,
            "left_out": outcome.left_out,
        },
        "events": {"read": now.events, "new": now.kept},
        "media": {
            "queued": now.media,
            "states": [row._asdict() for row in outcome.media],
        },
        "troubles": [row._asdict() for row in outcome.troubles],
    }
    click.echo(orjson.dumps(document))


def show_tables(outcome: Outcome) -> None:
    """For people."""
    now, console = outcome.progress, Console()
    figures = Table("old messages", "number", box=None)
    figures.columns[1].justify = "right"
    for what, number in (
        ("rooms read", now.done),
        ("events read", now.events),
        ("of these new to the archive", now.kept),
        ("media queued by them", now.media),
    ):
        figures.add_row(what, f"{number:,}")
    console.print(figures, "")
    media = Table("media of these rooms", "number", "bytes", "reason", box=None)
    for row in outcome.media:
        state = "waiting" if row.state == "pending" else row.state
        media.add_row(state, f"{row.media:,}", format_size(row.bytes), Text(row.reason or ""))
    console.print(media, "")
    for trouble in outcome.troubles:  # no table, which would cut what is to be copied
        click.echo(f"{trouble.room_id} is not read: {trouble.reason}")
    if now.paced:
        click.echo(
            f"{now.paced:,} media of other servers wait for their turn (history.remote_rate): "
            "`archiver run` goes on with them."
        )


def _bytes_fetched() -> float:
    """By this process; others may help."""
    name = "archiver_archived_bytes_total"
    return sum(REGISTRY.get_sample_value(name, {"place": place}) or 0 for place in Place)
