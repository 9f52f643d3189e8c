"""The `room` table: when a room was active, how far its history is known, whose turn it is.

`due_at` is schedule and lease in one, and `attempts` counts the claims and is the fencing token,
as in the queue of media: who lost a claim changes nothing. All times are the database's, because
the clocks of several machines cannot be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue import moments
from archiver.catalogue.moments import Moment

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# A room's gap is open: something that was never pushed may be missing from it. To be put into a
# WHERE clause on `room`; where `reason` is not NULL it stays open, because nobody may look.
IS_OPEN = """
(complete_until IS NULL OR complete_until < (SELECT at FROM moment WHERE name = 'doubt'))
"""
SEE = """
INSERT INTO room (room_id) SELECT room_id FROM unnest($1::text[]) AS seen(room_id)
ORDER BY room_id ON CONFLICT DO NOTHING
"""
# A room that wakes up is compared soon; one that was active all along has its turn anyway.
ACTIVE = """
INSERT INTO room AS known (room_id, active_at)
SELECT room_id, now() FROM unnest($1::text[]) AS active(room_id) ORDER BY room_id
ON CONFLICT (room_id) DO UPDATE
SET active_at = greatest(known.active_at, EXCLUDED.active_at),
    due_at = CASE WHEN known.reason IS NULL
                   AND coalesce(known.active_at < now() - 4 * $2::interval, true)
                  THEN least(known.due_at, now() + $2::interval) ELSE known.due_at END
"""
# The index on due_at gives the order: from yesterday for the most active to now for the silent.
DOUBT = """
WITH doubted AS (
    SELECT room_id FROM room WHERE $1::text[] IS NULL OR room_id = ANY ($1)
    ORDER BY room_id FOR UPDATE
), changed AS (
    UPDATE room AS r
    SET attempts = r.attempts + 1, reason = NULL,
        due_at = now() - (greatest(r.active_at, now() - interval '1 day')
                          - (now() - interval '1 day'))
    FROM doubted WHERE r.room_id = doubted.room_id
)
SELECT now()
"""
CLAIM = """
UPDATE room SET attempts = attempts + 1, due_at = now() + $1::interval
WHERE room_id = (SELECT room_id FROM room
                 WHERE due_at <= now() AND ($2::text[] IS NULL OR room_id = ANY ($2))
                 ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING room_id, attempts, position, now() AS at,
          coalesce(active_at > looked_back_at AND looked_back_at < now() - $3::interval, false)
              AS look_back
"""
ADVANCE = """
UPDATE room
SET position = coalesce($4, position), complete_until = coalesce($5, complete_until),
    complete_from = CASE WHEN $6 THEN '-infinity' WHEN $8 THEN $7
                         ELSE coalesce(complete_from, $7) END,
    looked_back_at = CASE WHEN $9 THEN now() ELSE looked_back_at END,
    active_at = greatest(active_at, $10::timestamptz), reason = NULL,
    due_at = now() + CASE WHEN $11 THEN
        greatest($3::interval, least((now() - greatest(active_at, $10)) / 4, interval '1 day'))
        ELSE $3 END
WHERE room_id = $1 AND attempts = $2
RETURNING now()
"""
PUT_OFF = """
UPDATE room SET reason = $3, due_at = now() + $4::interval
WHERE room_id = $1 AND attempts = $2 RETURNING true
"""
RELEASE = "UPDATE room SET due_at = now() WHERE room_id = $1 AND attempts = $2"
END_PASS = """
INSERT INTO moment (name, at)
SELECT 'reconcile', now() FROM moment AS doubt
WHERE doubt.name = 'doubt'
  AND doubt.at > coalesce((SELECT at FROM moment WHERE name = 'reconcile'), '-infinity')
  AND NOT EXISTS (SELECT FROM room WHERE reason IS NULL AND {is_open})
ON CONFLICT (name) DO UPDATE SET at = EXCLUDED.at
RETURNING true
""".replace("{is_open}", IS_OPEN)
COMPARED = """
SELECT count(*) FILTER (WHERE complete_until >= $1) AS compared,
       count(*) FILTER (WHERE reason IS NULL AND coalesce(complete_until < $1, true)) AS open,
       coalesce(bool_or(due_at > now()) FILTER
           (WHERE reason IS NULL AND coalesce(complete_until < $1, true)), false) AS under_way
FROM room WHERE $2::text[] IS NULL OR room_id = ANY ($2)
"""
STILL_OPEN = """
SELECT EXISTS (SELECT FROM room WHERE (complete_until IS NULL OR complete_until < $1)
               AND reason IS NULL AND ($2::text[] IS NULL OR room_id = ANY ($2)))
"""
UNKNOWN = """
SELECT event_id FROM unnest($1::text[]) AS asked(event_id)
WHERE NOT EXISTS (SELECT FROM event AS e WHERE e.event_id = asked.event_id)
"""
KNOWN_BEFORE = """
SELECT coalesce((SELECT complete_until < $3 FROM room WHERE room_id = $1), EXISTS (
    SELECT FROM event
    WHERE room_id = $1 AND source = 'push' AND sent_at >= $2 AND sent_at < $3
))
"""
# Reads the whole table of events.
FOUND = """
SELECT r.room_id, r.reason, coalesce(f.events, 0) AS found
FROM room AS r LEFT JOIN (
    SELECT room_id, count(*) AS events FROM event
    WHERE source = 'reconcile' AND received_at >= $1 GROUP BY room_id
) AS f USING (room_id)
WHERE $2::text[] IS NULL OR r.room_id = ANY ($2) ORDER BY r.room_id
"""


class Claim(NamedTuple):
    """A room that this process holds a lease on, since `at`. `look_back`: it is time to look for
    what federation delivered late."""

    room_id: str
    attempts: int
    position: str | None
    at: datetime
    look_back: bool


class Progress(NamedTuple):
    """What a page of history taught of a room; None changes nothing.

    `reaches`: it goes back to that time, or to the room's beginning with `whole`; that counts
    where nothing was known before, or `anew`. `newest`: the time of the newest event in it.
    `over`: the visit is.
    """

    position: str | None
    complete_until: datetime | None = None
    whole: bool = False
    reaches: datetime | None = None
    anew: bool = False
    looked_back: bool = False
    newest: datetime | None = None
    over: bool = False


class Comparing(NamedTuple):
    """How many rooms were compared, and how many still can be; `under_way`: somebody does."""

    compared: int
    open: int
    under_way: bool


async def see(conn: Connection, room_ids: Iterable[str]) -> None:
    """Makes rooms known; those that are new are due at once."""
    await conn.execute(SEE, list(room_ids))


async def active(conn: Connection, room_ids: Iterable[str], every: timedelta | None) -> None:
    """Something happened in these rooms just now. `every`: how often active rooms are compared."""
    await conn.execute(ACTIVE, list(room_ids), every)


async def doubt(conn: Connection, room_ids: Collection[str] | None) -> datetime:
    """These rooms, or all of them, are due now, active ones first; running visits are void.
    Returns the time."""
    doubted: datetime = await conn.fetchval(DOUBT, room_ids)
    return doubted


async def ask(conn: Connection, room_ids: Collection[str] | None) -> datetime:
    """From now on these rooms, or all, count as incomplete until they are compared. To be said in
    a transaction. Returns the time."""
    if room_ids is None:
        await moments.note(conn, Moment.DOUBT)
    else:
        await see(conn, room_ids)
    return await doubt(conn, room_ids)


async def claim(
    conn: Connection,
    lease: timedelta,
    look_back_every: timedelta,
    room_ids: Collection[str] | None = None,
) -> Claim | None:
    """Takes the room that is due for longest, of these or of all; None when none is due."""
    row = await conn.fetchrow(CLAIM, lease, room_ids, look_back_every)
    if row is None:
        return None
    return Claim(row["room_id"], row["attempts"], row["position"], row["at"], row["look_back"])


async def advance(
    conn: Connection, claim: Claim, progress: Progress, wait: timedelta
) -> datetime | None:
    """Notes what a page taught, and returns the time. None: the claim was lost.

    `wait` is the next lease; when the visit is over, the shortest time to the next one: a room
    rests for a quarter of the time for which it was silent, a day at most.
    """
    at: datetime | None = await conn.fetchval(
        ADVANCE, claim.room_id, claim.attempts, wait, *progress
    )
    return at


async def put_off(conn: Connection, claim: Claim, reason: str, wait: timedelta) -> bool:
    """Ends a visit without an answer; the reason is what lists show. False: the claim was lost."""
    return bool(await conn.fetchval(PUT_OFF, claim.room_id, claim.attempts, reason, wait))


async def release(conn: Connection, claim: Claim) -> None:
    """Gives a claim back: the room is due again."""
    await conn.execute(RELEASE, claim.room_id, claim.attempts)


async def end_pass(conn: Connection) -> bool:
    """Notes that every readable room was compared since the last doubt; False: not so, or it was
    noted before."""
    return bool(await conn.fetchval(END_PASS))


async def still_open(conn: Connection, since: datetime, room_ids: Collection[str] | None) -> bool:
    """True while one of these rooms, or of all, was not compared since then, and could be."""
    return bool(await conn.fetchval(STILL_OPEN, since, room_ids))


async def compared(
    conn: Connection, since: datetime, room_ids: Collection[str] | None
) -> Comparing:
    """How far comparing these rooms, or all, has come since then."""
    [row] = await conn.fetch(COMPARED, since, room_ids)
    return Comparing(*row)


async def unknown(conn: Connection, event_ids: Iterable[str]) -> set[str]:
    """Which of these events the archive does not have."""
    return {row["event_id"] for row in await conn.fetch(UNKNOWN, list(event_ids))}


async def known_before(conn: Connection, room_id: str, since: datetime, at: datetime) -> bool:
    """True when the room was compared before `at`, but not later; of one that never was, when an
    event was pushed that was sent since `since` and before `at`."""
    return bool(await conn.fetchval(KNOWN_BEFORE, room_id, since, at))


async def found(conn: Connection, since: datetime, room_ids: Collection[str] | None) -> list[Row]:
    """How many events of each room comparing brought since then, and why a room is unreadable.
    Of a large archive this may take minutes."""
    return await conn.fetch(FOUND, since, room_ids, timeout=600)
