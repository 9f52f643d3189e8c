"""Figures for which whole tables are read: counted now and then, and kept for whoever asks.

A small archive is counted anew for whoever asks, so that what it tells is exact. A large one is
counted by one process at a time, the more rarely the longer that takes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

SMALL = 8 * 1024 * 1024  # bytes; such tables are read in some milliseconds
EVERY = timedelta(minutes=5)
SHARE = 50  # of the time, one part is spent on counting
OVERDUE = 2  # times as old as it should become: nobody counts by itself
PATIENCE = 600.0  # seconds; tens of millions of references take minutes

SIZE = """
SELECT sum(pg_relation_size(name::regclass))::bigint
FROM unnest(array['event', 'blob', 'media', 'reference']) AS name
"""
KEPT = """
SELECT value, counted_at, greatest(took * $2::float8, $3::interval) AS lasts,
       clock_timestamp() - counted_at AS age
FROM tally WHERE key = $1
"""
KEEP = """
INSERT INTO tally (key, value, counted_at, took) VALUES ($1, $2, $3, clock_timestamp() - $3)
ON CONFLICT (key) DO UPDATE
SET value = EXCLUDED.value, counted_at = EXCLUDED.counted_at, took = EXCLUDED.took
"""
# It makes nobody wait but who counts as well, and takes no snapshot: that of the transaction is
# taken once it is held, and so the figures are all of one moment.
ALONE = "LOCK TABLE tally IN SHARE UPDATE EXCLUSIVE MODE"
LIMIT = "SET LOCAL statement_timeout = '10min'"
CLOCK = "SELECT clock_timestamp()"


class Count(NamedTuple):
    """What is counted, and the name by which it is kept. `of` returns what JSON can tell."""

    key: str
    of: Callable[[Connection], Awaitable[Any]]


class Counted(NamedTuple):
    """What was counted, as JSON tells it (times are text), when it was begun, how long that is
    good enough, and how old it is."""

    value: Any
    counted_at: datetime
    lasts: timedelta
    age: timedelta


async def at_hand(conn: Connection, count: Count) -> Counted | None:
    """However old it is, and soon; None: the archive is large, and was never counted so far."""
    return await (_exactly if await _is_small(conn) else _kept)(conn, count)


async def recent(conn: Connection, count: Count, times: int = 1) -> Counted:
    """Counted anew where it is so many times older than it should become."""
    return await _counted(conn, count, lambda kept: kept.age < times * kept.lasts)


async def anew(conn: Connection, count: Count) -> Counted:
    """Counted after this was asked for."""
    asked_at: datetime = await conn.fetchval(CLOCK)
    return await _counted(conn, count, lambda kept: kept.counted_at >= asked_at)


async def _counted(conn: Connection, count: Count, will_do: Callable[[Counted], bool]) -> Counted:
    if await _is_small(conn):
        return await _exactly(conn, count)
    kept = await _kept(conn, count)
    if kept and will_do(kept):
        return kept
    async with conn.transaction(isolation="repeatable_read"):
        await conn.execute(LIMIT)
        await conn.execute(ALONE, timeout=PATIENCE)
        kept = await _kept(conn, count)  # by another one meanwhile
        if kept and will_do(kept):
            return kept
        counted = await _count(conn, count)
        told = orjson.dumps(counted.value).decode()
        await conn.execute(KEEP, count.key, told, counted.counted_at)
    return counted


async def _is_small(conn: Connection) -> bool:
    return bool(await conn.fetchval(SIZE) <= SMALL)


async def _exactly(conn: Connection, count: Count) -> Counted:
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        return await _count(conn, count)


async def _kept(conn: Connection, count: Count) -> Counted | None:
    row: Row | None = await conn.fetchrow(KEPT, count.key, SHARE, EVERY)
    if row is None:
        return None
    return Counted(orjson.loads(row["value"]), row["counted_at"], row["lasts"], row["age"])


async def _count(conn: Connection, count: Count) -> Counted:
    began: datetime = await conn.fetchval(CLOCK)
    value = orjson.loads(orjson.dumps(await count.of(conn)))
    return Counted(value, began, EVERY, timedelta(0))
