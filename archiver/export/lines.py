"""Rows as lines of JSON, and lines of a bag, which anybody may have written, as rows."""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from archiver.capture.rows import EventRow, Kept, identifier, storable_json
from archiver.export.names import blob_name
from archiver.model import Mxc, Reference, Role, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from archiver.db.pool import Row

_EVENT = (
    "event_id", "room_id", "sender", "type", "state_key", "origin_server_ts", "sent_at",
    "received_at", "source", "replaces", "redacts", "original", "redacted_by", "redacted_at",
)  # fmt: skip
_MEDIA = (
    "state", "reason", "size", "mimetype", "width", "height", "duration_ms", "declared_type",
    "upload_name", "created_at", "settled_at",
)  # fmt: skip
_REFERENCE = ("role", "item", "filename", "caption", "declared_type", "declared_size")

LAST_TIMESTAMP = 253_402_300_799_000  # milliseconds: the end of the year 9999


class BadLine(ValueError):
    """A line of a bag that no export writes."""


class Brought(NamedTuple):
    """A media as a bag tells of it. `sha256` and `path` where its bytes are in the bag."""

    mxc: Mxc
    state: State
    reason: str | None
    sha256: bytes | None
    path: str
    declared_type: str | None
    upload_name: str | None


def line(value: object) -> bytes:
    """One line of JSON."""
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)


def event_line(row: Row, references: Sequence[Row]) -> bytes:
    """An event as it is kept, and the media that it names."""
    named = [
        {
            "mxc": str(Mxc(reference["server_name"], reference["media_id"])),
            **{key: reference[key] for key in _REFERENCE},
            "encryption": orjson.Fragment(reference["encryption"] or "null"),
        }
        for reference in references
    ]
    raw = row["raw"] and b64encode(row["raw"]).decode()
    told = {key: row[key] for key in _EVENT}
    return line(
        told | {"content": orjson.Fragment(row["content"]), "raw": raw, "references": named}
    )


def media_line(row: Row, sha256: bytes | None) -> bytes:
    """A media; of one whose bytes are in the bag also where."""
    path = blob_name(sha256, row["mimetype"]) if sha256 else None
    mxc = str(Mxc(row["server_name"], row["media_id"]))
    told = {key: row[key] for key in _MEDIA}
    return line({"mxc": mxc, **told, "sha256": sha256 and sha256.hex(), "path": path})


def kept_of(text: bytes) -> Kept:
    """The event of a line, as capturing would have kept it. Raises BadLine."""
    try:
        told = orjson.loads(text)
        content = told["content"]
        row = EventRow(
            _needed(identifier(told["event_id"])),
            identifier(told["room_id"]),
            identifier(told["sender"]),
            identifier(told["type"]),
            identifier(told["state_key"], or_empty=True),
            _timestamp(told["origin_server_ts"]),
            _needed(storable_json(content) if isinstance(content, dict) else None),
            None if told["raw"] is None else b64decode(told["raw"], validate=True),
            identifier(told["replaces"]),
            identifier(told["redacts"]),
            told["original"] if told["original"] in {"wanted", "lost"} else None,
        )
        return Kept(row, [_reference(named) for named in told["references"]], left_out=False)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadLine(str(error)) from error


def brought_of(text: bytes) -> Brought:
    """The media of a line. Raises BadLine."""
    try:
        told = orjson.loads(text)
        sha256 = None if told["sha256"] is None else bytes.fromhex(told["sha256"])
        mimetype = _text(told["mimetype"])
        return Brought(
            _mxc(told["mxc"]),
            State(told["state"]),
            _text(told["reason"]),
            sha256,
            blob_name(sha256, mimetype) if sha256 else "",
            _text(told["declared_type"]),
            _text(told["upload_name"]),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadLine(str(error)) from error


def _reference(told: dict[str, Any]) -> Reference:
    encryption, item = told["encryption"], _integer(told["item"]) or 0
    if not 0 <= item < 2**15:
        raise ValueError("an event has no item of this number")
    return Reference(
        _mxc(told["mxc"]),
        Role(told["role"]),
        item,
        _text(told["filename"]),
        _text(told["caption"]),
        _text(told["declared_type"]),
        _integer(told["declared_size"]),
        encryption if isinstance(encryption, dict) else None,
    )


def _mxc(value: str) -> Mxc:
    server_name, _, media_id = value.removeprefix("mxc://").partition("/")
    mxc = Mxc.checked(server_name, media_id)
    if mxc is None:
        raise ValueError("there is no such mxc")
    return mxc


def _needed(value: str | None) -> str:
    if value is None:
        raise ValueError("something that has to be told is not")
    return value


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError("something is no text")
    return value.replace("\0", "\ufffd") if value else value


def _timestamp(value: Any) -> int | None:
    """None for a year that PostgreSQL does not know."""
    return value if type(value) is int and 0 <= value <= LAST_TIMESTAMP else None


def _integer(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not -(2**63) <= value < 2**63):
        raise ValueError("something is no integer")
    return value
