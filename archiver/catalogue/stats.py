"""The archive in figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from archiver.catalogue import coverage, growth, served, variants
from archiver.catalogue.counting import PATIENCE, Count, Counted
from archiver.catalogue.present import present

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

EVENTS = """
SELECT coalesce(type, '') AS type, count(*) AS events,
       count(*) FILTER (WHERE original = 'wanted') AS wanted,
       count(*) FILTER (WHERE original = 'lost') AS lost,
       count(*) FILTER (WHERE source = 'reconcile') AS filled
FROM event GROUP BY 1 ORDER BY 2 DESC, 1
"""
# What was never hashed anew was hashed when it was stored.
BLOBS = """
SELECT place, count(*) AS blobs, sum(size)::bigint AS bytes,
       count(*) FILTER (WHERE verified_at IS NULL) AS never,
       min(coalesce(verified_at, created_at)) AS since
FROM blob GROUP BY place ORDER BY place
"""


async def statistics(conn: Connection) -> dict[str, Any]:
    """Media by state, events by type, blobs and their bytes by place, the coverage of it all,
    how much of it there is, was and will be, when it was verified, and which blobs wait for their
    pictures or got none.

    Reads whole tables.
    """
    events = await conn.fetch(EVENTS, timeout=PATIENCE)
    processing = await variants.counts(conn)
    blobs = await conn.fetch(BLOBS, timeout=PATIENCE)
    return {
        **await growth.figures(conn),
        "events": {row["type"]: row["events"] for row in events},
        "blobs": {row["place"]: {"blobs": row["blobs"], "bytes": row["bytes"]} for row in blobs},
        "coverage": await coverage.of_all(conn, _kinds(events)),
        "verified": {
            "never": sum(row["never"] for row in blobs),
            "since": min((row["since"] for row in blobs), default=None),
        },
        "processing": {row["processing"]: row["blobs"] for row in processing},
    }


FIGURES = Count("figures", statistics)


async def told(conn: Connection, figures: Counted) -> dict[str, Any]:
    """The figures, when they were counted, what was read so far, and what is so now."""
    fresh = {"served": await served.totals(conn), "now": await present(conn)}
    return {"counted_at": figures.counted_at, **figures.value, **fresh}


def _kinds(events: Iterable[Row]) -> dict[str, int]:
    """How many are encrypted, emptied, or were found in history."""
    kinds = dict.fromkeys(("encrypted", "wanted", "lost", "filled"), 0)
    for row in events:
        kinds["encrypted"] += row["events"] if row["type"] == "m.room.encrypted" else 0
        for kind in ("wanted", "lost", "filled"):
            kinds[kind] += row[kind]
    return kinds
