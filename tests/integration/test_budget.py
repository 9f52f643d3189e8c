"""Old media of other servers wait for a budget of bytes, which all processes share."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import orjson
import pytest

from archiver.capture.batch import Batch
from archiver.capture.policy import CapturePolicy
from archiver.capture.record import PACED, record
from archiver.capture.rows import keep
from archiver.catalogue import budget, queue
from archiver.catalogue.budget import BURST, RELEASE, RELEASE_ALL, Released
from archiver.db.listen import Listener
from archiver.fetch.archive import Parts
from archiver.fetch.outcome import LIMITED_TRIES
from archiver.fetch.pacer import Pacer
from archiver.fetch.worker import Worker
from archiver.model import Mxc, Source
from tests.integration.test_query_plans import assert_lean, plan
from tests.support.fetching import claim, someone_waits, until
from tests.support.homeserver import SERVER_NAME, Homeserver, body, error

if TYPE_CHECKING:
    import asyncpg

    from archiver.db.pool import Pool

KIB, MIB = 1024, 1024 * 1024
RATE = KIB  # so little that the seconds which a test takes buy nothing
POLICY = CapturePolicy(SERVER_NAME)
FULL = timedelta(seconds=BURST / RATE)  # so far ahead may be spent
LEASE = timedelta(seconds=30)
YEAR_2024 = 1_704_067_200_000
FILL = """
INSERT INTO event (event_id, content, source)
SELECT '$' || n, '{}', 'backfill' FROM generate_series(1, 20000) AS n;
INSERT INTO media (server_name, media_id, state, due_at, paced_at)
SELECT 'far.example', n::text, 'pending', 'infinity',
       CASE WHEN n % 2 = 0 THEN now() - n * interval '1 s' END
FROM generate_series(1, 20000) AS n;
INSERT INTO reference (event_id, server_name, media_id, role)
SELECT '$' || n, 'far.example', n::text, 'content' FROM generate_series(1, 20000) AS n;
"""


@pytest.fixture
async def ours(ours: Parts) -> Parts:
    return replace(ours, remote_rate=RATE)


def far(media_id: str) -> Mxc:
    """A media of another server."""
    return Mxc("far.example", media_id)


async def old(
    pool: Pool,
    *mxcs: Mxc,
    sizes: list[int | None] | None = None,
    source: Source = Source.BACKFILL,
) -> None:
    """Events of 2024 that name these media, a minute after each other, as history has them."""
    events = [
        {
            "event_id": f"${source}-{mxc.media_id}",
            "room_id": "!room",
            "sender": "@alice:far.example",
            "type": "m.room.message",
            "origin_server_ts": YEAR_2024 + 60_000 * number,
            "content": {"msgtype": "m.file", "body": "f", "url": str(mxc), "info": {"size": size}},
        }
        for number, (mxc, size) in enumerate(zip(mxcs, sizes or [None] * len(mxcs), strict=True))
    ]
    batch = Batch(orjson.dumps({"events": events}))
    async with pool.acquire() as conn:
        await record(conn, keep(batch, POLICY), source, POLICY)


async def release(pool: Pool, rate: int | None = RATE, limit: int = 100) -> Released:
    async with pool.acquire() as conn:
        await budget.open_budget(conn)
        return await budget.release(conn, rate, limit)


async def spend(pool: Pool, ahead: timedelta) -> None:
    """The budget is spent until `ahead` of now."""
    await pool.execute(
        "INSERT INTO budget VALUES ('remote', now() + $1) "
        "ON CONFLICT (name) DO UPDATE SET spent_until = now() + $1",
        ahead,
    )


async def ahead(pool: Pool) -> float:
    """How many seconds ahead of now the budget is spent."""
    found = await pool.fetchval(
        "SELECT extract(epoch FROM spent_until - now())::float8 FROM budget WHERE name = 'remote'"
    )
    return float(found)


async def media(pool: Pool, mxc: Mxc) -> asyncpg.Record:
    found = await pool.fetchrow(
        "SELECT *, due_at = 'infinity' AS never, due_at <= now() AS due FROM media "
        "WHERE (server_name, media_id) = ($1, $2)",
        *mxc,
    )
    assert found is not None
    return found


async def charges(pool: Pool) -> dict[str, int]:
    rows = await pool.fetch("SELECT media_id, charged FROM media WHERE charged IS NOT NULL")
    return {row["media_id"]: row["charged"] for row in rows}


def close(found: float, expected: float) -> bool:
    """Equal but for the seconds that the test itself takes."""
    return abs(found - expected) < 60


async def test_old_media_of_others_waits_and_our_own_does_not(pool: Pool) -> None:
    """Backfill queues local media at once; another server's waits, with a reason, undue."""
    own = Mxc(SERVER_NAME, "own")
    await old(pool, own, far("a"))
    assert [job.mxc for job in await claim(pool, 10)] == [own]
    waits = await media(pool, far("a"))
    assert (waits["state"], waits["never"], waits["reason"]) == ("pending", True, PACED)
    async with pool.acquire() as conn:
        [counted] = await queue.counts(conn)
    assert (counted["media"], counted["overdue"] <= 0) == (2, True)


async def test_the_rate_holds_for_two_processes(pool: Pool) -> None:
    """However many release at once: first the burst, and from then on the rate, all of it and
    never more than one media over; what was charged is what was spent."""
    chance = random.Random(4)  # noqa: S311  # no secret
    sizes: list[int | None] = [chance.randrange(100 * KIB, 2 * MIB) for _ in range(300)]
    await old(pool, *(far(f"m{n}") for n in range(300)), sizes=sizes)

    async def pace() -> int:
        count = 0
        while (released := await release(pool, limit=7)).media or not released.wait:
            count += released.media
        return count

    given = 0
    for hours in range(5):
        given += sum(await asyncio.gather(pace(), pace()))
        charged = await charges(pool)
        assert len(charged) == given
        total, allowed = sum(charged.values()), BURST + hours * 3600 * RATE
        assert allowed < total < allowed + 2 * MIB + 60 * RATE
        assert close(await ahead(pool), total / RATE - hours * 3600)
        await pool.execute("UPDATE budget SET spent_until = spent_until - interval '1 hour'")
    assert 0 < given < 300


async def test_two_releases_at_once_spend_what_is_there_once(pool: Pool) -> None:
    """The second waits for the first, and then finds spent what the first has spent."""
    await old(pool, *map(far, "ab"))
    await spend(pool, FULL - timedelta(seconds=60))
    async with pool.acquire() as first, pool.acquire() as second:
        transaction = first.transaction()
        await transaction.start()
        assert (await budget.release(first, RATE)).media == 1
        waiting = asyncio.create_task(budget.release(second, RATE))
        await until(lambda: someone_waits(pool), "the second release waits")
        await transaction.commit()
        assert (await waiting).media == 0
    assert await charges(pool) == {"b": MIB}
    assert close(await ahead(pool), FULL.total_seconds() - 60 + MIB / RATE)


async def test_what_is_released_is_due_at_its_own_time(pool: Pool) -> None:
    """A released media stands in the queue where its event belongs, without a reason."""
    await old(pool, far("a"))
    assert (await release(pool)).media == 1
    found = await media(pool, far("a"))
    assert (found["due"], found["reason"], found["paced_at"]) == (True, None, None)
    assert found["due_at"].timestamp() == YEAR_2024 / 1000
    [job] = await claim(pool, 10)
    assert (job.mxc, job.charged) == (far("a"), MIB)


async def test_the_newest_goes_first(pool: Pool) -> None:
    """Of a long history, what is nearest to today is there first."""
    await old(pool, *map(far, "abc"))
    for expected in "cba":
        await spend(pool, FULL - timedelta(seconds=60))
        assert (await release(pool)).media == 1
        assert (await media(pool, far(expected)))["due"]


async def test_nothing_is_released_while_too_much_is_spent(pool: Pool) -> None:
    """The answer is how long it takes until the next one."""
    await old(pool, far("a"))
    await spend(pool, FULL + timedelta(hours=1))
    released = await release(pool)
    assert released.media == 0
    assert close(released.wait, 3600)
    assert (await media(pool, far("a")))["never"]


@pytest.mark.parametrize(
    ("declared", "charged"),
    [(None, MIB), (1, 64 * KIB), (3 * MIB, 3 * MIB), (2**60, 1024 * MIB)],
)
async def test_a_declared_size_is_believed_within_reason(
    pool: Pool, declared: int | None, charged: int
) -> None:
    """A sender's word can neither make a media free nor stop all others for years."""
    await old(pool, far("a"), sizes=[declared])
    await release(pool)
    assert await charges(pool) == {"a": charged}


async def test_an_idle_time_saves_up_no_more_than_the_burst(pool: Pool) -> None:
    """What was spent long ago counts from now on."""
    await old(pool, far("a"))
    await spend(pool, -timedelta(days=30))
    await release(pool)
    assert close(await ahead(pool), MIB / RATE)


@pytest.mark.parametrize("size", [5_000, 5 * MIB], ids=["less", "more"])
async def test_what_came_is_charged_instead_of_what_was_thought(
    ours: Parts, homeserver: Homeserver, size: int
) -> None:
    """When a media is ready, the budget has paid for its bytes, fewer or more than declared."""
    homeserver.give(far("a"), bytes(size))
    await old(ours.pool, far("a"), sizes=[2 * MIB])
    await work(ours, far("a"), "ready")
    assert close(await ahead(ours.pool), 3600 + size / RATE)
    assert await charges(ours.pool) == {}


async def test_what_failed_for_good_is_paid_back(ours: Parts, homeserver: Homeserver) -> None:
    """No bytes, no charge."""
    homeserver.give(far("a"), error(502, "M_TOO_LARGE"))
    await old(ours.pool, far("a"), sizes=[8 * MIB])
    await work(ours, far("a"), "failed")
    assert close(await ahead(ours.pool), 3600)
    assert await charges(ours.pool) == {}


async def test_what_is_tried_again_pays_when_it_comes(ours: Parts, homeserver: Homeserver) -> None:
    """A media that is away for a moment stops no other; its bytes are charged once they come."""
    homeserver.give(far("a"), error(404, "M_NOT_FOUND"), bytes(4 * MIB))
    await old(ours.pool, far("a"), sizes=[8 * MIB])
    await work(ours, far("a"), "pending")
    assert close(await ahead(ours.pool), 3600)
    assert await charges(ours.pool) == {"a": 0}
    await ours.pool.execute("UPDATE media SET due_at = now()")
    await work(ours, far("a"), "ready")
    assert close(await ahead(ours.pool), 3600 + 4 * KIB)


async def test_nothing_is_paid_back_into_the_past(pool: Pool) -> None:
    """A correction brings the budget to now at best."""
    await old(pool, far("a"), sizes=[1024 * MIB])
    await release(pool)
    [job] = await claim(pool)
    await spend(pool, timedelta(hours=1))
    async with pool.acquire() as conn:
        await budget.correct(conn, job, RATE, 0)
    assert close(await ahead(pool), 0)


async def work(ours: Parts, mxc: Mxc, state: str) -> None:
    """A worker tries a media once, with the budget an hour ahead before it was released."""
    await spend(ours.pool, timedelta(hours=1))
    await release(ours.pool)
    assert (await tried_once(ours, mxc))["state"] == state


async def tried_once(ours: Parts, mxc: Mxc) -> asyncpg.Record:
    """What became of a media that is due, after a worker tried it."""
    tries = (await media(ours.pool, mxc))["attempts"]
    worker = Worker(ours, concurrency=2, lease=LEASE, stop_within=LEASE)
    running = asyncio.create_task(worker.run())

    async def tried() -> bool:
        found = await media(ours.pool, mxc)
        return bool(found["attempts"] > tries and found["unfinished"] == 0)

    await until(tried, f"{mxc} is tried")
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return await media(ours.pool, mxc)


async def test_what_is_posted_today_waits_no_more(pool: Pool) -> None:
    """A push of a media that waits for the budget makes it due, without a charge."""
    await old(pool, far("a"), far("b"))
    await spend(pool, FULL * 2)
    await old(pool, far("a"), source=Source.PUSH)
    found = await media(pool, far("a"))
    assert (found["due"], found["reason"], found["paced_at"]) == (True, None, None)
    assert [(job.mxc, job.charged) for job in await claim(pool, 10)] == [(far("a"), None)]
    assert (await media(pool, far("b")))["never"]


async def test_what_was_posted_first_never_waits(pool: Pool) -> None:
    """History that names a media which is queued already leaves it where it is."""
    await old(pool, far("a"), source=Source.PUSH)
    await old(pool, far("a"))
    assert (await media(pool, far("a")))["due"]


async def test_without_a_rate_all_go_at_once(pool: Pool) -> None:
    """`history.remote_rate: null` releases everything, in batches, and charges nothing."""
    await old(pool, *(far(f"m{n}") for n in range(25)))
    counts = [(await release(pool, None, 10)).media for _ in range(4)]
    assert counts == [10, 10, 5, 0]
    assert await charges(pool) == {}
    assert len(await claim(pool, 99)) == 25


async def test_old_media_give_way_at_the_homeservers_own_limit(
    ours: Parts, homeserver: Homeserver
) -> None:
    """A 429 sends an old media back to wait for the budget, which allows nothing meanwhile."""
    limited = error(429, "M_LIMIT_EXCEEDED", retry_after_ms=3_600_000)
    homeserver.give(far("a"), limited)
    await old(ours.pool, far("b"), far("a"))
    await spend(ours.pool, FULL - timedelta(seconds=60))
    await release(ours.pool)
    found = await tried_once(ours, far("a"))
    assert (found["never"], found["charged"]) == (True, None)
    assert "429" in found["reason"]
    assert found["paced_at"].timestamp() == YEAR_2024 / 1000 + 60
    released = await release(ours.pool)
    assert (released.media, released.wait > 3600) == (0, True)


async def test_old_media_give_way_to_what_is_refused_today(
    ours: Parts, homeserver: Homeserver
) -> None:
    """A 429 to what somebody just posted stops the old ones until it has tried again."""
    homeserver.give(far("today"), error(429, "M_LIMIT_EXCEEDED", retry_after_ms=3_600_000))
    await old(ours.pool, far("a"))
    await old(ours.pool, far("today"), source=Source.PUSH)
    await spend(ours.pool, FULL + timedelta(seconds=60))
    assert not (await tried_once(ours, far("today")))["never"]
    wait = (await release(ours.pool)).wait
    assert await ours.pool.fetchval(
        "SELECT due_at < now() + make_interval(secs => $1) FROM media WHERE media_id = 'today'",
        wait,
    )


async def test_what_is_posted_on_its_way_is_old_no_more(
    ours: Parts, homeserver: Homeserver
) -> None:
    """A released media that is posted anew before a 429 is tried again soon, as live ones are."""
    homeserver.give(far("a"), error(429, "M_LIMIT_EXCEEDED"))
    await old(ours.pool, far("a"))
    await release(ours.pool)
    await old(ours.pool, far("a"), source=Source.PUSH)
    assert not (await tried_once(ours, far("a")))["never"]


async def test_history_does_not_wait_for_ever(ours: Parts, homeserver: Homeserver) -> None:
    """A media that the homeserver's limit never lets pass stops the others only for a while."""
    homeserver.give(far("a"), error(429, "M_LIMIT_EXCEEDED", retry_after_ms=3_600_000))
    await old(ours.pool, far("a"))
    await release(ours.pool)
    await ours.pool.execute("UPDATE media SET attempts = $1", LIMITED_TRIES)
    assert not (await tried_once(ours, far("a")))["never"]
    assert close(await ahead(ours.pool), 0)


@pytest.mark.parametrize("rate", [RATE, None], ids=["paced", "unlimited"])
async def test_history_is_archived_in_the_end(
    ours: Parts, homeserver: Homeserver, database_url: str, rate: int | None
) -> None:
    """Pacer and worker together: what was paid back lets the next ones pass at once."""
    homeserver.give_everything(body(b"small"))
    ours = replace(ours, remote_rate=rate)
    listener = Listener(database_url)
    worker = Worker(ours, concurrency=4, lease=LEASE, stop_within=LEASE)
    pacer = Pacer(ours.pool, rate)
    listener.on("media_pending", worker.wake)
    listener.on("media_paced", pacer.wake)
    await old(ours.pool, *(far(f"m{n}") for n in range(200)))
    tasks = [asyncio.create_task(part.run()) for part in (worker, pacer, listener)]

    async def archived() -> bool:
        ready = await ours.pool.fetchval("SELECT count(*) FROM media WHERE state = 'ready'")
        return bool(ready == 200)

    await until(archived, "200 media are ready")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "not analyzed"])
async def test_what_waits_is_found_by_index(pool: Pool, analyzed: bool) -> None:
    """A release reads the newest of what waits, however much there is, and sorts nothing of it."""
    await pool.execute(FILL)
    if analyzed:
        await pool.execute("ANALYZE")
    for statement, arguments in ((RELEASE, (RATE, FULL, 8)), (RELEASE_ALL, (8,))):
        found = await plan(pool, statement, *arguments)
        assert_lean([node for node in found if node.get("Relation Name") != "budget"])
        [scan] = [node for node in found if node.get("Index Name") == "media_paced"]
        assert scan["Scan Direction"] == "Backward"
