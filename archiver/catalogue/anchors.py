"""Reads as custody anchors them: batches of rows that are there for good until they expire."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# Whoever adds reads shares it before they have ids.
TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended('reading', 0))"
LAST = """
SELECT (detail ->> 'last')::bigint FROM custody
WHERE actor = 'archiver' AND action = 'read' AND detail ->> 'last' ~ '^[0-9]{1,18}$'
ORDER BY id DESC LIMIT 1
"""
ROWS = """
SELECT id, reader, via, server_name, media_id, times, first_at, last_at FROM reading
WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3
"""
PUT = """
WITH line AS (
    INSERT INTO custody (actor, place, action, detail) VALUES ('archiver', 'worker', 'read', $4)
)
INSERT INTO reading_anchor (last_id, newest, entries) VALUES ($1, $2, $3)
"""
ENTRIES = "SELECT entries FROM reading_anchor WHERE last_id = $1"
BEFORE = """
SELECT detail ->> 'before', at FROM custody
WHERE actor = 'archiver' AND action = 'reads expired'
ORDER BY (detail ->> 'before') COLLATE "C" DESC NULLS LAST LIMIT 1
"""
OUTSIDE = "SELECT id FROM reading WHERE id < 1 ORDER BY id LIMIT $1"
COUNT_AFTER = "SELECT count(*) FROM reading WHERE id > $1"

LAST_ID = 2**63 - 1


class Reading(NamedTuple):
    """A row of reading."""

    id: int
    reader: str
    via: str | None
    server_name: str
    media_id: str
    times: int
    first_at: datetime
    last_at: datetime


async def lock(conn: Connection) -> bool:
    """False while somebody adds reads; else nobody does until the transaction ends."""
    return bool(await conn.fetchval(TRY_LOCK))


async def last(conn: Connection) -> int:
    """The greatest id that custody tells of."""
    return int(await conn.fetchval(LAST) or 0)


async def rows(
    conn: Connection, after: int, last_id: int = LAST_ID, limit: int | None = None
) -> list[Reading]:
    """The reads behind `after`, up to `last_id`, by id."""
    return [Reading(*row) for row in await conn.fetch(ROWS, after, last_id, limit)]


async def put(
    conn: Connection, last_id: int, newest: datetime, entries: bytes, told: dict[str, object]
) -> None:
    """Writes the line of custody, and the digests for as long as there are reads of them."""
    await conn.execute(PUT, last_id, newest, entries, json.dumps(told))


async def entries(conn: Connection, last_id: int) -> bytes | None:
    """The digests of the batch that ends with this read."""
    found: bytes | None = await conn.fetchval(ENTRIES, last_id)
    return found


async def expired_before(conn: Connection) -> datetime | None:
    """Reads that were last before this may have been deleted, as custody tells."""
    row = await conn.fetchrow(BEFORE)
    try:
        return min(datetime.fromisoformat(row[0] or ""), row["at"]) if row else None
    except (TypeError, ValueError):
        return None


async def outside(conn: Connection, limit: int) -> list[int]:
    """The ids of reads that cannot have come as all others do."""
    return [row["id"] for row in await conn.fetch(OUTSIDE, limit)]


async def count_after(conn: Connection, read_id: int) -> int:
    """How many reads there are behind one."""
    return int(await conn.fetchval(COUNT_AFTER, read_id))
