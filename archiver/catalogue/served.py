"""How often readers were given bytes, and whence. Written in batches, never while serving."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archiver.db.pool import Connection

RECENT = 30  # days

# In order, lest two processes wait for each other.
ADD = """
INSERT INTO served (day, source, reads)
SELECT (now() AT TIME ZONE 'UTC')::date, source, reads
FROM unnest($1::text[], $2::bigint[]) AS more(source, reads) ORDER BY source
ON CONFLICT (day, source) DO UPDATE SET reads = served.reads + EXCLUDED.reads
"""
TOTALS = """
SELECT source, sum(reads)::bigint AS ever,
       coalesce(sum(reads) FILTER (WHERE day > (now() AT TIME ZONE 'UTC')::date - $1::int), 0)
           ::bigint AS recent
FROM served GROUP BY source
"""


class Source(StrEnum):
    """Where the bytes came from: `missed` are those fetched or made for that very request."""

    MEMORY = "memory"
    STORE = "store"
    MISSED = "missed"


async def add(conn: Connection, reads: Mapping[Source, int]) -> None:
    """Adds today's reads since the last batch, in one statement."""
    await conn.execute(ADD, list(reads), list(reads.values()))


async def totals(conn: Connection) -> dict[str, dict[str, int]]:
    """Reads by source, `ever` and in the last RECENT days. There is a row a day and source."""
    rows = {row["source"]: row for row in await conn.fetch(TOTALS, RECENT)}
    return {
        span: {source.value: rows[source][span] if source in rows else 0 for source in Source}
        for span in ("ever", "recent")
    }
