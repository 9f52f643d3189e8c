"""Bytes that are set aside from whomever they come: media with them is never `ready`.

The trigger `media_refused` looks, in the commit that would make a media ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# Waits for whoever is making media ready with these bytes; who comes later sees the commit.
ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('refused', 0))"
REFUSE = """
INSERT INTO refused AS r (sha256, reason, tell) VALUES ($1, $2, $3)
ON CONFLICT (sha256) DO UPDATE SET tell = true WHERE EXCLUDED.tell AND NOT r.tell
RETURNING true
"""
ACCEPT = "DELETE FROM refused WHERE sha256 = $1 RETURNING true"


async def refuse(conn: Connection, sha256: bytes, reason: str, *, tell: bool = False) -> bool:
    """Media with these bytes is in quarantine from the commit on, and with `tell` the homeserver
    is told of it (`telling`); False where all that was so before.

    To be called in a transaction. What was ready earlier is the caller's to find, after it.
    """
    await conn.execute(ALONE)
    return bool(await conn.fetchval(REFUSE, sha256, reason, tell))


async def accept(conn: Connection, sha256: bytes) -> bool:
    """Ends that; False where they were not refused. To be called in a transaction."""
    await conn.execute(ALONE)
    return bool(await conn.fetchval(ACCEPT, sha256))
