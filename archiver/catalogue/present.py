"""What is so at this very moment: found by an index, and never from more than so many rows."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from archiver.db.pool import Connection

MOST = 10_000  # are counted: whatever is as many, is as many or more

WAITING = """
SELECT (SELECT count(*) FROM (SELECT FROM media WHERE state = 'pending' LIMIT $1) AS waiting)
           AS pending,
       (SELECT min(due_at) FROM media WHERE state = 'pending' AND due_at <= now())
           AS oldest_due_at
"""
DAMAGE = """
SELECT count(*) AS blobs, min(damaged_at) AS since,
       count(*) FILTER (WHERE repair_reason IS NOT NULL) AS unrepaired,
       min(damaged_at) FILTER (WHERE repair_reason IS NOT NULL) AS unrepaired_since
FROM (SELECT damaged_at, repair_reason FROM blob WHERE damaged_at IS NOT NULL
      ORDER BY damaged_at LIMIT $1) AS known
"""


class Damage(NamedTuple):
    """How many blobs are known to be damaged or gone, since when the first one; and those of them
    that nobody could mend so far. MOST stands for as many or more."""

    blobs: int
    since: datetime | None
    unrepaired: int
    unrepaired_since: datetime | None


async def damage(conn: Connection) -> Damage:
    """What is known to be damaged."""
    [row] = await conn.fetch(DAMAGE, MOST)
    return Damage(*row)


async def present(conn: Connection) -> dict[str, Any]:
    """What waits, since when, and what is damaged."""
    [waiting] = await conn.fetch(WAITING, MOST)
    return {**waiting, "damaged": (await damage(conn))._asdict()}
