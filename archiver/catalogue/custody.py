"""Who changed what, when and from where: written for ever, in the transaction of the change."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from archiver.catalogue.captures import NAMES

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

NOTE = """
INSERT INTO custody (actor, place, action, target, detail) VALUES ($1, $2, $3, $4, $5)
"""
# Of a line that tells of many media: how many, and the part about the one that is asked for.
_SHOWN = """
SELECT at, actor, place, action, target,
       CASE WHEN target IS NULL AND action IN ('capture', 'import') THEN
           (detail - 'media') || jsonb_strip_nulls(jsonb_build_object(
               'of', jsonb_array_length(detail -> 'media'),
               'media', (SELECT jsonb_agg(one) FROM jsonb_array_elements(detail -> 'media') AS one
                         WHERE one ->> 0 = $3::text)))
       ELSE detail END AS detail
FROM custody
"""
_NEWEST = "ORDER BY at DESC, id DESC LIMIT $2"
RECENT = _SHOWN + "WHERE at >= coalesce($1::timestamptz, '-infinity')" + _NEWEST
# Of a person or a room also what was done by and in it. Each by an index of its own.
ABOUT = (
    _SHOWN
    + """
WHERE id IN (
    (SELECT id FROM custody WHERE target = $3 AND {since} {newest})
    UNION ALL (SELECT id FROM custody WHERE actor = $3 AND {since} {newest})
    UNION ALL (SELECT id FROM custody WHERE place = $3 AND {since} {newest})
    UNION ALL (SELECT id FROM custody WHERE {since} AND {names})
) {newest}
""".replace("{names}", NAMES)
    .replace("{since}", "at >= coalesce($1::timestamptz, '-infinity')")
    .replace("{newest}", _NEWEST)
)


async def note(
    conn: Connection, actor: str, place: str, action: str, target: str | None = None, **detail: Any
) -> None:
    """Writes one line. `detail` is whatever JSON can hold."""
    # PostgreSQL's text and jsonb cannot hold U+0000.
    told = json.dumps(detail).replace("\\u0000", "\\ufffd")
    await conn.execute(NOTE, actor, place, action, target, told)


async def about(
    conn: Connection, target: str | None, since: datetime | None, limit: int
) -> list[Row]:
    """The newest lines about a media, event, person or room, or about all, newest first: at,
    actor, place, action, target, detail (JSON text)."""
    return await conn.fetch(ABOUT if target else RECENT, since, limit, target)
