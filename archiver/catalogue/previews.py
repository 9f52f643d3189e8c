"""Which archived pictures were uploaded for the control room, and under which name."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection

FIND = """
SELECT b.width, b.height, p.server_name, p.media_id
FROM blob AS b LEFT JOIN preview AS p USING (sha256) WHERE b.sha256 = $1
"""
# Two at once upload it twice; which of both is shown from then on does not matter.
NOTE = """
INSERT INTO preview (sha256, server_name, media_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
"""


class Preview(NamedTuple):
    """How large the picture is, in pixels, and the homeserver's copy of it, if there is one."""

    width: int | None
    height: int | None
    mxc: Mxc | None


async def find(conn: Connection, sha256: bytes) -> Preview:
    """What is known of a blob's preview."""
    row = await conn.fetchrow(FIND, sha256)
    if row is None:
        return Preview(None, None, None)
    width, height, server_name, media_id = row
    return Preview(width, height, Mxc(server_name, media_id) if server_name else None)


async def note(conn: Connection, sha256: bytes, mxc: Mxc) -> None:
    """Remembers where a blob was uploaded to."""
    await conn.execute(NOTE, sha256, *mxc)
