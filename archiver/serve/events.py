"""One event as it is kept: who said it where, which media it names, and what became of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from archiver.catalogue import events, knowledge
from archiver.catalogue.knowledge import words
from archiver.db.pool import Pool
from archiver.errors import NotFound
from archiver.model import Mxc, Scope
from archiver.serve.answers import redaction, reply
from archiver.serve.auth import SCOPE
from archiver.serve.database import connection
from archiver.serve.paging import named

if TYPE_CHECKING:
    from archiver.db.pool import Row

EDITS = 100

_AS_KEPT = (
    "event_id",
    "type",
    "state_key",
    "sent_at",
    "origin_server_ts",
    "received_at",
    "source",
)


class Events:
    """Answers with events. Where it `hides_redacted`, the words of redacted ones, and of edits of
    such, are for administrators only."""

    def __init__(self, pool: Pool, *, hides_redacted: bool) -> None:
        self._pool = pool
        self._hides_redacted = hides_redacted

    async def get(self, request: web.Request) -> web.Response:
        """An event with its references, and the valid edits of it with theirs."""
        event_id = named(request, "event_id")
        async with connection(self._pool) as conn:
            event = await events.find(conn, event_id)
            if event is None:
                raise NotFound(
                    "this event is not in the archive, which keeps no ordinary text messages"
                )
            edits = [] if event["is_edit"] else await events.edits(conn, event_id, EDITS)
            names = [event_id, *(edit["event_id"] for edit in edits)]
            references = await events.references(conn, names)
            room_id = event["room_id"]
            room = (await knowledge.rooms(conn, [room_id]))[room_id] if room_id else None
        of_event = defaultdict(list)
        for reference in references:
            of_event[reference["event_id"]].append(reference)
        shown = [
            self._shown(row, of_event[row["event_id"]], request[SCOPE]) for row in (event, *edits)
        ]
        return reply(
            {
                **shown[0],
                "room": {"room_id": room_id, "name": room and room.name},
                "edit_of": event["replaces"]
                and {"event_id": event["replaces"], "valid": event["is_edit"]},
                "edits": shown[1:],
            }
        )

    def _shown(self, row: Row, references: Sequence[Row], scope: Scope) -> dict[str, Any]:
        hidden = row["redacted"] and self._hides_redacted and scope is not Scope.ADMIN
        sender = row["sender"]
        return {
            **{key: row[key] for key in _AS_KEPT},
            "sender": {"user_id": sender, "displayname": words(row["sender_name"]) or sender},
            "content": None if hidden or row["raw"] else orjson.Fragment(row["content"]),
            "raw": row["raw"].decode("utf-8", "replace") if row["raw"] and not hidden else None,
            "original": row["original"],
            "redacted": redaction(row, emptied=row["original"] is not None),
            "hidden": hidden,
            "references": [_reference(reference, hidden=hidden) for reference in references],
        }


def _reference(row: Row, *, hidden: bool) -> dict[str, Any]:
    """What its sender wrote of it goes with the words; the key of an encrypted one does, too."""
    shown = ("state", "reason", "role", "item")
    said = ("filename", "caption", "declared_type", "declared_size")
    encryption = row["encryption"]
    return {
        "mxc": str(Mxc(row["server_name"], row["media_id"])),
        **{key: row[key] for key in shown},
        **{key: None if hidden else row[key] for key in said},
        "encrypted": encryption is not None,
        "encryption": None if hidden or encryption is None else orjson.Fragment(encryption),
    }
