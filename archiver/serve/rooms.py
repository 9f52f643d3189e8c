"""Rooms as people know them, and how much of each is archived."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from archiver.capture.policy import ROOM_EXCLUDED, CapturePolicy
from archiver.catalogue import coverage, knowledge
from archiver.catalogue.knowledge import Place, uri_of, words
from archiver.db.pool import Pool
from archiver.errors import NotFound
from archiver.model import Scope
from archiver.serve.answers import reply
from archiver.serve.auth import SCOPE
from archiver.serve.content import Content
from archiver.serve.database import connection
from archiver.serve.paging import after, cursor, limit, named

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

MEMBERS = 50


class Rooms:
    """Answers with rooms. Where it `hides_redacted`, former names that were redacted are shown to
    administrators only."""

    def __init__(
        self, pool: Pool, content: Content, policy: CapturePolicy, *, hides_redacted: bool
    ) -> None:
        self._pool = pool
        self._content = content
        self._policy = policy
        self._hides_redacted = hides_redacted

    async def page(self, request: web.Request) -> web.Response:
        """Rooms, the most recently active first: `limit`, and `from` for more."""
        wanted, place = limit(request.query), after(request.query)
        async with connection(self._pool) as conn:
            rows = await knowledge.page(conn, place, wanted + 1)
            shown = await self._describe(conn, rows[:wanted])
        places = [Place(row["place"], row["room_id"]) for row in rows[:wanted]]
        return reply({"rooms": shown, "next": cursor(places[-1]) if rows[wanted:] else None})

    async def get(self, request: web.Request) -> web.Response:
        """All that is known of a room: also its faces, its image packs and what it was called."""
        room_id = named(request, "room_id")
        sees_all = not self._hides_redacted or request[SCOPE] is Scope.ADMIN
        async with connection(self._pool) as conn:
            row = await knowledge.find(conn, room_id)
            if row is None:
                raise NotFound("the archive knows nothing of this room")
            [room] = await self._describe(conn, [row])
            members = await knowledge.members(conn, room_id, MEMBERS + 1)
            packs = await knowledge.packs(conn, room_id)
            names = await knowledge.history(
                conn, room_id, "m.room.name", "name", also_redacted=sees_all
            )
            avatars = await knowledge.history(
                conn, room_id, "m.room.avatar", "url", also_redacted=sees_all
            )
        return reply(
            {
                **room,
                "members": [_member(member) for member in members[:MEMBERS]],
                "more_members": len(members) > MEMBERS,
                "image_packs": packs,
                "names": [_former(entry, "name", words(entry["value"])) for entry in names],
                "avatars": [_former(entry, "avatar", uri_of(entry["value"])) for entry in avatars],
            }
        )

    async def avatar(self, request: web.Request) -> web.StreamResponse:
        """The bytes of the room's present avatar, looked up each time."""
        room_id = named(request, "room_id")
        async with connection(self._pool) as conn:
            mxc = await knowledge.avatar(conn, room_id)
        if mxc is None:
            raise NotFound("this room has no avatar")
        return await self._content.send(request, mxc, changes=True)

    async def _describe(self, conn: Connection, rows: Sequence[Row]) -> list[dict[str, Any]]:
        room_ids = [row["room_id"] for row in rows]
        known = await knowledge.rooms(conn, room_ids)
        covered = await coverage.of_rooms(conn, room_ids)
        return [
            self._room(room_id, known[room_id], row["active_at"], covered[room_id])
            for room_id, row in zip(room_ids, rows, strict=True)
        ]

    def _room(
        self,
        room_id: str,
        room: knowledge.Room,
        active_at: datetime | None,
        covered: dict[str, Any],
    ) -> dict[str, Any]:
        left_out = self._policy.leaves_out_room(room_id)
        return {
            "room_id": room_id,
            **room._asdict(),
            "avatar": str(room.avatar) if room.avatar else None,
            "active_at": active_at,
            "excluded": ROOM_EXCLUDED if left_out else None,
            "coverage": covered,
        }


def _member(row: Row) -> dict[str, Any]:
    return {
        "user_id": row["user_id"],
        "displayname": words(row["displayname"]),
        "avatar": uri_of(row["avatar"]),
        "since": row["since"],
    }


def _former(entry: dict[str, Any], what: str, value: str | None) -> dict[str, Any]:
    shown = ("since", "sender", "event_id", "redacted")
    return {what: value, **{key: entry[key] for key in shown}}
