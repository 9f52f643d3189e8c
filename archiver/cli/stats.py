"""`archiver stats`: what is kept, what waits, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from archiver.app import open_base
from archiver.catalogue import coverage, knowledge
from archiver.catalogue.stats import statistics
from archiver.cli.common import with_config
from archiver.config import Config
from archiver.units import format_size

if TYPE_CHECKING:
    from archiver.db.pool import Connection

ROOMS = 10
NAME_WIDTH = 40


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@with_config
async def stats(config: Config, as_json: bool) -> None:
    """Count media by state, blobs and bytes by place, events by type, and say what is missing."""
    async with open_base(config) as base, base.pool.acquire() as conn:
        figures = await statistics(conn)
        rooms = [] if as_json else await _least_complete(conn)
    if as_json:
        click.echo(orjson.dumps(figures))
        return
    console = Console()
    for table in (*_tables(figures), *_coverage(figures["coverage"]), *_rooms(rooms)):
        console.print(table, "")


async def _least_complete(conn: Connection) -> list[dict[str, Any]]:
    room_ids = [
        row["room_id"] for row in await coverage.least_complete(conn, ROOMS) if row["room_id"]
    ]
    known = await knowledge.rooms(conn, room_ids)
    covered = await coverage.of_rooms(conn, room_ids)
    return [
        {"room_id": room_id, "name": known[room_id].name, "coverage": covered[room_id]}
        for room_id in room_ids
    ]


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
        events.add_row(_plain(kind or "(no type)"), f"{number:,}")
    yield events


def _coverage(covered: Mapping[str, Any]) -> Iterator[Table]:
    references = Table("coverage", "references", "why", box=None)
    references.add_row("in all", f"{covered['percent']:.2f} %")
    for state, number in covered["references"].items():
        reasons = covered.get(state, {})
        why = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
        references.add_row(state, f"{number:,}", _plain(why))
    yield references
    emptied, gaps = covered["emptied_events"], covered["gaps"]
    events = Table("what else is known to be missing", "number", box=None)
    events.add_row("encrypted events, which cannot be opened", f"{covered['encrypted_events']:,}")
    events.add_row("emptied by a redaction, original asked for", f"{emptied['wanted']:,}")
    events.add_row("emptied by a redaction, original lost", f"{emptied['lost']:,}")
    events.add_row("never pushed, found in history since", f"{gaps['filled']:,}")
    events.add_row("rooms still to be compared with history", f"{gaps['rooms_open']:,}")
    yield events
    rooms = Table("history", "rooms", box=None)
    for history, number in covered["rooms"].items():
        rooms.add_row(history, f"{number:,}")
    yield rooms


def _rooms(rooms: list[dict[str, Any]]) -> Iterator[Table]:
    if not rooms:
        return
    table = Table("least complete rooms", "", "ready", "pending", "failed", "other", box=None)
    for room in rooms:
        covered = room["coverage"]
        number = covered["references"]
        other = number["quarantined"] + number["excluded"] + number["deleted"]
        counts = (number["ready"], number["pending"], number["failed"], other)
        table.add_row(
            _plain(room["name"] or room["room_id"], NAME_WIDTH),
            f"{covered['percent']:.2f} %",
            *(f"{count:,}" for count in counts),
        )
    yield table


def _plain(text: str, width: int | None = None) -> Text:
    """What others wrote, without what a terminal would obey."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return Text(shown if width is None or len(shown) <= width else shown[: width - 1] + "…")
