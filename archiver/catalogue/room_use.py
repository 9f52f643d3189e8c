"""What the media of a rule come to, room by room, and which of them have to make room there.

The database adds it up, in a table that only one connection has: however many media and rooms
there are, no more than the rooms over their quota come back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

BEGIN = """
DROP TABLE IF EXISTS pg_temp.room_use;
CREATE TEMP TABLE room_use (
    rule integer, room_id text COLLATE "C", hour bigint, size bigint, may_go boolean, media bigint
)
"""
END = "DROP TABLE IF EXISTS pg_temp.room_use"
# What is also in a room that is not over goes from none: others make room. `before`: what may go
# and was used earlier.
OVER = """
WITH too_full AS (
    SELECT rule, room_id, sum(size) AS total, quota
    FROM pg_temp.room_use
    JOIN unnest($1::integer[], $2::bigint[]) AS quotas(rule, quota) USING (rule)
    GROUP BY rule, room_id, quota HAVING sum(size) > quota
), stays AS (
    SELECT DISTINCT u.media
    FROM pg_temp.room_use AS u LEFT JOIN too_full AS t USING (rule, room_id)
    WHERE u.media IS NOT NULL AND t.rule IS NULL
), used AS (
    SELECT rule, room_id, t.total, t.quota, u.hour,
           coalesce(sum(u.size) FILTER (WHERE u.may_go AND s.media IS NULL), 0) AS free
    FROM too_full AS t JOIN pg_temp.room_use AS u USING (rule, room_id)
    LEFT JOIN stays AS s ON s.media = u.media
    GROUP BY rule, room_id, t.total, t.quota, u.hour
), summed AS (
    SELECT *, sum(free) OVER (PARTITION BY rule, room_id ORDER BY hour) - free AS before FROM used
)
SELECT rule, room_id, total::bigint AS size, quota,
       coalesce(max(hour) FILTER (WHERE goes), -1) AS last,
       coalesce(total - quota - max(before) FILTER (WHERE goes), 0)::bigint AS rest
FROM (SELECT *, free > 0 AND before < total - quota AS goes FROM summed) AS judged
GROUP BY rule, room_id, total, quota
ORDER BY total DESC, rule, room_id
"""
ADDING_UP_SECONDS = 600.0


class Use(NamedTuple):
    """A media of a rule in a room, and the hour when it was used last. `media`: a number of its
    own where it is in several rooms."""

    rule: int
    room_id: str
    hour: int
    size: int
    may_go: bool
    media: int | None = None


class Over(NamedTuple):
    """A room with more than its quota. What may go of it was used up to the hour `last`, of which
    as many bytes have to go as `rest`; -1: nothing may."""

    rule: int
    room_id: str
    size: int
    quota: int
    last: int
    rest: int


class RoomUse:
    """Of one connection, until the end of `counting`."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    async def add(self, uses: Iterable[Use]) -> None:
        """Counts these."""
        await self._conn.copy_records_to_table("room_use", records=uses, schema_name="pg_temp")

    async def over(self, quotas: Mapping[int, int]) -> list[Over]:
        """The rooms over the quota of a rule by its number, the largest first."""
        rows = await self._conn.fetch(
            OVER, list(quotas), list(quotas.values()), timeout=ADDING_UP_SECONDS
        )
        return [Over(*row) for row in rows]


@asynccontextmanager
async def counting(pool: Pool) -> AsyncIterator[RoomUse]:
    """Nothing is counted yet."""
    async with pool.acquire() as conn:
        await conn.execute(BEGIN)
        try:
            yield RoomUse(conn)
        finally:
            if not conn.is_closed():
                await conn.execute(END)
