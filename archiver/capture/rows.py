"""From a raw event to what is kept of it: pure, and total: any JSON value goes in."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import orjson

from archiver.capture.batch import Batch
from archiver.capture.policy import CapturePolicy
from archiver.capture.prefix import begins_command
from archiver.capture.references import find_references
from archiver.model import Reference, Role

ID_MAX_BYTES = 255  # https://spec.matrix.org/v1.16/appendices/#size-limits

# Kept although they carry no media: polls, what a redaction policy acts on, what cannot be opened.
KEPT_TYPES = frozenset(
    {
        "m.poll.start",
        "m.poll.response",
        "m.poll.end",
        "org.matrix.msc3381.poll.start",
        "org.matrix.msc3381.poll.response",
        "org.matrix.msc3381.poll.end",
        "m.room.redaction",
        "m.room.encrypted",
    }
)
# As state, what lists need to read like people talk, and who may end a poll. Also without media: a
# face that was taken off, a pack that was emptied, and who left are worth knowing, too.
KEPT_STATE = frozenset(
    {
        "m.room.create",
        "m.room.member",
        "m.room.name",
        "m.room.canonical_alias",
        "m.room.avatar",
        "m.room.encryption",
        "m.room.power_levels",
        "m.room.image_pack",
        "im.ponies.room_emotes",
    }
)


class EventRow(NamedTuple):
    """A row of `event`. `raw` is set when PostgreSQL's jsonb cannot hold the content; `original`
    is `wanted` when the event came emptied by a redaction, so that what it held is unknown."""

    event_id: str
    room_id: str | None
    sender: str | None
    type: str | None
    state_key: str | None
    origin_server_ts: int | None
    content: str
    raw: bytes | None
    replaces: str | None
    redacts: str | None
    original: str | None = None


class Kept(NamedTuple):
    """What is kept of one event. `left_out`: its room is excluded, so no words of it are kept."""

    row: EventRow
    references: list[Reference]
    left_out: bool


def keep(batch: Batch, policy: CapturePolicy) -> list[Kept]:
    """What is to be kept of a batch; most events of a homeserver concern no archive."""
    found = (keep_one(batch, index, policy) for index in range(len(batch.events)))
    return [kept for kept in found if kept is not None]


def keep_one(batch: Batch, index: int, policy: CapturePolicy) -> Kept | None:
    """What is to be kept of the event at `index`; None where it concerns no archive."""
    event = batch.events[index]
    fields = event if isinstance(event, dict) else {}
    references = find_references(event).references
    emptied = not references and _is_redacted(fields)
    if not references and not emptied and not _is_kept_type(fields):
        return None
    if policy.leaves_out_sender(fields.get("sender")):
        return None
    if policy.prefix and references and _is_command(fields, references, policy.prefix):
        return None
    left_out = policy.leaves_out_room(identifier(fields.get("room_id")))
    if left_out and not references:
        return None
    row = _row(batch, index, fields)
    if emptied:
        row = row._replace(original="wanted")
    if left_out:
        row = row._replace(content="{}", raw=None)
        references = [_wordless(reference) for reference in references]
    return Kept(row, references, left_out)


def _is_command(fields: dict[str, Any], references: list[Reference], prefix: str) -> bool:
    """True for words to our bot that show no media: to ask about one is not to post it, and would
    keep it from being deleted with what did."""
    content = fields.get("content")
    body = content.get("body") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(body, str):
        return False
    if content.get("msgtype") != "m.text" or fields.get("type") != "m.room.message":
        return False
    return begins_command(body, prefix.casefold()) and all(
        r.role is Role.OTHER and str(r.mxc) in body for r in references
    )


def bare(found: Kept) -> Kept:
    """The least that can be kept of an event: its bytes, and which media it names."""
    row = found.row
    raw = row.raw or repr(row).encode("utf-8", "backslashreplace")
    name = "sha256:" + hashlib.sha256(raw).hexdigest()
    nothing = EventRow(name, None, None, None, None, None, "{}", raw, None, None)
    return Kept(nothing, [_wordless(reference) for reference in found.references], found.left_out)


def _wordless(reference: Reference) -> Reference:
    """The same without what its sender wrote: media, role and place are left."""
    return Reference(reference.mxc, reference.role, reference.item)


def _is_kept_type(fields: dict[str, Any]) -> bool:
    kind = fields.get("type")
    if not isinstance(kind, str):
        return False
    if kind in KEPT_TYPES:
        return True
    return kind in KEPT_STATE and isinstance(fields.get("state_key"), str)


def _is_redacted(fields: dict[str, Any]) -> bool:
    """True when the homeserver says that a redaction emptied it before it came to us.

    https://spec.matrix.org/v1.16/client-server-api/#redactions
    """
    unsigned = fields.get("unsigned")
    if not isinstance(unsigned, dict) or fields.get("type") == "m.room.redaction":
        return False
    return bool(unsigned.get("redacted_because") or unsigned.get("redacted_by"))


def _row(batch: Batch, index: int, fields: dict[str, Any]) -> EventRow:
    content = fields.get("content")
    stored = storable_json(content) if isinstance(content, dict) else None
    event_id = identifier(fields.get("event_id"))
    raw = None if stored and event_id and batch.exact else batch.raw(index)
    body: dict[str, Any] = content if isinstance(content, dict) else {}
    return EventRow(
        event_id or "sha256:" + hashlib.sha256(raw or b"").hexdigest(),
        identifier(fields.get("room_id")),
        identifier(fields.get("sender")),
        identifier(fields.get("type")),
        identifier(fields.get("state_key"), or_empty=True),
        _timestamp(fields.get("origin_server_ts")),
        stored or _relation(body),
        raw,
        _replaces(body),
        # Room version 11 moved it into the content: https://spec.matrix.org/v1.16/rooms/v11/
        identifier(body.get("redacts")) or identifier(fields.get("redacts")),
    )


def _relation(content: dict[str, Any]) -> str:
    """Of a content that jsonb cannot hold, what it relates to: a vote is found by it."""
    return (
        storable_json({key: content[key] for key in ("m.relates_to",) if key in content}) or "{}"
    )


def storable_json(value: Any) -> str | None:
    """JSON text that jsonb takes; None for NUL, lone surrogates, huge numbers, deep nesting."""
    try:
        text = orjson.dumps(value)
    except TypeError:
        return None
    return None if b"\\u0000" in text else text.decode()


def identifier(value: Any, or_empty: bool = False) -> str | None:
    """A Matrix identifier as PostgreSQL text; None when it is none that Matrix would allow."""
    if not isinstance(value, str) or "\0" in value or not (value or or_empty):
        return None
    if not value.isascii():
        try:
            return value if len(value.encode()) <= ID_MAX_BYTES else None
        except UnicodeEncodeError:
            return None
    return value if len(value) <= ID_MAX_BYTES else None


def _timestamp(value: Any) -> int | None:
    """Milliseconds since 1970, where they are such; never a year that PostgreSQL does not know."""
    if type(value) is int and 0 <= value <= 253_402_300_799_000:
        return value
    return None


def _replaces(content: dict[str, Any]) -> str | None:
    """The event that this one edits (https://spec.matrix.org/v1.16/client-server-api/#event-replacements)."""
    relation = content.get("m.relates_to")
    if isinstance(relation, dict) and relation.get("rel_type") == "m.replace":
        return identifier(relation.get("event_id"))
    return None
