"""The `media` table as the queue.

`due_at` is schedule, back-off and lease in one. `attempts` counts the claims and is the fencing
token: whatever a worker says of a job names the claim it speaks for, so that one that lost its
lease changes nothing. `unfinished` counts the claims in a row that ended without a word, because
the worker died: such a job's lease grows, lest a body that kills workers kills them all day.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.variants import RENDERABLE
from archiver.model import Blob, Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

CLAIM_NEWEST = """
WITH due AS (
    SELECT server_name, media_id FROM media
    WHERE state = 'pending' AND due_at <= now()
    ORDER BY due_at DESC LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE media AS m
SET attempts = m.attempts + 1,
    unfinished = least(m.unfinished + 1, 1000),
    due_at = now() + $2::interval * power(2, least(m.unfinished, 10))
FROM due
WHERE m.server_name = due.server_name AND m.media_id = due.media_id
RETURNING m.server_name, m.media_id, m.attempts, m.created_at, m.charged,
          (SELECT array_agg(DISTINCT r.encryption #>> '{hashes,sha256}') FROM
              (SELECT encryption FROM reference AS r
               WHERE r.server_name = m.server_name AND r.media_id = m.media_id LIMIT 100) AS r
           -- Where there are more, the true one may be among those not read.
           HAVING count(*) < 100) AS hashes
"""
CLAIM_OLDEST = CLAIM_NEWEST.replace("due_at DESC", "due_at ASC")
# Also before it is due, but not while somebody holds a lease. What waits for the budget of old
# media waits no more, and is charged for when it has come.
CLAIM_THIS = CLAIM_NEWEST.replace(
    """state = 'pending' AND due_at <= now()
    ORDER BY due_at DESC LIMIT $1 FOR UPDATE SKIP LOCKED""",
    """server_name = $1 AND media_id = $3 AND state = 'pending'
      AND (due_at <= now() OR unfinished = 0)
    FOR UPDATE""",
).replace(
    "SET attempts",
    """SET paced_at = NULL, charged = CASE WHEN m.paced_at IS NULL THEN m.charged ELSE 0 END,
    attempts""",
)
STANDING = """
SELECT state, state = 'pending' AND unfinished > 0 AND due_at > now() AS leased
FROM media WHERE server_name = $1 AND media_id = $2
"""

RENEW = """
UPDATE media AS m SET due_at = greatest(m.due_at, now() + $4::interval)
FROM unnest($1::text[], $2::text[], $3::integer[]) AS held(server_name, media_id, attempts)
WHERE m.server_name = held.server_name AND m.media_id = held.media_id
  AND m.attempts = held.attempts AND m.state = 'pending'
RETURNING m.server_name, m.media_id
"""
RELEASE = """
UPDATE media AS m SET due_at = now(), unfinished = 0
FROM unnest($1::text[], $2::text[], $3::integer[]) AS held(server_name, media_id, attempts)
WHERE m.server_name = held.server_name AND m.media_id = held.media_id
  AND m.attempts = held.attempts AND m.state = 'pending'
"""
POSTPONE = """
UPDATE media SET due_at = now() + $4::interval, reason = $5, unfinished = 0
WHERE server_name = $1 AND media_id = $2 AND attempts = $3 AND state = 'pending'
RETURNING true
"""
SETTLE = """
UPDATE media SET state = $4, reason = $5, unfinished = 0, due_at = NULL, settled_at = now()
WHERE server_name = $1 AND media_id = $2 AND attempts = $3 AND state = 'pending'
RETURNING true
"""
# One commit: the bytes of an inline blob, the blob, the end of the job, and a note for custody.
# Without the claim nothing is written; where the blob is known already, only the media is.
COMPLETE = """
WITH mine AS (
    SELECT FROM media
    WHERE server_name = $1 AND media_id = $2 AND attempts = $3 AND state = 'pending'
    FOR UPDATE
), new_blob AS (
    INSERT INTO blob (sha256, size, place, mimetype, width, height, duration_ms,
                      processing, processing_due, scan_due)
    SELECT $4, $5, $6, $7, $8, $9, $10, CASE WHEN $15 THEN 'pending' END, now(),
           (SELECT now() FROM scanning) FROM mine WHERE NOT $14
    ON CONFLICT (sha256) DO NOTHING
    RETURNING sha256
), new_data AS (
    INSERT INTO blob_data (sha256, data)
    SELECT sha256, $11::bytea FROM new_blob WHERE $6 = 'inline'
    ON CONFLICT (sha256) DO NOTHING
), done AS (
    UPDATE media SET state = 'ready', blob_sha256 = $4, declared_type = $12, upload_name = $13,
                     reason = NULL, due_at = NULL, unfinished = 0, settled_at = now()
    WHERE server_name = $1 AND media_id = $2 AND EXISTS (SELECT FROM mine)
    RETURNING state = 'quarantined' AS refused
), noted AS (
    INSERT INTO captured (server_name, media_id, sha256, size, quarantined)
    SELECT $1, $2, $4, $5, refused FROM done WHERE NOT $16
)
SELECT EXISTS (SELECT FROM new_blob), refused FROM done
"""
# Also takes an object out of the garbage; whoever is removing it right now is waited for.
KNOWN = """
WITH rescued AS (DELETE FROM garbage WHERE sha256 = $1 AND NOT EXISTS
                 (SELECT FROM blob WHERE sha256 = $1 AND place = 'inline'))
SELECT true FROM blob WHERE sha256 = $1
"""
# Each half reads a partial index of its own: what is `ready` is never counted here.
COUNTS = """
SELECT state, count(*) AS media,
       -- What waits for the budget is never due.
       coalesce(extract(epoch FROM now() - min(due_at) FILTER (WHERE paced_at IS NULL)), 0)::float8
           AS overdue
FROM media WHERE state = 'pending' GROUP BY state
UNION ALL
SELECT state, count(*), NULL
FROM media WHERE state IN ('failed', 'excluded', 'quarantined', 'deleted') GROUP BY state
"""


class Job(NamedTuple):
    """A media that this worker holds a lease on. `hashes` are the senders' words on its content:
    base64 SHA-256 of the ciphertext, None from an event that does not encrypt it. `charged`: the
    bytes that the budget of old media was charged for it, None where it is none of those."""

    mxc: Mxc
    attempts: int
    created_at: datetime
    hashes: tuple[str | None, ...] = ()
    charged: int | None = None


class Said(NamedTuple):
    """What the homeserver said of a body, beside the body."""

    declared_type: str | None = None
    upload_name: str | None = None


async def claim(
    conn: Connection, limit: int, lease: timedelta, *, oldest_first: bool
) -> list[Job]:
    """Takes up to `limit` due media for `lease`; nobody else gets them until then."""
    statement = CLAIM_OLDEST if oldest_first else CLAIM_NEWEST
    return [_job(row) for row in await conn.fetch(statement, limit, lease)]


async def claim_this(conn: Connection, mxc: Mxc, lease: timedelta) -> Job | None:
    """Takes this media for `lease`, due or not; None where it is leased, or not pending."""
    row = await conn.fetchrow(CLAIM_THIS, mxc.server_name, lease, mxc.media_id)
    return None if row is None else _job(row)


class Standing(NamedTuple):
    """A media's state, and whether somebody has it under way."""

    state: str
    leased: bool


async def standing(conn: Connection, mxc: Mxc) -> Standing | None:
    """How a media stands; None where nobody ever named it."""
    row = await conn.fetchrow(STANDING, *mxc)
    return None if row is None else Standing(*row)


async def renew(conn: Connection, jobs: Iterable[Job], lease: timedelta) -> set[Mxc]:
    """Prolongs the leases and returns which of them are still held."""
    return {Mxc(*row) for row in await conn.fetch(RENEW, *_claims(jobs), lease)}


async def release(conn: Connection, jobs: Iterable[Job]) -> None:
    """Gives claims back, so that another worker may take them at once."""
    await conn.execute(RELEASE, *_claims(jobs))


async def postpone(conn: Connection, job: Job, delay: timedelta, reason: str) -> bool:
    """Lets the media wait; the reason is what lists show meanwhile. False: the claim was lost."""
    return bool(await conn.fetchval(POSTPONE, *job.mxc, job.attempts, delay, reason))


async def settle(conn: Connection, job: Job, state: str, reason: str) -> bool:
    """Ends the job without bytes: `failed` or `excluded`. False: the claim was lost."""
    return bool(await conn.fetchval(SETTLE, *job.mxc, job.attempts, state, reason))


class Completed(NamedTuple):
    """How a completion went: whether the claim was still held, whether the blob is new, and
    whether its bytes are refused, so that the media is in quarantine."""

    held: bool
    new_blob: bool = False
    refused: bool = False


async def complete(
    conn: Connection,
    job: Job,
    blob: Blob,
    said: Said,
    inline: bytes | None,
    *,
    known: bool,
    imported: bool = False,
) -> Completed:
    """Records blob and job's end in one commit. `inline`: the bytes, where they go inside.

    `known`: the blob was there before, so that it must not be recorded anew; should it be deleted
    meanwhile, the foreign key refuses (asyncpg.ForeignKeyViolationError) and the job starts over.
    `imported`: custody is told by whoever imports.
    """
    row = await conn.fetchrow(
        COMPLETE, *job.mxc, job.attempts, blob.sha256, blob.size, blob.place,
        *blob.facts, inline, *said, known, blob.facts.mimetype in RENDERABLE,
        imported,
    )  # fmt: skip
    return Completed(False) if row is None else Completed(True, *row)


async def is_known(conn: Connection, sha256: bytes) -> bool:
    """True when a blob with these bytes is kept already. If not, they may be put into the store.

    Without this question before it, the collector of garbage could remove what was just put.
    """
    return bool(await conn.fetchval(KNOWN, sha256))


async def counts(conn: Connection) -> list[Row]:
    """Media that are not ready, by state, and the seconds the most overdue has waited."""
    return await conn.fetch(COUNTS)


def _job(row: Row) -> Job:
    mxc, hashes = Mxc(row["server_name"], row["media_id"]), tuple(row["hashes"] or ())
    return Job(mxc, row["attempts"], row["created_at"], hashes, row["charged"])


def _claims(jobs: Iterable[Job]) -> tuple[list[str], list[str], list[int]]:
    held = list(jobs)
    names = [job.mxc.server_name for job in held], [job.mxc.media_id for job in held]
    return *names, [job.attempts for job in held]
