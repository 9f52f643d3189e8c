"""`archiver stats`: what is kept, what waits, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from archiver.app import open_base
from archiver.catalogue.stats import statistics
from archiver.cli.common import with_config
from archiver.config import Config
from archiver.units import format_size


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@with_config
async def stats(config: Config, as_json: bool) -> None:
    """Count media by state, blobs and bytes by place, and events by type."""
    async with open_base(config) as base, base.pool.acquire() as conn:
        figures = await statistics(conn)
    if as_json:
        click.echo(orjson.dumps(figures))
        return
    console = Console()
    for table in _tables(figures):
        console.print(table, "")


def _tables(figures: Mapping[str, Any]) -> Iterator[Table]:
    media = Table("media", "number", box=None)
    for state, number in figures["media"].items():
        media.add_row(state, f"{number:,}")
    yield media
    blobs = Table("blobs", "number", "bytes", box=None)
    for place, row in figures["blobs"].items():
        blobs.add_row(place, f"{row['blobs']:,}", format_size(row["bytes"]))
    yield blobs
    events = Table("events", "number", box=None)
    for kind, number in figures["events"].items():
        events.add_row(kind or "(no type)", f"{number:,}")
    yield events
