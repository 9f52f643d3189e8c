"""`stats`: what is kept, what waits, what is missing, and who or what fills the archive."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from archiver.catalogue import coverage, knowledge
from archiver.catalogue.counting import OVERDUE, Count, Counted, anew, recent
from archiver.catalogue.stats import FIGURES, told
from archiver.catalogue.tallies import GROUPS, Group, groups
from archiver.control.asked import Asked
from archiver.control.commands.sizing import sizes
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.watching.disks import Space, spaces
from archiver.control.words import plural, short, span
from archiver.units import format_size

if TYPE_CHECKING:
    from archiver.config import Config
    from archiver.db.pool import Connection

ROOMS = 10
MOST = 15
REASONS = 8


@command("stats")
@click.argument("group", type=click.Choice(GROUPS), required=False)
@click.option("--now", is_flag=True, help="Count now, which takes a while in a large archive.")
async def stats(asked: Asked, group: Group | None, now: bool) -> Reply:
    """Count media, files, events and what is missing; or media and bytes by GROUP.

    Without a group: media by state, files and bytes by place, events by type, what sharing bytes
    saves, how the archive grew and will grow, how much of what was posted is here, what is not and
    why, and the rooms that lack most.

    With room, user or type: the 15 that hold most bytes. With month: the latest 15. A media counts
    once in its group, and so do bytes that several media of the group share. The type is what the
    bytes are, whatever their sender called them.

    A large archive is counted every few minutes, and it is told how long ago; with --now it is
    counted for you.
    """
    async with asked.means.pool.acquire() as conn:
        if group is not None:
            return await _grouped(conn, group, now=now)
        counted, lacking = [await _counted(conn, what, now=now) for what in (FIGURES, LEAST)]
        figures = await told(conn, counted)
        rooms = await _named(conn, lacking.value)
    tables = (
        *_totals(figures),
        *sizes(figures, await _room_left(asked.means.config)),
        *_coverage(figures["coverage"]),
        *_rooms(rooms),
    )
    shown = [part for title, table in tables for part in (title, table)]
    return said(*_when(counted), *shown, data=figures)


async def _counted(conn: Connection, what: Count, *, now: bool) -> Counted:
    """By us only where nobody else does so in time."""
    return await (anew(conn, what) if now else recent(conn, what, OVERDUE))


def _when(counted: Counted) -> list[str]:
    seconds = counted.age.total_seconds()
    return [f"Counted {span(seconds)} ago; --now counts anew."] if seconds else []


async def _grouped(conn: Connection, group: Group, *, now: bool) -> Reply:
    counted = await _counted(conn, groups(group), now=now)
    found: list[dict[str, Any]] = counted.value[:MOST]
    names: dict[str, str] = {}
    if group == "room":
        known = await knowledge.rooms(conn, [tally["key"] for tally in found if tally["key"]])
        names = {room_id: room.name or room_id for room_id, room in known.items()}
    if not found:
        return said("Nothing is archived yet.", data=[])
    rows = tuple(_tally(tally, names.get(tally["key"], tally["key"])) for tally in found)
    order = "the latest first" if group == "month" else "most bytes first"
    data = [{**tally, "name": names.get(tally["key"])} for tally in found]
    table = Table(("", "media", ""), rows)
    return said(f"By {group}, {order}:", table, *_when(counted), data=data)


async def _room_left(config: Config) -> Space | None:
    """The disk on which large files are kept, where it is a folder of ours."""
    if config.storage.objects != "filesystem":
        return None
    found = await asyncio.to_thread(spaces, [config.storage.filesystem.path])
    return found[0] if found else None


def _tally(tally: Mapping[str, Any], name: str) -> tuple[str, str, str]:
    return short(name) or "(unknown)", f"{tally['media']:,}", format_size(tally["bytes"])


async def _least_complete(conn: Connection) -> list[dict[str, Any]]:
    room_ids = [
        row["room_id"] for row in await coverage.least_complete(conn, ROOMS) if row["room_id"]
    ]
    covered = await coverage.of_rooms(conn, room_ids)
    return [{"room_id": room_id, "coverage": covered[room_id]} for room_id in room_ids]


LEAST = Count("least complete rooms", _least_complete)


async def _named(conn: Connection, rooms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    known = await knowledge.rooms(conn, [room["room_id"] for room in rooms])
    return [{**room, "name": known[room["room_id"]].name} for room in rooms]


def _totals(figures: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    media = tuple((state, f"{number:,}") for state, number in figures["media"].items())
    yield "Media by state:", Table(("", ""), media)
    blobs = tuple(
        (place, f"{row['blobs']:,}", format_size(row["bytes"]))
        for place, row in figures["blobs"].items()
    )
    yield "Files by place:", Table(("", "", ""), blobs)
    kinds = list(figures["events"].items())
    events = [(short(kind) or "(no type)", f"{number:,}") for kind, number in kinds[:MOST]]
    if rest := sum(number for _, number in kinds[MOST:]):
        events.append((f"{plural(len(kinds) - MOST, 'other type')}", f"{rest:,}"))
    yield "Events by type:", Table(("", ""), tuple(events))


def _coverage(covered: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    references = tuple(
        (state, f"{number:,}", because(covered.get(state, {})))
        for state, number in covered["references"].items()
    )
    title = f"Coverage: {covered['percent']:.2f} % of what was posted is here."
    yield title, Table(("", "", ""), references)
    yield "What else is known to be missing:", Table(("", ""), _missing(covered))
    rooms = tuple((history, f"{number:,}") for history, number in covered["rooms"].items())
    yield "History of rooms:", Table(("", ""), rooms)


def _missing(covered: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    emptied, gaps = covered["emptied_events"], covered["gaps"]
    return (
        ("encrypted events, which cannot be opened", f"{covered['encrypted_events']:,}"),
        ("emptied by a redaction, original asked for", f"{emptied['wanted']:,}"),
        ("emptied by a redaction, original lost", f"{emptied['lost']:,}"),
        ("never pushed, found in history since", f"{gaps['filled']:,}"),
        ("rooms still to be compared with history", f"{gaps['rooms_open']:,}"),
    )


def _rooms(rooms: list[dict[str, Any]]) -> Iterator[tuple[str, Table]]:
    if not rooms:
        return
    rows = []
    for room in rooms:
        covered = room["coverage"]
        number = covered["references"]
        other = number["quarantined"] + number["excluded"] + number["deleted"]
        counts = (number["ready"], number["pending"], number["failed"], other)
        name = short(room["name"] or room["room_id"])
        rows.append((name, f"{covered['percent']:.2f} %", *(f"{count:,}" for count in counts)))
    columns = ("", "", "ready", "pending", "failed", "other")
    yield "Least complete rooms:", Table(columns, tuple(rows))


def because(reasons: Mapping[str, int]) -> str:
    """The commonest reasons with how often each holds."""
    common = sorted(reasons.items(), key=lambda reason: -reason[1])
    words = [f"{reason}: {count:,}" for reason, count in common[:REASONS]]
    return ", ".join(words + ["…"] * (len(common) > REASONS))
