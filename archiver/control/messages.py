"""What the bot says, as contents of events: pure.

Always notices, which no bot answers, and which mention nobody.
https://spec.matrix.org/v1.16/client-server-api/#mnotice
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from archiver.capture.rows import identifier
from archiver.control.reply import Code, Picture, Reply, Table, as_html, plain, printable

# An event has 65,536 bytes: https://spec.matrix.org/v1.16/client-server-api/#size-limits
# The rest is for what the homeserver adds, and for an edit's words to those who see no edits.
MAX_CONTENT = 48 * 1024

_MAX_SAID = MAX_CONTENT - 2048  # relations, and the names of all fields
_MAX_TEXTS = _MAX_SAID // 2  # where they are cut, to leave space for tables
_MAX_FALLBACK = 1000
_MAX_NAME = 255
_MAX_PARTS = 100
_MORE_BYTES = 100  # of "… and 37 more", as text and as HTML
_CHARACTER_BYTES = 8  # at worst, as text and as HTML, escaped for JSON: a quotation mark
_MARKUP_BYTES = 40  # around a text, with the sign that it was cut

Part = str | Table | Code


def answer(reply: Reply, to: dict[str, Any]) -> dict[str, Any]:
    """A reply to an event, in its thread if it is in one."""
    return {**notice(reply), "m.relates_to": _relation(to)}


def notice(reply: Reply) -> dict[str, Any]:
    """A message to nobody in particular. What is too long loses rows, and tells how many."""
    fitting = _fitting(reply)
    return {
        "msgtype": "m.notice",
        "body": plain(fitting),
        "format": "org.matrix.custom.html",
        "formatted_body": as_html(fitting),
        "m.mentions": {},
    }


def edit(event_id: str, content: dict[str, Any]) -> dict[str, Any]:
    """Shows `content` in place of an earlier message of ours; what that replied to stays.

    https://spec.matrix.org/v1.16/client-server-api/#event-replacements
    """
    return {
        "msgtype": content["msgtype"],
        "body": "* " + _shortened(content["body"], _MAX_FALLBACK),
        "m.mentions": {},
        "m.new_content": {key: content[key] for key in content if key != "m.relates_to"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
    }


def picture(shown: Picture, to: dict[str, Any]) -> dict[str, Any]:
    """A picture in reply to an event.

    https://spec.matrix.org/v1.16/client-server-api/#mimage
    """
    name = _shortened(printable(shown.name), _MAX_NAME)
    info = {"mimetype": shown.mimetype, "size": shown.size, "w": shown.width, "h": shown.height}
    return {
        "msgtype": "m.image",
        "body": name,
        "filename": name,
        "url": str(shown.mxc),
        "info": {key: value for key, value in info.items() if value is not None},
        "m.mentions": {},
        "m.relates_to": _relation(to),
    }


def _relation(to: dict[str, Any]) -> dict[str, Any]:
    """https://spec.matrix.org/v1.16/client-server-api/#replies-inside-threads"""
    reply = {"m.in_reply_to": {"event_id": to["event_id"]}}
    content = to.get("content")
    relation = content.get("m.relates_to") if isinstance(content, dict) else None
    if not isinstance(relation, dict) or relation.get("rel_type") != "m.thread":
        return reply
    root = identifier(relation.get("event_id"))
    if root is None:
        return reply
    return {"rel_type": "m.thread", "event_id": root, "is_falling_back": False, **reply}


def _fitting(reply: Reply) -> Reply:
    """The same, without the rows at the end of tables that one event has no space for, and where
    the texts beside them are too long, without their ends."""
    if _cost(*reply.parts) <= _MAX_SAID:
        return reply
    parts = reply.parts[:_MAX_PARTS]
    if _cost(*(part for part in parts if not isinstance(part, Table))) > _MAX_TEXTS:
        share = _MAX_TEXTS // len(parts)
        parts = tuple(_cut(part, (share - _MARKUP_BYTES) // _CHARACTER_BYTES) for part in parts)
    left = _MAX_SAID - sum(
        _MORE_BYTES if isinstance(part, Table) else _cost(part) for part in parts
    )
    fitting: list[Part] = []
    for part in parts:
        if not isinstance(part, Table):
            fitting.append(part)
            continue
        rows, left = _rows(part, left)
        fitting.append(replace(part, rows=rows))
        if len(rows) < len(part.rows):
            fitting.append(f"… and {len(part.rows) - len(rows):,} more")
    return replace(reply, parts=tuple(fitting))


def _rows(table: Table, left: int) -> tuple[tuple[tuple[str, ...], ...], int]:
    """The first rows, as many as `left` bytes hold, and the bytes that are left after them."""
    for index, row in enumerate(table.rows):
        cost = _cost(replace(table, rows=(row,)))
        if cost > left:
            return table.rows[:index], left
        left -= cost
    return table.rows, left


def _cost(*parts: Part) -> int:
    """The bytes that these take in an event. Never more together than one by one: a piece's own
    quotation marks take as many as a line between two."""
    reply = Reply(parts)
    return len(orjson.dumps(plain(reply))) + len(orjson.dumps(as_html(reply)))


def _cut(part: Part, length: int) -> Part:
    if isinstance(part, Code):
        return Code(_shortened(part.text, length))
    return _shortened(part, length) if isinstance(part, str) else part


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "…"
