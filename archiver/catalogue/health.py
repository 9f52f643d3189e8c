"""How the archive does, as far as the database knows."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from archiver.catalogue.rooms import IS_OPEN

if TYPE_CHECKING:
    from archiver.db.pool import Connection

SIZE = "SELECT pg_database_size(current_database())"
# Each by an index of its own: what is ready is never counted here.
QUEUE = """
SELECT count(*) FILTER (WHERE due_at <= now()) AS due,
       count(*) FILTER (WHERE due_at > now() AND paced_at IS NULL) AS later,
       coalesce(extract(epoch FROM now() - min(due_at)), 0)::float8 AS waited,
       (SELECT count(*) FROM media
        WHERE state = 'failed' AND settled_at > now() - interval '1 day') AS failed
FROM media WHERE state = 'pending'
"""
ROOMS = """
SELECT count(*) FILTER (WHERE reason IS NULL AND {is_open}) AS open,
       count(*) FILTER (WHERE reason IS NOT NULL) AS unreadable
FROM room
""".replace("{is_open}", IS_OPEN)
BACKFILL = """
SELECT count(*) FILTER (WHERE state = 'pending') AS pending,
       count(*) FILTER (WHERE state = 'failed') AS failed
FROM backfill
"""
PACED = """
SELECT (SELECT count(*) FROM media WHERE paced_at IS NOT NULL AND state = 'pending') AS paced,
       (SELECT spent_until FROM budget WHERE name = 'remote') AS spent_until
"""
VERSIONS = """
SELECT current_setting('server_version') AS postgresql,
       (SELECT name FROM schema_migration ORDER BY version DESC LIMIT 1) AS migration
"""


class Queue(NamedTuple):
    """Media to be fetched now, and later without what waits for the budget; the seconds that the
    longest due one has waited; and those that failed for good in the last day."""

    due: int
    later: int
    waited: float
    failed: int


class Rooms(NamedTuple):
    """Rooms still to be compared with their history, and those that cannot be."""

    open: int
    unreadable: int


class Backfill(NamedTuple):
    """Rooms whose old messages are being read, and those where that failed."""

    pending: int
    failed: int


class Paced(NamedTuple):
    """Media that wait for the budget of old ones, and until when that is spent."""

    paced: int
    spent_until: datetime | None


class Versions(NamedTuple):
    """PostgreSQL's, and the newest migration that was applied."""

    postgresql: str
    migration: str


async def size(conn: Connection) -> int:
    """The bytes that the database takes on its disk."""
    return int(await conn.fetchval(SIZE))


async def queue(conn: Connection) -> Queue:
    """How the queue of media stands."""
    [row] = await conn.fetch(QUEUE)
    return Queue(row["due"], row["later"], max(0.0, row["waited"]), row["failed"])


async def rooms(conn: Connection) -> Rooms:
    """How comparing with history stands."""
    return Rooms(*await _only(conn, ROOMS))


async def backfill(conn: Connection) -> Backfill:
    """How reading old messages stands."""
    return Backfill(*await _only(conn, BACKFILL))


async def paced(conn: Connection) -> Paced:
    """What waits for the budget of old media."""
    return Paced(*await _only(conn, PACED))


async def versions(conn: Connection) -> Versions:
    """What the database is."""
    return Versions(*await _only(conn, VERSIONS))


async def _only(conn: Connection, statement: str) -> Any:
    [row] = await conn.fetch(statement)
    return row
