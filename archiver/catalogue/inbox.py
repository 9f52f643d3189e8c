"""The `inbox` table: what came for the bot, in the order in which it came.

A queue like `backfill`: `due_at` is schedule, back-off and lease in one, and `attempts`, which
counts the claims, is the fencing token. What is dealt with stays until it is purged, because a
homeserver repeats a push whose answer it missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from archiver.db.pool import Connection

PUT = """
INSERT INTO inbox (event_id, room_id, sender, raw)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[])
ON CONFLICT DO NOTHING
"""
CLAIM = """
WITH due AS (
    SELECT event_id FROM inbox WHERE due_at <= now()
    ORDER BY received_at, event_id LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE inbox AS i SET attempts = i.attempts + 1, due_at = now() + $1::interval
FROM due WHERE i.event_id = due.event_id
RETURNING i.event_id, i.room_id, i.sender, i.raw, i.attempts, i.reply_id
"""
RENEW = """
UPDATE inbox AS i SET due_at = greatest(i.due_at, now() + $3::interval)
FROM unnest($1::text[], $2::integer[]) AS held(event_id, attempts)
WHERE i.event_id = held.event_id AND i.attempts = held.attempts AND i.due_at IS NOT NULL
"""
DONE = """
UPDATE inbox SET due_at = NULL
WHERE event_id = $1 AND attempts = $2 AND due_at IS NOT NULL
RETURNING true
"""
POSTPONE = """
UPDATE inbox SET due_at = now() + $3::interval
WHERE event_id = $1 AND attempts = $2 AND due_at IS NOT NULL
"""
BEGIN = """
UPDATE inbox SET begun_at = coalesce(begun_at, now())
WHERE event_id = $1 AND attempts = $2 AND due_at IS NOT NULL
RETURNING begun_at = now()
"""
DROP = "DELETE FROM inbox WHERE event_id = $1 AND attempts = $2"
RUNNING = "SELECT event_id FROM inbox WHERE reply_id = $1 AND due_at IS NOT NULL"
CANCEL = "SELECT pg_notify('control_cancel', $1)"
SET_REPLY = "UPDATE inbox SET reply_id = $3 WHERE event_id = $1 AND attempts = $2"
# A question goes with its command, so the command stays until it is answered and carried out.
PURGE = """
WITH gone AS (
    DELETE FROM inbox AS i WHERE received_at < now() - $1::interval AND due_at IS NULL
        AND NOT EXISTS (SELECT FROM question AS q WHERE q.command_id = i.event_id
                        AND (q.answer IS NULL OR (q.answer = 'ok' AND q.done_at IS NULL)))
    RETURNING 1
)
SELECT count(*) FROM gone
"""


class Item(NamedTuple):
    """An event that this process holds a lease on. `raw` is its JSON; `reply_id` our message that
    an earlier try sent about it."""

    event_id: str
    room_id: str
    sender: str
    raw: bytes
    attempts: int
    reply_id: str | None


async def put(conn: Connection, summons: Sequence[tuple[str, str, str, bytes]]) -> None:
    """Adds events as (event_id, room_id, sender, raw); those that came before are passed over."""
    # Sorted, so that two pushes of the same events wait for each other instead of deadlocking.
    await conn.execute(PUT, *zip(*sorted(summons), strict=True))


async def claim(conn: Connection, lease: timedelta) -> Item | None:
    """Takes what came first of what is due, for `lease`; nobody else gets it until then."""
    row = await conn.fetchrow(CLAIM, lease)
    return Item(*row) if row else None


async def renew(conn: Connection, items: Iterable[Item], lease: timedelta) -> None:
    """Prolongs the leases that are still held."""
    held = [(item.event_id, item.attempts) for item in items]
    await conn.execute(RENEW, [event_id for event_id, _ in held], [n for _, n in held], lease)


async def done(conn: Connection, item: Item) -> bool:
    """It is dealt with. False: the claim was lost, and what was done in this transaction must be
    rolled back."""
    return bool(await conn.fetchval(DONE, item.event_id, item.attempts))


async def postpone(conn: Connection, item: Item, delay: timedelta) -> None:
    """Gives a claim back, to be taken after `delay`."""
    await conn.execute(POSTPONE, item.event_id, item.attempts, delay)


async def set_reply(conn: Connection, item: Item, reply_id: str) -> None:
    """Notes our message that tells how it goes on, while the claim is held."""
    await conn.execute(SET_REPLY, item.event_id, item.attempts, reply_id)


async def drop(conn: Connection, item: Item) -> None:
    """Forgets at once what concerned the bot as little as it would if it came again."""
    await conn.execute(DROP, item.event_id, item.attempts)


async def begin(conn: Connection, item: Item) -> bool | None:
    """Notes that what must not be done twice begins now. False: an earlier claim began it; None:
    the claim was lost."""
    begun: bool | None = await conn.fetchval(BEGIN, item.event_id, item.attempts)
    return begun


async def running(conn: Connection, reply_id: str) -> str | None:
    """The event of which this message of ours tells how it goes on, until it is dealt with."""
    event_id: str | None = await conn.fetchval(RUNNING, reply_id)
    return event_id


async def cancel(conn: Connection, event_id: str) -> None:
    """Tells whichever process deals with an event that nobody wants it any more."""
    await conn.execute(CANCEL, event_id)


async def purge(conn: Connection, older_than: timedelta) -> int:
    """Deletes what came longer ago and is dealt with, unless a question about it is open."""
    return int(await conn.fetchval(PURGE, older_than))
