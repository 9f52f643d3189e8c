"""The media table as a queue, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archiver.catalogue import queue
from archiver.catalogue.queue import Completed, Job, Said
from archiver.db.pool import Connection, Pool
from archiver.model import Blob, Mxc, Place, State
from tests.support.fetching import add, claim, row
from tests.support.homeserver import mxc

LEASE = timedelta(seconds=30)
OVER = timedelta(seconds=-1)  # a lease that has run out when it is given
DATA = b"the bytes"
BLOB = Blob(hashlib.sha256(DATA).digest(), len(DATA), Place.INLINE)
SAID = Said("image/png", "cat.png")


async def finish(conn: Connection, job: Job) -> Completed:
    return await queue.complete(conn, job, BLOB, SAID, DATA, known=False)


async def test_a_claim_is_a_lease(pool: Pool) -> None:
    """A claimed media is due again when the lease ends, and nobody gets it before."""
    await add(pool, "cat")
    (job,) = await claim(pool)
    assert (job.mxc, job.attempts) == (mxc("cat"), 1)
    assert abs(datetime.now(UTC) - job.created_at) < timedelta(minutes=1)
    assert 25 < (await row(pool, "cat"))["due_in"] <= 30
    assert await claim(pool) == []


async def test_only_what_is_due_and_pending_is_claimed(pool: Pool) -> None:
    """What is over, or to be tried later, stays where it is."""
    await add(pool, "later", due=timedelta(seconds=60))
    await add(pool, "over", state="failed")
    await add(pool, "due")
    assert [job.mxc for job in await claim(pool, 10)] == [mxc("due")]


async def test_the_youngest_or_the_oldest_go_first(pool: Pool) -> None:
    """Either end of what is due can be taken, as the worker likes it."""
    for minutes in range(10):
        await add(pool, f"m{minutes}", due=-timedelta(minutes=minutes))
    assert {job.mxc.media_id for job in await claim(pool, 3)} == {"m0", "m1", "m2"}
    assert {job.mxc.media_id for job in await claim(pool, 3, oldest=True)} == {"m9", "m8", "m7"}
    assert {job.mxc.media_id for job in await claim(pool, 99)} == {"m3", "m4", "m5", "m6"}


async def test_two_claims_at_once_share_nothing(pool: Pool) -> None:
    """While one connection has its claim still open, another passes by those rows."""
    await add(pool, *map(str, range(10)))
    async with pool.acquire() as one, pool.acquire() as two, one.transaction():
        first = await queue.claim(one, 6, LEASE, oldest_first=False)
        second = await queue.claim(two, 6, LEASE, oldest_first=False)
    assert len(first) == 6
    assert len(second) == 4
    assert not {job.mxc for job in first} & {job.mxc for job in second}


async def test_a_limit_is_kept_in_a_large_table(pool: Pool) -> None:
    """A claim takes as many as it may, whatever plan PostgreSQL chooses."""
    await add(pool, *map(str, range(3000)))
    await pool.execute("ANALYZE media")
    for limit in (1, 7, 512):
        assert len(await claim(pool, limit)) == limit
    claimed = await pool.fetchval("SELECT count(*) FROM media WHERE attempts > 0")
    assert claimed == 520


async def test_a_lease_that_ran_out_is_anybodys(pool: Pool) -> None:
    """Work of a worker that died is claimed again, as another try."""
    await add(pool, "cat")
    await claim(pool, 1, OVER)
    (again,) = await claim(pool)
    assert again.attempts == 2


async def test_a_renewed_lease_lasts(pool: Pool) -> None:
    """Renewing prolongs what is still held, and says which that is."""
    await add(pool, "cat", "dog")
    cat, dog = sorted(await claim(pool, 2, timedelta(seconds=1)))
    async with pool.acquire() as conn:
        await queue.settle(conn, dog, State.FAILED, "gone")
        assert await queue.renew(conn, [cat, dog], LEASE) == {cat.mxc}
    assert 25 < (await row(pool, "cat"))["due_in"] <= 30


async def test_an_old_claim_changes_nothing(pool: Pool) -> None:
    """Whatever a worker says of a media that another one has claimed since, it stays as it is."""
    await add(pool, "cat")
    (old,) = await claim(pool, 1, OVER)
    (new,) = await claim(pool)
    before = await row(pool, "cat")
    async with pool.acquire() as conn:
        assert await queue.renew(conn, [old], LEASE) == set()
        assert not await queue.postpone(conn, old, LEASE, "late")
        assert not await queue.settle(conn, old, State.FAILED, "late")
        assert await finish(conn, old) == Completed(held=False)
        await queue.release(conn, [old])
        after = await row(conn, "cat")
        assert dict(after) | {"due_in": 0} == dict(before) | {"due_in": 0}
        assert await conn.fetchval("SELECT count(*) FROM blob") == 0
        assert await conn.fetchval("SELECT count(*) FROM blob_data") == 0
        assert await finish(conn, new) == Completed(held=True, new_blob=True)


async def test_what_is_over_stays_over(pool: Pool) -> None:
    """A claim ends with its first word: nothing that is said later counts."""
    await add(pool, "cat")
    (job,) = await claim(pool)
    async with pool.acquire() as conn:
        assert await finish(conn, job) == Completed(held=True, new_blob=True)
        assert await finish(conn, job) == Completed(held=False)
        assert not await queue.settle(conn, job, State.FAILED, "late")
        assert not await queue.postpone(conn, job, LEASE, "late")
        await queue.release(conn, [job])
    media = await row(pool, "cat")
    assert (media["state"], media["reason"], media["due_at"]) == ("ready", None, None)
    assert (media["declared_type"], media["upload_name"]) == SAID
    assert media["settled_at"] is not None


async def test_a_released_media_is_due_at_once(pool: Pool) -> None:
    """What a worker gives back, another one may take."""
    await add(pool, "cat")
    jobs = await claim(pool)
    async with pool.acquire() as conn:
        await queue.release(conn, jobs)
        await queue.release(conn, [])
    assert (await row(pool, "cat"))["unfinished"] == 0
    assert len(await claim(pool)) == 1


async def test_a_postponed_media_waits_with_its_reason(pool: Pool) -> None:
    """Lists show why a media is not there yet."""
    await add(pool, "cat")
    (job,) = await claim(pool)
    async with pool.acquire() as conn:
        assert await queue.postpone(conn, job, timedelta(hours=1), "404")
    media = await row(pool, "cat")
    assert (media["state"], media["reason"], media["unfinished"]) == ("pending", "404", 0)
    assert 3590 < media["due_in"] <= 3600


async def test_leases_grow_while_workers_die_of_it(pool: Pool) -> None:
    """Each claim that ends without a word doubles the next lease, up to a thousandfold."""
    await add(pool, "bomb")
    for deaths in range(13):
        assert len(await claim(pool)) == 1
        wait = 30 * 2 ** min(deaths, 10)
        assert wait * 0.9 < (await row(pool, "bomb"))["due_in"] <= wait
        await pool.execute("UPDATE media SET due_at = now()")


async def test_a_grown_lease_is_not_cut_by_renewing(pool: Pool) -> None:
    """A worker that dies of a media after its first renewal leaves it alone for as long."""
    await add(pool, "bomb")
    await pool.execute("UPDATE media SET unfinished = 4")
    jobs = await claim(pool)
    async with pool.acquire() as conn:
        assert await queue.renew(conn, jobs, LEASE) == {mxc("bomb")}
    assert (await row(pool, "bomb"))["due_in"] > 400


async def test_unfinished_never_overflows(pool: Pool) -> None:
    """The count stays a small integer, though workers die for years."""
    await add(pool, "bomb")
    await pool.execute("UPDATE media SET unfinished = 1000")
    await claim(pool)
    assert (await row(pool, "bomb"))["unfinished"] == 1000


async def test_any_word_resets_the_growth(pool: Pool) -> None:
    """A worker that lives to say something of a media brings its lease back to normal."""
    async with pool.acquire() as conn:
        for word in ("release", "postpone"):
            await add(conn, word)
            await conn.execute("UPDATE media SET unfinished = 5")
            (job,) = await claim(pool)
            if word == "release":
                await queue.release(conn, [job])
            else:
                await queue.postpone(conn, job, OVER, "404")
            assert (await row(conn, word))["unfinished"] == 0
            await claim(pool)
            assert (await row(conn, word))["due_in"] <= 30


async def refer(conn: Connection | Pool, name: str, event_id: str, encryption: Any) -> None:
    await conn.execute(
        "INSERT INTO event (event_id, content, source) VALUES ($1, '{}', 'push')", event_id
    )
    await conn.execute(
        "INSERT INTO reference (event_id, server_name, media_id, role, encryption) "
        "VALUES ($1, $2, $3, 'content', $4::jsonb)",
        *(event_id, *mxc(name), encryption),
    )


async def test_a_job_knows_what_senders_say_of_it(pool: Pool) -> None:
    """The hashes of all events come along, None for one that names the media unencrypted."""
    await add(pool, "cat")
    await refer(pool, "cat", "$1", '{"hashes": {"sha256": "abc"}}')
    await refer(pool, "cat", "$2", '{"hashes": {"sha256": "abc"}}')
    await refer(pool, "cat", "$3", '{"hashes": {"sha256": "def"}}')
    await refer(pool, "cat", "$4", None)
    await refer(pool, "cat", "$5", '{"hashes": []}')
    (job,) = await claim(pool)
    assert len(job.hashes) == 3
    assert set(job.hashes) == {"abc", "def", None}


async def test_a_crowd_of_claims_drowns_no_true_one(pool: Pool) -> None:
    """Where there are more events than are looked at, none of them is held against the media."""
    await add(pool, "cat", "dog")
    for number in range(100):
        await refer(pool, "cat", f"$cat{number}", '{"hashes": {"sha256": "wrong"}}')
    for number in range(99):
        await refer(pool, "dog", f"$dog{number}", '{"hashes": {"sha256": "wrong"}}')
    cat, dog = sorted(await claim(pool, 2))
    assert cat.hashes == ()
    assert dog.hashes == ("wrong",)


async def test_a_second_media_with_the_same_bytes(pool: Pool) -> None:
    """The blob is recorded once, and the second completion says that it was there."""
    await add(pool, "cat", "copy")
    cat, copy = await claim(pool, 2)
    async with pool.acquire() as conn:
        assert await finish(conn, cat) == Completed(held=True, new_blob=True)
        assert await queue.is_known(conn, BLOB.sha256)
        assert await finish(conn, copy) == Completed(held=True, new_blob=False)
        assert await conn.fetchval("SELECT count(*) FROM media WHERE state = 'ready'") == 2
        assert await conn.fetchval("SELECT data FROM blob_data") == DATA


async def test_a_known_blob_that_vanished_is_refused(pool: Pool) -> None:
    """A blob deleted after it was seen makes the completion fail as a whole."""
    await add(pool, "cat")
    (job,) = await claim(pool)
    async with pool.acquire() as conn:
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await queue.complete(conn, job, BLOB, SAID, None, known=True)
    assert (await row(pool, "cat"))["state"] == "pending"


async def test_counts_leave_out_what_is_ready(pool: Pool) -> None:
    """Whatever waits or did not end well is counted, with the longest wait."""
    await add(pool, "a", "b", due=timedelta(seconds=-90))
    await add(pool, "c", state="failed")
    await add(pool, "d")
    (job,) = await claim(pool)
    async with pool.acquire() as conn:
        await finish(conn, job)
        found = {record["state"]: record for record in await queue.counts(conn)}
    assert {state: record["media"] for state, record in found.items()} == {
        "pending": 2,
        "failed": 1,
    }
    assert 89 < found["pending"]["overdue"] < 150


OUTCOMES = ("complete", "fail", "postpone", "release", "die", "late")


async def work(pool: Pool, seed: int, settled: Counter[Mxc]) -> None:
    """A worker of no reliability: what it says late or twice must not count."""
    chance = random.Random(seed)  # noqa: S311  # no secret
    while True:
        async with pool.acquire() as conn:
            jobs = await queue.claim(
                conn, chance.randint(1, 4), OVER, oldest_first=chance.random() < 0.25
            )
            for job in jobs:
                await asyncio.sleep(0)
                outcome = chance.choice(OUTCOMES)
                if outcome == "complete" or (outcome == "late" and chance.random() < 0.5):
                    done = (await finish(conn, job)).held
                    settled.update([job.mxc] if done else [])
                elif outcome == "fail":
                    done = await queue.settle(conn, job, State.FAILED, "no luck")
                    settled.update([job.mxc] if done else [])
                elif outcome == "postpone":
                    await queue.postpone(conn, job, OVER, "later")
                elif outcome == "release":
                    await queue.release(conn, [job])
            left = await conn.fetchval("SELECT count(*) FROM media WHERE state = 'pending'")
        if not left:
            return


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
async def test_every_media_settles_exactly_once(pool: Pool, seed: int) -> None:
    """Whatever workers do at once, with leases that run out on the spot, one of them ends each."""
    await pool.execute("TRUNCATE media, blob, blob_data CASCADE")
    names = [f"m{number}" for number in range(20)]
    await add(pool, *names)
    settled: Counter[Mxc] = Counter()
    async with asyncio.timeout(60), asyncio.TaskGroup() as workers:
        for number in range(4):
            workers.create_task(work(pool, seed + number, settled))
    assert settled == Counter(mxc(name) for name in names)
    assert await pool.fetchval("SELECT count(*) FROM media WHERE due_at IS NOT NULL") == 0
