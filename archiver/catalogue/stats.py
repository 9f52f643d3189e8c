"""The archive in figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archiver.catalogue import coverage, growth

if TYPE_CHECKING:
    from archiver.db.pool import Connection

EVENTS = """
SELECT coalesce(type, '') AS type, count(*) AS events FROM event GROUP BY 1 ORDER BY 2 DESC, 1
"""
BLOBS = """
SELECT place, count(*) AS blobs, sum(size)::bigint AS bytes FROM blob GROUP BY place ORDER BY place
"""


async def statistics(conn: Connection) -> dict[str, Any]:
    """Media by state, events by type, blobs and their bytes by place, the coverage of it all,
    and how much of it there is, was and will be.

    Reads whole tables.
    """
    return {
        **await growth.figures(conn),
        "events": {row["type"]: row["events"] for row in await conn.fetch(EVENTS)},
        "blobs": await blobs(conn),
        "coverage": await coverage.of_all(conn),
    }


async def blobs(conn: Connection) -> dict[str, dict[str, int]]:
    """Blobs and their bytes by place. Reads the whole table."""
    return {
        row["place"]: {"blobs": row["blobs"], "bytes": row["bytes"]}
        for row in await conn.fetch(BLOBS)
    }
