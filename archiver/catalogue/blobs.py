"""What is known of bytes themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

FIND = """
SELECT encode(b.sha256, 'hex') AS sha256, b.size, b.mimetype, b.width, b.height, b.duration_ms,
       b.place, b.created_at, b.verified_at, b.damaged_at,
       b.scan, b.scanned_at, b.scan_reason, b.scan_engine,
       (SELECT l.locked_at FROM object_lock AS l WHERE l.sha256 = b.sha256) AS locked_at,
       (SELECT count(*) FROM media AS m WHERE m.blob_sha256 = b.sha256) AS media
FROM blob AS b WHERE b.sha256 = $1
"""


async def find(conn: Connection, sha256: bytes) -> Row | None:
    """A blob, and how many media share it."""
    return await conn.fetchrow(FIND, sha256)
