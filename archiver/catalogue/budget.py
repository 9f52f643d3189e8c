"""What old media of other servers may cost the homeserver, over all processes.

Backfill records such media as `paced`: pending, but never due. A row of `budget` says until when
the rate is spent already (the generic cell rate algorithm, GCRA): each media that is released to
the queue moves that ahead by its size / rate, and none is released while it lies further ahead
than the burst. The size is the senders' word or a guess, so what really came is charged later.

Lock order: media, then budget. A release locks the budget first, and passes by what is locked.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.queue import Job

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# What may be spent at once after a quiet time, in bytes. Synapse lets its clients have 500 MiB
# before it limits them (remote_media_download_burst_count): most of it is for what people post.
BURST = 64 * 1024 * 1024
AT_ONCE = 100

OPEN = "INSERT INTO budget (name) VALUES ('remote') ON CONFLICT (name) DO NOTHING"
# One statement, so two processes that release at once wait for each other and never spend the
# same time twice. A declared size is believed between 64 KiB and 1 GiB; without any it is 1 MiB.
# `state` is asked for in this way lest the planner takes the queue's index and sorts.
# $1: bytes a second, $2: how far ahead may be spent, $3: media at most.
RELEASE = """
WITH purse AS (
    SELECT greatest(spent_until, now()) AS spent, now() + $2::interval AS allowed
    FROM budget WHERE name = 'remote' FOR UPDATE
), waiting AS (
    SELECT m.server_name, m.media_id, m.paced_at,
           (SELECT least(greatest(coalesce(max(r.declared_size), 1048576), 65536), 1073741824)
            FROM (SELECT declared_size FROM reference
                  WHERE server_name = m.server_name AND media_id = m.media_id LIMIT 100) AS r
           ) AS size
    FROM media AS m
    WHERE m.paced_at IS NOT NULL
      AND m.state NOT IN ('ready', 'failed', 'excluded', 'quarantined', 'deleted')
      AND (SELECT spent <= allowed FROM purse)
    ORDER BY m.paced_at DESC LIMIT $3 FOR UPDATE OF m SKIP LOCKED
), turn AS (
    SELECT *, sum(size) OVER (ORDER BY paced_at DESC, server_name, media_id) - size AS before
    FROM waiting
), released AS (
    UPDATE media AS m
    SET paced_at = NULL, due_at = least(now(), turn.paced_at), reason = NULL, charged = turn.size
    FROM turn, purse
    WHERE m.server_name = turn.server_name AND m.media_id = turn.media_id
      AND purse.spent + turn.before::float8 / $1::float8 * interval '1 s' <= purse.allowed
    RETURNING m.charged
), total AS (
    SELECT count(*) AS media,
           coalesce(sum(charged), 0)::float8 / $1::float8 * interval '1 s' AS cost
    FROM released
), charge AS (
    UPDATE budget SET spent_until = purse.spent + total.cost
    FROM purse, total WHERE name = 'remote' AND total.media > 0
)
SELECT total.media, extract(epoch FROM purse.spent + total.cost - purse.allowed)::float8 AS wait,
       (SELECT pg_notify('media_pending', '') WHERE total.media > 0)
FROM purse, total
"""
RELEASE_ALL = """
WITH waiting AS (
    SELECT server_name, media_id FROM media
    WHERE paced_at IS NOT NULL
      AND state NOT IN ('ready', 'failed', 'excluded', 'quarantined', 'deleted')
    ORDER BY paced_at DESC LIMIT $1 FOR UPDATE SKIP LOCKED
), released AS (
    UPDATE media AS m
    SET paced_at = NULL, due_at = least(now(), m.paced_at), reason = NULL, charged = NULL
    FROM waiting WHERE m.server_name = waiting.server_name AND m.media_id = waiting.media_id
    RETURNING 1
)
SELECT (SELECT count(*) FROM released) AS media, 0::float8 AS wait,
       (SELECT pg_notify('media_pending', '') FROM released LIMIT 1)
"""
# Never before now: what was not spent in the past is the burst, and no more is saved up.
CORRECT = """
WITH charge AS (
    UPDATE budget
    SET spent_until = greatest(now(), greatest(spent_until, now()) + $4::interval)
    WHERE name = 'remote'
)
UPDATE media SET charged = $3 WHERE server_name = $1 AND media_id = $2
RETURNING (SELECT pg_notify('media_paced', '') WHERE $4::interval < interval '0')
"""
HOLD_OFF = """
UPDATE budget SET spent_until = greatest(spent_until, now() + $1::interval) WHERE name = 'remote'
"""
# What somebody posted while it was on its way is old media no more.
PACE_AGAIN = """
UPDATE media AS m SET paced_at = old.sent_at, due_at = 'infinity', charged = NULL
FROM (SELECT coalesce(max(e.sent_at), now()) AS sent_at
      FROM reference AS r JOIN event AS e USING (event_id)
      WHERE r.server_name = $1 AND r.media_id = $2
      HAVING coalesce(bool_and(e.source = 'backfill'), true)) AS old
WHERE m.server_name = $1 AND m.media_id = $2 AND m.charged IS NOT NULL
"""


class Released(NamedTuple):
    """Media that are due now, and the seconds until the budget allows the next (0: it does)."""

    media: int
    wait: float


async def open_budget(conn: Connection) -> None:
    """Makes sure that there is a row to lock."""
    await conn.execute(OPEN)


async def release(conn: Connection, rate: int | None, limit: int = AT_ONCE) -> Released:
    """Hands paced media to the queue, newest first, as far as `rate` bytes a second allow.

    Without a rate all that wait are handed over, `limit` at a time.
    """
    if rate is None:
        row = await conn.fetchrow(RELEASE_ALL, limit)
    else:
        row = await conn.fetchrow(RELEASE, rate, _worth(rate, BURST), limit)
    return Released(row["media"], max(0.0, row["wait"])) if row else Released(0, 0.0)


async def correct(
    conn: Connection, job: Job, rate: int | None, spent: int, *, done: bool = True
) -> None:
    """Charges what a job really cost instead of what was thought; for the job's own transaction.

    `spent`: the bytes that came. Not `done`: it will be tried again, and charged for it then.
    """
    if job.charged is not None:
        owed = _worth(rate, spent - job.charged) if rate else timedelta()
        await conn.execute(CORRECT, *job.mxc, None if done else 0, owed)


async def step_back(conn: Connection, job: Job, rate: int, pause: timedelta) -> None:
    """The homeserver's own limit is reached: old media wait for `pause`, the job's included.

    Whatever is left of that limit is for what people post. The burst is spent as well, because
    the homeserver has none to give. For the transaction that put the job off.
    """
    if job.charged is not None:
        await conn.execute(PACE_AGAIN, *job.mxc)
    await conn.execute(HOLD_OFF, _worth(rate, BURST) + pause)


def _worth(rate: int, size: int) -> timedelta:
    return timedelta(seconds=size / rate)
