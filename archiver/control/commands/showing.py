"""`show`: everything that is known of a media or an event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from archiver.catalogue import blobs, events, holds, knowledge, media, readers
from archiver.catalogue.knowledge import Room, words
from archiver.control.arguments import Target, TargetType, mxc_of
from archiver.control.asked import Asked
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import moment, person, plural, short
from archiver.errors import OperationError
from archiver.model import Mxc, Role
from archiver.units import format_size

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

MOST = 10
SHOWN = TargetType("mxc", "event")


@dataclass(frozen=True)
class Known:
    """All that the catalogue knows of a media; the newest MOST references and reads."""

    mxc: Mxc
    row: Row
    blob: Row | None
    references: list[Row]
    rooms: dict[str, Room]
    reads: list[Row]
    holds: list[Row]


@command("show")
@click.argument("target", type=SHOWN)
async def show(asked: Asked, target: Target) -> Reply:
    """Tell all that is known of TARGET, a media (mxc://...) or an event (its id or a link).

    Its state and why, its bytes and where they are, who posted it where and when, who read it, and
    what holds it. Of an event that names several media: of its content, and the state of all.
    """
    async with asked.means.pool.acquire() as conn:
        if target.kind == "event":
            return await _event(conn, target.value)
        known = await _known(conn, mxc_of(target))
    if known is None:
        raise OperationError(f"nobody ever posted {target} where the archive could see it")
    return said(*_parts(known), data=_data(known))


async def _event(conn: Connection, event_id: str) -> Reply:
    row = await events.find(conn, event_id)
    if row is None:
        raise OperationError(
            f"{event_id} is not in the archive, which keeps no ordinary text messages"
        )
    named = await events.references(conn, [event_id])
    room_id = row["room_id"]
    rooms = await knowledge.rooms(conn, [room_id]) if room_id else {}
    data: dict[str, Any] = {
        **{key: row[key] for key in ("event_id", "type", "room_id", "sent_at", "received_at")},
        "sender": row["sender"],
        "redacted_by": row["redacted_by"],
        "redaction_reason": row["redaction_reason"],
        "edit_of": row["replaces"] if row["is_edit"] else None,
    }
    heading = "\n".join(_happened(row, rooms.get(room_id)))
    if not named:
        return said(heading, "It names no media.", data={"event": data, "media": None})
    first = min(named, key=lambda reference: reference["role"] != Role.CONTENT)
    known = await _known(conn, Mxc(first["server_name"], first["media_id"]))
    if known is None:  # a reference holds on to its media
        raise OperationError(f"{event_id} changed just now: ask again")
    parts: tuple[str | Table, ...] = _parts(known)
    if len(named) > 1:
        table = Table(("", "", "", ""), tuple(map(_named, named)))
        parts = (f"It names {plural(len(named), 'media', 'media')}:", table, *parts)
    return said(heading, *parts, data={"event": data, "media": _data(known)})


def _happened(row: Row, room: Room | None) -> Iterator[str]:
    who = person(words(row["sender_name"]), row["sender"] or "(unknown)")
    where = (room and room.name) or row["room_id"] or "(unknown)"
    yield f"{row['event_id']}: {row['type']} by {short(who, 100)} in {short(where)}"
    yield f"sent {moment(row['sent_at'])}, received {moment(row['received_at'])}"
    if row["is_edit"]:
        yield f"an edit of {row['replaces']}"
    if row["redacted_by"]:
        reason = f": {short(row['redaction_reason'], 200)}" if row["redaction_reason"] else ""
        yield f"redacted by {row['redactor'] or 'somebody'}{reason}"


def _named(row: Row) -> tuple[str, ...]:
    reason = f"{row['state']}: {row['reason']}" if row["reason"] else str(row["state"])
    mxc = str(Mxc(row["server_name"], row["media_id"]))
    return mxc, row["role"], short(row["filename"] or ""), reason


async def _known(conn: Connection, mxc: Mxc) -> Known | None:
    row = await media.describe(conn, mxc, unredacted=False)
    if row is None:
        return None
    references = await media.references(conn, mxc, MOST, unredacted=False)
    room_ids = {reference["room_id"] for reference in references if reference["room_id"]}
    return Known(
        mxc,
        row,
        await blobs.find(conn, bytes.fromhex(row["sha256"])) if row["sha256"] else None,
        references,
        await knowledge.rooms(conn, sorted(room_ids)),
        await readers.page(conn, readers.Asked(mxc=mxc), None, MOST + 1),
        await holds.on_media(conn, mxc, MOST),
    )


def _parts(known: Known) -> tuple[str | Table, ...]:
    row = known.row
    state = f"{known.mxc} is {row['state']}"
    state += f": {row['reason']}" if row["reason"] else ""
    lines = [state, f"first seen {moment(row['created_at'])}, settled {moment(row['settled_at'])}"]
    if row["due_at"]:
        lines.append(f"to be tried at {moment(row['due_at'])}, after {row['attempts']:,} before")
    if row["redacted"]:
        lines.append("every event that names it was redacted")
    parts: list[str | Table] = ["\n".join(lines)]
    parts.append(_bytes(known.blob) if known.blob else "There are no bytes of it.")
    parts += _posted(known)
    parts += _read(known)
    if known.holds:
        rows = tuple(
            (str(hold["target"]), short(hold["reason"], 200), str(hold["holder"]),
             moment(hold["created_at"]))
            for hold in known.holds
        )  # fmt: skip
        parts += ["It is held:", Table(("", "", "by", "since"), rows)]
    return tuple(parts)


def _bytes(blob: Row) -> str:
    facts = [format_size(blob["size"]), blob["mimetype"] or "no known type"]
    if blob["width"]:
        facts.append(f"{blob['width']} x {blob['height']} pixels")
    if blob["duration_ms"] is not None:
        facts.append(f"{blob['duration_ms'] / 1000:.1f} s")
    facts += [f"kept {blob['place']}", f"verified {moment(blob['verified_at'])}"]
    if blob["locked_at"]:
        facts.append(f"locked in its bucket since {moment(blob['locked_at'])}")
    if blob["media"] > 1:
        facts.append(f"shared by {blob['media']:,} media")
    damaged = ""
    if blob["damaged_at"]:
        damaged = (
            f"\n❌ damaged since {moment(blob['damaged_at'])}: it is fetched again, see `verify`"
        )
    return f"{', '.join(facts)}\nSHA-256 {blob['sha256']}{damaged}{_scan(blob)}"


def _scan(blob: Row) -> str:
    if blob["scan"] is None:
        return ""
    reason = f": {blob['scan_reason']}" if blob["scan_reason"] else ""
    engine = f" ({blob['scan_engine']})" if blob["scan_engine"] else ""
    return f"\nscan {moment(blob['scanned_at'])}: {blob['scan']}{reason}{engine}"


def _posted(known: Known) -> list[str | Table]:
    if not known.references:
        return ["No event names it any more."]
    number = known.row["reference_count"]
    more = number - len(known.references)
    heading = f"Posted {plural(number, 'time')}" + (f", the newest {MOST}:" if more > 0 else ":")
    rows = tuple(_reference(row, known.rooms.get(row["room_id"])) for row in known.references)
    return [heading, Table(("", "in", "", "as", ""), rows)]


def _reference(row: Row, room: Room | None) -> tuple[str, ...]:
    role = ": ".join(filter(None, (row["role"], short(row["filename"] or ""))))
    return (
        short(person(words(row["sender_name"]), row["sender"] or "(unknown)"), 80),
        short((room and room.name) or row["room_id"] or "(unknown)"),
        moment(_sent(row)) if _sent(row) else "",
        f"{role}, redacted" if row["redacted_by"] else role,
        row["event_id"],
    )


def _read(known: Known) -> list[str | Table]:
    if not known.reads:
        return ["Nobody is known to have read it here."]
    rows = tuple(
        (short(read["reader"], 80), plural(read["times"], "time"), moment(read["last_at"]))
        for read in known.reads[:MOST]
    )
    last = f" last ({MOST} of more)" if len(known.reads) > MOST else ""
    return [f"Read{last} by:", Table(("", "", ""), rows)]


def _sent(row: Row) -> datetime | None:
    """When its sender says that it was sent, who may say anything."""
    try:
        return datetime.fromtimestamp(row["origin_server_ts"] / 1000, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


_REFERENCE = ("event_id", "room_id", "sender", "role", "item", "filename", "caption")
_READ = ("reader", "via", "times", "first_at", "last_at")
_MEDIA = ("state", "reason", "attempts", "due_at", "created_at", "settled_at", "redacted",
          "reference_count", "access_count", "last_accessed")  # fmt: skip


def _data(known: Known) -> dict[str, Any]:
    return {
        "mxc": str(known.mxc),
        **{key: known.row[key] for key in _MEDIA},
        "blob": dict(known.blob) if known.blob else None,
        "references": [
            {**_only(row, _REFERENCE), "sent_at": _sent(row)} for row in known.references
        ],
        "reads": [_only(row, _READ) for row in known.reads[:MOST]],
        "holds": [dict(row) for row in known.holds],
    }


def _only(row: Row, keys: Sequence[str]) -> dict[str, Any]:
    return {key: row[key] for key in keys}
