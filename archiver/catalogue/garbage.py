"""Objects without rows: collected when their time has come, unless the same bytes come again.

Whoever is about to store bytes takes them out of `garbage` first (`queue.is_known`), and so waits
for a collector that is removing them; whoever collects holds the row until they are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# Whoever stores the same bytes, and was told before that they are not there, has ended by then.
BYTES_AFTER = timedelta(days=1)

DISCARD = """
INSERT INTO garbage (sha256, due_at) VALUES ($1, now() + $2::interval)
ON CONFLICT (sha256) DO UPDATE SET due_at = EXCLUDED.due_at
"""
DISCARD_ALL = """
INSERT INTO garbage (sha256, due_at)
SELECT sha256, now() + $2::interval FROM unnest($1::bytea[]) AS gone(sha256) ORDER BY sha256
ON CONFLICT (sha256) DO UPDATE SET due_at = EXCLUDED.due_at
"""
TAKE = """
DELETE FROM garbage WHERE sha256 =
    (SELECT sha256 FROM garbage WHERE due_at <= now()
     ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING sha256
"""
# What rests inline has no use for an object.
NEEDED = "SELECT EXISTS (SELECT FROM blob WHERE sha256 = $1 AND place = 'object')"


async def discard(conn: Connection, sha256: bytes) -> None:
    """Lets the bytes of an object go, unless a blob is recorded with them within a day."""
    await conn.execute(DISCARD, sha256, BYTES_AFTER)


async def discard_all(conn: Connection, digests: Sequence[bytes]) -> None:
    """The same for many objects, in key order."""
    await conn.execute(DISCARD_ALL, digests, BYTES_AFTER)


async def take(conn: Connection) -> bytes | None:
    """Takes an object whose time has come, or None; a rollback puts it back."""
    sha256: bytes | None = await conn.fetchval(TAKE)
    return sha256


async def is_needed(conn: Connection, sha256: bytes) -> bool:
    """True when an object was recorded with these bytes since."""
    return bool(await conn.fetchval(NEEDED, sha256))
