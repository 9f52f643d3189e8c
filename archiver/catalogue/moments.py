"""When something last happened, as all processes of the archive know it."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archiver.db.pool import Connection

NOTE = """
INSERT INTO moment AS known (name, at) VALUES ($1, now())
ON CONFLICT (name) DO UPDATE SET at = greatest(known.at, EXCLUDED.at)
RETURNING at
"""
BEGIN = """
INSERT INTO moment AS known (name, at) VALUES ($1, now())
ON CONFLICT (name) DO UPDATE SET at = EXCLUDED.at WHERE known.at <= now() - $2::interval
RETURNING true
"""
AT = "SELECT at FROM moment WHERE name = $1"
MADE = "SELECT min(applied_at) FROM schema_migration"
# Without any push so far there is no knowing how many there should be: the longest wait.
SILENT = """
SELECT now() - greatest(push.at, doubt.at)
       >= least(greatest(coalesce(doubt.at - push.at, $2::interval), $1::interval), $2::interval)
FROM moment AS doubt LEFT JOIN moment AS push ON push.name = 'push'
WHERE doubt.name = 'doubt'
"""


class Moment(StrEnum):
    """What is remembered: the last push; since when pushes may be missing until a room is
    compared; the end of the last pass over all rooms; when the rules of retention were last begun
    to be applied."""

    PUSH = "push"
    DOUBT = "doubt"
    RECONCILE = "reconcile"
    RETENTION = "retention"


async def note(conn: Connection, moment: Moment) -> datetime:
    """It happens now, by the database's clock, which is also returned."""
    at: datetime = await conn.fetchval(NOTE, moment)
    return at


async def begin(conn: Connection, moment: Moment, every: timedelta) -> bool:
    """True, for one of all who ask, when it was longer ago than `every`: then it happens now."""
    return bool(await conn.fetchval(BEGIN, moment, every))


async def at(conn: Connection, moment: Moment) -> datetime | None:
    """When it last happened; None for never."""
    found: datetime | None = await conn.fetchval(AT, moment)
    return found


async def archive_made(conn: Connection) -> datetime:
    """When this archive's database was made: what was sent before could not be pushed."""
    made: datetime = await conn.fetchval(MADE)
    return made


async def is_silent(conn: Connection, first: timedelta, longest: timedelta) -> bool:
    """True when nothing was pushed for suspiciously long: after `first`, and again whenever the
    silence has doubled since it was last doubted, but after `longest` at the latest."""
    return bool(await conn.fetchval(SILENT, first, longest))
