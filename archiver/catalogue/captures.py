"""Captures on their way into custody, and the lines of custody that name a media."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# Whatever commits later, under whichever id, is gathered later. The times are of the captures.
GATHER = """
WITH gone AS (
    DELETE FROM captured WHERE id = ANY (ARRAY(SELECT id FROM captured ORDER BY id LIMIT $1))
    RETURNING *
), written AS (
    INSERT INTO custody (actor, place, action, detail)
    SELECT 'archiver', 'worker', 'capture',
           jsonb_build_object(
               'media', jsonb_agg(jsonb_build_array('mxc://' || server_name || '/' || media_id,
                                                    encode(sha256, 'hex'), size)
                                  || CASE WHEN quarantined THEN '["quarantined"]'::jsonb
                                          ELSE '[]' END ORDER BY id),
               'first', to_char(min(at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
               'last', to_char(max(at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))
    FROM gone HAVING count(*) > 0
)
SELECT count(*) FROM gone
"""
# Whatever the index finds is looked into, because hashes may be equal.
NAMES = """target IS NULL AND action IN ('capture', 'import')
      AND captured_media(detail) && ARRAY[hashtext($3)]
      AND detail @> jsonb_build_object('media', jsonb_build_array(jsonb_build_array($3::text)))"""
COUNT = "SELECT count(*) FROM captured"


async def gather(conn: Connection, limit: int) -> int:
    """Moves up to `limit` captures into custody, all in one line, and returns how many."""
    return int(await conn.fetchval(GATHER, limit))


async def count(conn: Connection) -> int:
    """How many wait for that."""
    return int(await conn.fetchval(COUNT))
