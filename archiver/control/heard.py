"""What came for the bot, with the shape that Matrix gives it; what has another is nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson


class Heard(NamedTuple):
    """An event: who sent what where. `raw` is the whole of it."""

    event_id: str
    room_id: str
    sender: str
    kind: str
    content: dict[str, Any]
    raw: dict[str, Any]

    @property
    def body(self) -> str:
        """What a message says; empty for everything else."""
        body = self.content.get("body")
        return body if isinstance(body, str) else ""

    @property
    def reaction(self) -> tuple[str, str] | None:
        """Under which event, and what.

        https://spec.matrix.org/v1.16/client-server-api/#event-annotations-and-reactions
        """
        relation = self.content.get("m.relates_to")
        if not isinstance(relation, dict):
            return None
        target, key = relation.get("event_id"), relation.get("key")
        if not isinstance(target, str) or not isinstance(key, str):
            return None
        return target, key.replace("\ufe0f", "")

    @property
    def membership(self) -> tuple[str, str] | None:
        """Whose membership became what."""
        user_id, membership = self.raw.get("state_key"), self.content.get("membership")
        if not isinstance(user_id, str) or not isinstance(membership, str):
            return None
        return user_id, membership


def heard(event_id: str, room_id: str, sender: str, raw: bytes) -> Heard | None:
    """The event of these bytes; None where they are none."""
    try:
        event = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(event, dict):
        return None
    kind, content = event.get("type"), event.get("content")
    if not isinstance(kind, str) or not isinstance(content, dict):
        return None
    return Heard(event_id, room_id, sender, kind, content, event)
