"""Which events of a push concern the bot: pure, and total: any JSON value goes in.

Who gave a command, and where, is judged by who answers it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from archiver.capture.prefix import begins_command
from archiver.capture.rows import identifier
from archiver.matrix.signs import CANCEL, OK

# A keyboard may or may not ask for the coloured picture of a sign.
VARIATION_SELECTOR = "\ufe0f"


class Summons(NamedTuple):
    """An event that concerns the bot; `raw` is its JSON."""

    event_id: str
    room_id: str
    sender: str
    raw: bytes


def summoned(events: Iterable[Any], prefix: str, bot: str) -> list[Summons]:
    """Commands, which begin with `prefix`, in any room; OK and Cancel under any message; and what
    happens to the membership of `bot`. Of what it sends itself, its membership alone."""
    prefix = prefix.casefold()
    found = (
        _summons(event)
        for event in events
        if isinstance(event, dict) and _concerns(event, prefix, bot)
    )
    return [summons for summons in found if summons is not None]


def _concerns(event: dict[str, Any], prefix: str, bot: str) -> bool:
    kind = event.get("type")
    if kind == "m.room.member":
        return event.get("state_key") == bot
    if kind == "m.room.message":
        is_one = _is_command(event.get("content"), prefix)
    elif kind == "m.reaction":
        is_one = _is_answer(event.get("content"))
    else:
        return False
    return is_one and event.get("sender") != bot


def _is_command(content: Any, prefix: str) -> bool:
    """An edit is none: what was carried out cannot be taken back by writing something else.

    https://spec.matrix.org/v1.16/client-server-api/#event-replacements
    """
    if not isinstance(content, dict) or content.get("msgtype") != "m.text":
        return False
    body = content.get("body")
    if not isinstance(body, str):
        return False
    if not begins_command(body, prefix):
        return False
    relation = content.get("m.relates_to")
    return not isinstance(relation, dict) or relation.get("rel_type") != "m.replace"


def _is_answer(content: Any) -> bool:
    """https://spec.matrix.org/v1.16/client-server-api/#event-annotations-and-reactions"""
    relation = content.get("m.relates_to") if isinstance(content, dict) else None
    key = relation.get("key") if isinstance(relation, dict) else None
    return isinstance(key, str) and key.replace(VARIATION_SELECTOR, "") in (OK, CANCEL)


def _summons(event: dict[str, Any]) -> Summons | None:
    """None for what has no proper identifiers, or what nobody could write again as JSON."""
    event_id, room_id = identifier(event.get("event_id")), identifier(event.get("room_id"))
    sender = identifier(event.get("sender"))
    try:
        raw = orjson.dumps(event)
    except TypeError:
        return None
    return Summons(event_id, room_id, sender, raw) if event_id and room_id and sender else None
