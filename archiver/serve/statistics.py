"""The whole archive in figures, as JSON: never counted for a reader where it is large."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from aiohttp import web

from archiver.catalogue import counting, knowledge
from archiver.catalogue.stats import FIGURES, told
from archiver.catalogue.tallies import GROUPS, Group, groups
from archiver.db.pool import Pool
from archiver.errors import TryLater
from archiver.serve.answers import reply
from archiver.serve.database import connection

if TYPE_CHECKING:
    from archiver.catalogue.counting import Count, Counted
    from archiver.db.pool import Connection

GROUP = f"{{group:{'|'.join(GROUPS)}}}"  # in a path
COUNTING_SECONDS = 30.0  # then it may be done


class Statistics:
    """Answers with figures as they were counted last. Each raises TryLater where a large archive
    never was."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def all(self, _request: web.Request) -> web.Response:
        """What is kept, what is missing, how it grew; and what is so now."""
        async with connection(self._pool) as conn:
            return reply(await told(conn, await _counted(conn, FIGURES)))

    async def grouped(self, request: web.Request) -> web.Response:
        """Media and bytes by room, user, type or month. Rooms come with their names."""
        group = cast("Group", request.match_info["group"])
        async with connection(self._pool) as conn:
            counted = await _counted(conn, groups(group))
            names: dict[str, str | None] = {}
            if group == "room":
                room_ids = [found["key"] for found in counted.value if found["key"]]
                known = await knowledge.rooms(conn, room_ids)
                names = {room_id: room.name for room_id, room in known.items()}
        found = [{**one, "name": names.get(one["key"])} for one in counted.value]
        return reply({"counted_at": counted.counted_at, "groups": found})


async def _counted(conn: Connection, count: Count) -> Counted:
    counted = await counting.at_hand(conn, count)
    if counted is None:
        raise TryLater(
            "the archive is being counted for the first time, which takes a while where it is"
            " large: ask again in some minutes",
            COUNTING_SECONDS,
        )
    return counted
