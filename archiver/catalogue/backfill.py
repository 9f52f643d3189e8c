"""The `backfill` table: rooms whose old messages were asked for, and how far they were read.

A queue like `media`: `due_at` is schedule, back-off and lease in one, and `attempts`, which counts
the claims, is the fencing token. What a worker found in a room and the room's cursor are one
commit, which the worker that lost its claim cannot make.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from archiver.db.pool import Connection

ROOMS = "INSERT INTO room (room_id) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"
# A span that was read, or is being read, is not read again: who asks for older messages as well
# goes on from the cursor, who asks for newer ones starts anew. What somebody asked for and did not
# get yet stays asked for, unless it failed. The claim on a room that changes is void.
REQUEST = """
WITH asked AS (
    INSERT INTO backfill AS known (room_id, since, until, state)
    SELECT room_id, $2, $3, 'pending' FROM unnest($1::text[]) AS asked(room_id)
    ON CONFLICT (room_id) DO UPDATE
        SET (state, reason, due_at, attempts, requested_at, settled_at) =
                ('pending', NULL, now(), known.attempts + 1, now(), NULL),
            since = CASE WHEN known.state = 'failed' OR (known.state = 'done' AND {anew})
                           OR {longer} THEN EXCLUDED.since ELSE known.since END,
            until = CASE WHEN {anew} THEN EXCLUDED.until ELSE known.until END,
            cursor = CASE WHEN {anew} THEN NULL ELSE known.cursor END,
            reached_at = CASE WHEN {anew} THEN NULL ELSE known.reached_at END,
            events = CASE WHEN {anew} THEN 0 ELSE known.events END,
            kept = CASE WHEN {anew} THEN 0 ELSE known.kept END,
            media = CASE WHEN {anew} THEN 0 ELSE known.media END
        WHERE known.state = 'failed' OR {anew} OR {longer}
    RETURNING 1
)
SELECT count(*), (SELECT pg_notify('backfill', '') FROM asked LIMIT 1) FROM asked
""".replace(
    "{anew}",
    "(known.until < coalesce(EXCLUDED.until, 'infinity')"
    " OR (known.state = 'failed' AND known.until IS DISTINCT FROM EXCLUDED.until))",
).replace("{longer}", "known.since > coalesce(EXCLUDED.since, '-infinity')")
CLAIM = """
WITH due AS (
    SELECT room_id FROM backfill WHERE state = 'pending' AND due_at <= now()
    ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE backfill AS b SET attempts = b.attempts + 1, due_at = now() + $1::interval
FROM due WHERE b.room_id = due.room_id
RETURNING b.room_id, b.attempts, b.since, b.until, b.cursor, now() AS claimed_at
"""
RENEW = """
UPDATE backfill AS b SET due_at = greatest(b.due_at, now() + $3::interval)
FROM unnest($1::text[], $2::integer[]) AS held(room_id, attempts)
WHERE b.room_id = held.room_id AND b.attempts = held.attempts AND b.state = 'pending'
"""
ADVANCE = """
UPDATE backfill
SET cursor = coalesce($3, cursor), reached_at = least(reached_at, $4), events = events + $5,
    kept = kept + $6, media = media + $7, reason = NULL, due_at = now() + $8::interval
WHERE room_id = $1 AND attempts = $2 AND state = 'pending'
RETURNING true
"""
# From the newest on, the room is being compared: what comes now comes after this token.
BEGIN = """
UPDATE room SET position = $2, complete_until = $3, complete_from = coalesce(complete_from, $3)
WHERE room_id = $1 AND position IS NULL
"""
# Only what was read down from a time known to be complete makes it complete from earlier on.
EXTEND = """
UPDATE room AS r
SET complete_from = least(r.complete_from, CASE WHEN $2 THEN '-infinity' ELSE b.reached_at END)
FROM backfill AS b
WHERE r.room_id = $1 AND b.room_id = $1
  AND coalesce(b.until, 'infinity') >= coalesce(r.complete_from, r.complete_until)
"""
DONE = """
UPDATE backfill SET state = 'done', reason = NULL, settled_at = now()
WHERE room_id = $1 AND attempts = $2 AND state = 'pending'
"""
FAIL = """
UPDATE backfill SET state = 'failed', reason = $3, settled_at = now()
WHERE room_id = $1 AND attempts = $2 AND state = 'pending'
"""
POSTPONE = """
UPDATE backfill SET due_at = now() + $3::interval, reason = $4
WHERE room_id = $1 AND attempts = $2 AND state = 'pending'
"""
# A media that was tried has a reason to wait. What came after the last room was read is of today.
PROGRESS = """
WITH asked AS (SELECT * FROM backfill WHERE room_id = ANY($1))
SELECT count(*) AS rooms, count(*) FILTER (WHERE state = 'done') AS done,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       coalesce(sum(events), 0)::bigint AS events, coalesce(sum(kept), 0)::bigint AS kept,
       coalesce(sum(media), 0)::bigint AS media,
       (SELECT count(*) FROM media WHERE state = 'pending' AND reason IS NULL
          AND paced_at IS NULL AND created_at <= (
              SELECT CASE WHEN bool_or(state = 'pending') THEN now() ELSE max(settled_at) END
              FROM asked)) AS untried,
       (SELECT count(*) FROM media WHERE paced_at IS NOT NULL AND state = 'pending') AS paced,
       (SELECT extract(epoch FROM spent_until - now())::float8 FROM budget
        WHERE name = 'remote') AS spent
FROM asked
"""
TROUBLES = """
SELECT room_id, state, reason FROM backfill
WHERE room_id = ANY($1) AND state <> 'done' AND reason IS NOT NULL ORDER BY state, room_id
"""
OUTCOMES = """
SELECT m.state, CASE WHEN m.state <> 'ready' THEN m.reason END AS reason,
       m.paced_at IS NOT NULL AND m.state = 'pending' AS paced, count(*) AS media,
       coalesce(sum(b.size), 0)::bigint AS bytes
FROM (SELECT DISTINCT r.server_name, r.media_id
      FROM event AS e JOIN reference AS r USING (event_id) WHERE e.room_id = ANY($1)) AS named
JOIN media AS m USING (server_name, media_id)
LEFT JOIN blob AS b ON b.sha256 = m.blob_sha256
GROUP BY 1, 2, 3 ORDER BY 4 DESC
"""


class Job(NamedTuple):
    """A room that this worker holds a lease on, and where it goes on; without a `cursor` it has
    not begun."""

    room_id: str
    attempts: int
    since: datetime | None
    until: datetime | None
    cursor: str | None
    claimed_at: datetime


class Step(NamedTuple):
    """What one page brought: where the next one begins, how far back it lies, the events it held,
    and of these the new ones and the media that they queued."""

    cursor: str | None
    reached_at: datetime | None
    events: int
    kept: int
    media: int


class Progress(NamedTuple):
    """Rooms by what became of them; the events that were read and newly kept, and the media that
    they queued. Of all media: what nobody tried to fetch yet, and what waits for the budget, which
    is spent for so many seconds ahead."""

    rooms: int
    done: int
    failed: int
    events: int
    kept: int
    media: int
    untried: int
    paced: int
    spent: float | None


class Trouble(NamedTuple):
    """Why a room waits (`pending`) or cannot be read (`failed`)."""

    room_id: str
    state: str
    reason: str


class Outcome(NamedTuple):
    """How many media ended, or wait, in the same way. `paced`: they wait for the budget."""

    state: str
    reason: str | None
    paced: bool
    media: int
    bytes: int


async def request(
    conn: Connection,
    room_ids: Collection[str],
    since: datetime | None = None,
    until: datetime | None = None,
) -> int:
    """Asks for the old messages of rooms. Returns how many rooms have something to read that was
    not asked for before; a failed one is tried again."""
    async with conn.transaction():
        ordered = sorted(set(room_ids))
        await conn.execute(ROOMS, ordered)
        return int(await conn.fetchval(REQUEST, ordered, since, until))


async def claim(conn: Connection, lease: timedelta) -> Job | None:
    """Takes the room that waits for longest, for `lease`; nobody else gets it until then."""
    row = await conn.fetchrow(CLAIM, lease)
    return Job(*row) if row else None


async def renew(conn: Connection, jobs: Iterable[Job], lease: timedelta) -> None:
    """Prolongs the leases that are still held."""
    held = [(job.room_id, job.attempts) for job in jobs]
    await conn.execute(RENEW, [room_id for room_id, _ in held], [n for _, n in held], lease)


async def advance(conn: Connection, job: Job, step: Step, lease: timedelta) -> bool:
    """Moves a room's cursor, in the transaction that recorded the page. False: the claim was lost,
    and the transaction must be rolled back."""
    return bool(await conn.fetchval(ADVANCE, job.room_id, job.attempts, *step, lease))


async def begin(conn: Connection, job: Job, position: str) -> None:
    """After the newest page: the room is complete up to the claim, unless more is known of it."""
    await conn.execute(BEGIN, job.room_id, position, job.claimed_at)


async def extend(conn: Connection, job: Job, *, to_the_beginning: bool) -> None:
    """Notes how far back the room is complete now; to be said while the claim is certain."""
    await conn.execute(EXTEND, job.room_id, to_the_beginning)


async def finish(conn: Connection, job: Job) -> None:
    """The room is read as far as it was asked for."""
    await conn.execute(DONE, job.room_id, job.attempts)


async def fail(conn: Connection, job: Job, reason: str) -> None:
    """The room cannot be read; asking again tries again."""
    await conn.execute(FAIL, job.room_id, job.attempts, reason)


async def postpone(conn: Connection, job: Job, delay: timedelta, reason: str | None) -> None:
    """Gives a claim back, to be taken after `delay`; the reason is what is shown meanwhile."""
    await conn.execute(POSTPONE, job.room_id, job.attempts, delay, reason)


async def progress(conn: Connection, room_ids: Collection[str]) -> Progress:
    """How far the rooms are."""
    [row] = await conn.fetch(PROGRESS, list(room_ids))
    return Progress(*row)


async def troubles(conn: Connection, room_ids: Collection[str]) -> list[Trouble]:
    """The rooms that wait for another try, and those that cannot be read."""
    return [Trouble(*row) for row in await conn.fetch(TROUBLES, list(room_ids))]


async def outcomes(conn: Connection, room_ids: Collection[str]) -> list[Outcome]:
    """What became of the media that the rooms name; of many rooms this may take minutes."""
    return [Outcome(*row) for row in await conn.fetch(OUTCOMES, list(room_ids), timeout=600)]
