"""What administrators change about work that waits: it is tried now, or not at all."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# The reason stays: it is what the last try came to. What waits for the budget of old media waits
# no more, and is charged for when it has come.
RETRY_FAILED = """
WITH retried AS (
    UPDATE media SET state = 'pending', due_at = now(), unfinished = 0, attempts = attempts + 1,
                     paced_at = NULL,
                     charged = CASE WHEN paced_at IS NULL THEN charged ELSE 0 END
    WHERE state = 'failed' RETURNING 1
)
SELECT count(*), (SELECT pg_notify('media_pending', '') FROM retried LIMIT 1) FROM retried
"""
# Nobody is disturbed who has it under way.
RETRY_THIS = RETRY_FAILED.replace(
    "state = 'failed' RETURNING",
    """server_name = $1 AND media_id = $2
      AND (state = 'failed' OR (state = 'pending' AND (unfinished = 0 OR due_at <= now())))
    RETURNING""",
)
# The cursor stays: who asks again goes on from there.
WITHDRAW = """
WITH withdrawn AS (
    UPDATE backfill SET state = 'failed', reason = $2, attempts = attempts + 1, settled_at = now()
    WHERE room_id = ANY($1) AND state = 'pending' RETURNING 1
)
SELECT count(*) FROM withdrawn
"""


async def retry_failed(conn: Connection) -> int:
    """Every media that failed for good is tried once more, now. Returns how many."""
    return int(await conn.fetchval(RETRY_FAILED))


async def retry_this(conn: Connection, mxc: Mxc) -> bool:
    """A media that failed or waits is tried now. False: it does neither, or is under way."""
    return bool(await conn.fetchval(RETRY_THIS, *mxc))


async def withdraw(conn: Connection, room_ids: Collection[str], reason: str) -> int:
    """Takes back what was asked for of these rooms' old messages and not read yet. Whoever reads
    one of them loses the claim. Returns how many rooms that is."""
    return int(await conn.fetchval(WITHDRAW, list(room_ids), reason))
