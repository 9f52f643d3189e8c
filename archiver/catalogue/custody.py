"""Who changed what, when and from where: written for ever, in the transaction of the change."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

NOTE = """
INSERT INTO custody (actor, place, action, target, detail) VALUES ($1, $2, $3, $4, $5)
"""
RECENT = """
SELECT at, actor, place, action, target, detail FROM custody ORDER BY at DESC, id DESC LIMIT $1
"""
# Of a person or a room also what was done by and in it.
ABOUT = """
SELECT at, actor, place, action, target, detail FROM custody
WHERE ($1::text IS NULL OR target = $1 OR actor = $1 OR place = $1)
  AND ($2::timestamptz IS NULL OR at >= $2)
ORDER BY at DESC, id DESC LIMIT $3
"""


async def note(
    conn: Connection, actor: str, place: str, action: str, target: str | None = None, **detail: Any
) -> None:
    """Writes one line. `detail` is whatever JSON can hold."""
    # PostgreSQL's text and jsonb cannot hold U+0000.
    told = json.dumps(detail).replace("\\u0000", "\\ufffd")
    await conn.execute(NOTE, actor, place, action, target, told)


async def recent(conn: Connection, limit: int) -> list[Row]:
    """The newest lines, newest first: at, actor, place, action, target, detail (JSON text)."""
    return await conn.fetch(RECENT, limit)


async def about(
    conn: Connection, target: str | None, since: datetime | None, limit: int
) -> list[Row]:
    """The newest lines about a media, event, person or room, or about all; as `recent`."""
    return await conn.fetch(ABOUT, target, since, limit)
