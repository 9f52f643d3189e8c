"""How often media is read, and when last. Written in batches, never while serving."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection

ADD = """
UPDATE media AS m
SET access_count = m.access_count + a.count, last_accessed = greatest(m.last_accessed, a.last)
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::timestamptz[])
     AS a(server_name, media_id, count, last)
WHERE m.server_name = a.server_name AND m.media_id = a.media_id
"""


class Accesses(NamedTuple):
    """Reads of one media since the last batch."""

    times: int
    last: datetime


async def add(conn: Connection, accesses: Mapping[Mxc, Accesses]) -> None:
    """Adds a batch of reads, in one statement."""
    await conn.execute(
        ADD,
        [mxc.server_name for mxc in accesses],
        [mxc.media_id for mxc in accesses],
        [access.times for access in accesses.values()],
        [access.last for access in accesses.values()],
    )
