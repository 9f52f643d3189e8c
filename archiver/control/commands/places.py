"""`rooms` and `room`: what rooms are called, and how much of each is archived."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click

from archiver.catalogue import coverage, knowledge, tallies
from archiver.catalogue.knowledge import Room
from archiver.control.arguments import ROOM, Target, settled
from archiver.control.asked import Asked
from archiver.control.commands.counting import because
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import moment, plural, short
from archiver.errors import OperationError

MOST = 20


@command("rooms")
@click.argument("text", nargs=-1)
async def rooms(asked: Asked, text: tuple[str, ...]) -> Reply:
    """List the rooms with most media, or those whose name, alias or id contains TEXT.

    How much of what was posted in each is here, how many media that is, and when the newest was
    posted. At most 20 are shown; `room ROOM` tells everything of one.
    """
    sought = " ".join(text).casefold()
    async with asked.means.pool.acquire() as conn:
        among = await tallies.room_ids(conn)
        if sought:
            known = await knowledge.rooms(conn, among)
            among = [room_id for room_id in among if _is_called(sought, room_id, known[room_id])]
        largest = await tallies.largest_rooms(conn, among if sought else None, MOST)
        names = await knowledge.rooms(conn, [room_id for room_id, _ in largest])
        covered = await coverage.of_rooms(conn, [room_id for room_id, _ in largest])
    data = [
        _listed(room_id, newest, names[room_id], covered[room_id]) for room_id, newest in largest
    ]
    if not data:
        return said(
            f"No room is called {sought!r}." if sought else "No room is known yet.", data=[]
        )
    rows = tuple(
        (short(room["name"] or room["room_id"]), f"{room['percent']:.2f} %",
         f"{room['media']:,}", moment(room["newest"]), room["alias"] or room["room_id"])
        for room in data
    )  # fmt: skip
    shown = plural(len(among), "room")
    if len(among) > len(data):
        shown += f", the {len(data)} with most media"
    return said(f"{shown}:", Table(("", "", "media", "newest", ""), rows), data=data)


def _is_called(sought: str, room_id: str, room: Room) -> bool:
    return any(sought in (text or "").casefold() for text in (room.name, room.alias, room_id))


def _listed(
    room_id: str, newest: datetime | None, room: Room, covered: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "room_id": room_id,
        "name": room.name,
        "alias": room.alias,
        "percent": covered["percent"],
        "media": sum(covered["references"].values()),
        "newest": newest,
    }


@command("room")
@click.argument("target", metavar="ROOM", type=ROOM)
async def room(asked: Asked, target: Target) -> Reply:
    """Tell how much of ROOM is archived, what is not and why, and how far its history is known.

    ROOM is a room's id, an alias of it, or a link to it.
    """
    means, room_id = asked.means, (await settled(target, asked.means.history)).value
    async with means.pool.acquire() as conn:
        found = await knowledge.find(conn, room_id)
        if found is None:
            raise OperationError(f"the archive knows nothing of {room_id}: see `rooms`")
        known = (await knowledge.rooms(conn, [room_id]))[room_id]
        covered = (await coverage.of_rooms(conn, [room_id]))[room_id]
    excluded = means.policy.leaves_out_room(room_id)
    data = {
        "room_id": room_id, "name": known.name, "alias": known.alias,
        "encrypted": known.encrypted, "excluded": excluded, "active_at": found["active_at"],
        "coverage": covered,
    }  # fmt: skip
    named = [name for name in (known.alias, room_id) if name and name != known.name]
    states = tuple(
        (state, f"{number:,}", because(covered.get(state, {})))
        for state, number in covered["references"].items()
        if number
    )
    return said(
        f"{known.name or room_id} ({', '.join(named)})" if known.name else room_id,
        f"{covered['percent']:.2f} % of what was posted is here:",
        Table(("", "", ""), states or (("nothing was posted yet", "", ""),)),
        Table(("", ""), tuple(_facts(data))),
        data=data,
    )


def _facts(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What there is to say, beside numbers by state."""
    covered = data["coverage"]
    emptied, gaps, history = covered["emptied_events"], covered["gaps"], covered["history"]
    if data["excluded"]:
        yield "⚠️ left out", "capture.rooms says that nothing of it is archived"
    if data["encrypted"] or covered["encrypted_events"]:
        yield "🔒 encrypted", f"{plural(covered['encrypted_events'], 'event')} cannot be opened"
    if emptied["wanted"] or emptied["lost"]:
        lost = f"{emptied['lost']:,} lost, {emptied['wanted']:,} asked for"
        yield "emptied by redactions", f"originals: {lost}"
    open_gap = "; to be compared with history" if gaps["open"] else "; none open"
    yield "gaps", f"{plural(gaps['filled'], 'event')} never pushed, found since{open_gap}"
    yield "complete", _complete(history)
    if backfill := history["backfill"]:
        yield "backfill", _backfill(backfill)
    if history["reason"]:
        yield "⚠️ history cannot be read", str(history["reason"])
    yield "last active", moment(data["active_at"])


def _complete(history: Mapping[str, Any]) -> str:
    start, until = history["complete_from"], history["complete_until"]
    if start is None or until is None:
        return "not known yet: `backfill ROOM` reads its history"
    return f"from {start if start == 'beginning' else moment(start)} up to {moment(until)}"


def _backfill(backfill: Mapping[str, Any]) -> str:
    words = f"{backfill['state']}, {plural(backfill['events'], 'event')} read"
    if backfill["reached_at"]:
        words += f", back to {moment(backfill['reached_at'])}"
    return f"{words}: {backfill['reason']}" if backfill["reason"] else words
