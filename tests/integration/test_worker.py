"""The worker with real parts: a homeserver over HTTP, PostgreSQL, an object store."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

from aiohttp import web

from archiver.db.migrate import migrate
from archiver.db.pool import DATABASE_AWAY, Pool, open_pool
from archiver.fetch.archive import Parts
from archiver.fetch.worker import Worker
from archiver.store.base import Body
from archiver.store.filesystem import FilesystemStore
from tests.support.fetching import (
    INLINE_LIMIT,
    add,
    claim,
    parts,
    row,
    someone_waits,
    states,
    until,
)
from tests.support.homeserver import Homeserver, body, error, held, mxc
from tests.support.postgres import PostgresProcess

LONG = timedelta(seconds=60)
LARGE = os.urandom(INLINE_LIMIT + 1)


@asynccontextmanager
async def working(
    ours: Parts,
    *,
    concurrency: int = 4,
    lease: timedelta = timedelta(seconds=30),
    stop_within: timedelta = timedelta(seconds=20),
) -> AsyncIterator[Worker]:
    """A worker that runs until the end of the block, and is then asked to stop."""
    worker = Worker(ours, concurrency=concurrency, lease=lease, stop_within=stop_within)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
        assert not task.done(), "the worker died"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def settle(pool: Pool, worker: Worker, **expected: int) -> None:
    """Waits until the media are in these states; nothing has to wait for its next try."""

    async def settled() -> bool:
        await pool.execute(
            "UPDATE media SET due_at = now() WHERE reason IS NOT NULL AND state = 'pending' "
            "AND due_at > now() AND unfinished = 0"
        )
        worker.wake()
        return await states(pool) == expected

    await until(settled, f"{expected}")


def named(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


async def test_everything_due_is_archived(ours: Parts, homeserver: Homeserver) -> None:
    """Small and large media, new bytes and known ones, all end well."""
    for number, name in enumerate(named("m", 40)):
        homeserver.give(mxc(name), bytes([number % 30]) * (number * 500))
    await add(ours.pool, *named("m", 40))
    async with working(ours) as worker:
        await settle(ours.pool, worker, ready=40)
    assert all(homeserver.asked(mxc(name)) == 1 for name in named("m", 40))


async def test_what_comes_later_is_archived_when_told(ours: Parts, homeserver: Homeserver) -> None:
    """An idle worker begins when it is woken."""
    homeserver.give_everything(body(b"bytes"))
    async with working(ours) as worker:
        for name in named("m", 5):
            await add(ours.pool, name)
            worker.wake()
            await until_ready(ours.pool, name)


async def until_ready(pool: Pool, name: str) -> None:
    async def ready() -> bool:
        return bool((await row(pool, name))["state"] == "ready")

    await until(ready, f"{name} is ready")


async def test_what_cannot_be_had_is_failed_with_its_reason(
    pool: Pool, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Final refusals and our own limit end a media, each with a sentence."""
    homeserver.give(mxc("large"), error(502, "M_TOO_LARGE"))
    homeserver.give(mxc("over"), body(bytes(500)))
    await add(pool, "large", "over")
    async with (
        parts(pool, tmp_path, homeserver.url, max_size=499) as ours,
        working(ours) as worker,
    ):
        await settle(pool, worker, failed=1, excluded=1)
    assert "M_TOO_LARGE" in (await row(pool, "large"))["reason"]
    assert (await row(pool, "over"))["reason"].startswith("capture.max_size")


async def test_a_404_is_not_the_last_word(ours: Parts, homeserver: Homeserver) -> None:
    """A media that was away for a moment is archived when it is back."""
    homeserver.give(mxc("cat"), error(404, "M_NOT_FOUND"), b"back")
    await add(ours.pool, "cat")
    async with working(ours) as worker:

        async def waits() -> bool:
            return "M_NOT_FOUND" in (await row(ours.pool, "cat"))["reason"]

        await until(waits, "a 404")
        media = await row(ours.pool, "cat")
        assert (media["state"], media["unfinished"]) == ("pending", 0)
        assert 2 < media["due_in"] <= 7
        await ours.pool.execute("UPDATE media SET due_at = now()")
        worker.wake()
        await until_ready(ours.pool, "cat")


async def test_a_media_that_waited_for_years_gets_its_tries(
    ours: Parts, homeserver: Homeserver
) -> None:
    """The first 404 of an old backlog's media fails nothing."""
    await add(ours.pool, "cat")
    await ours.pool.execute("UPDATE media SET created_at = now() - interval '2 years'")
    async with working(ours):
        await until(lambda: reason_is(ours.pool, "cat", "M_NOT_FOUND"), "a 404")
    assert await states(ours.pool) == {"pending": 1}


async def reason_is(pool: Pool, name: str, part: str) -> bool:
    return part in ((await row(pool, name))["reason"] or "")


async def test_one_forbidden_media_holds_up_no_other(ours: Parts, homeserver: Homeserver) -> None:
    """Synapse's 403 for servers it does not federate with is not taken for an outage."""
    homeserver.give_everything(body(b"bytes"))
    for name in named("denied", 30):
        homeserver.give(mxc(name), error(403, "M_FORBIDDEN"))
    await add(ours.pool, *named("good", 10), due=timedelta(seconds=-60))
    await add(ours.pool, *named("denied", 30))
    async with working(ours, concurrency=1):
        await until_ready(ours.pool, "good9")
        await until(lambda: reason_is(ours.pool, "denied29", "M_FORBIDDEN"), "a reason")
    assert (await row(ours.pool, "denied0"))["attempts"] == 1


async def test_stopping_finishes_and_gives_back(ours: Parts, homeserver: Homeserver) -> None:
    """What is under way is archived; what was only claimed is due at once for somebody else."""
    go_on = asyncio.Event()
    homeserver.give_everything(held(go_on, b"slow"))
    homeserver.give(mxc("quick"), b"quick")
    await add(ours.pool, "quick")
    async with working(ours, concurrency=2) as worker:
        await until_ready(ours.pool, "quick")  # after that it claims ahead
        await add(ours.pool, *named("slow", 10))
        worker.wake()
        await until(lambda: claimed(ours.pool, 4), "two under way, two ahead")
        asyncio.get_running_loop().call_later(0.2, go_on.set)
    rows = await ours.pool.fetch("SELECT state, unfinished, due_at <= now() AS due FROM media")
    assert sorted(map(tuple, rows)) == [("pending", 0, True)] * 8 + [("ready", 0, None)] * 3


async def claimed(pool: Pool, count: int) -> bool:
    statement = "SELECT count(*) FROM media WHERE state = 'pending' AND unfinished > 0"
    return bool(await pool.fetchval(statement) >= count)


async def test_stopping_does_not_wait_for_ever(ours: Parts, homeserver: Homeserver) -> None:
    """A download that outlasts the deadline is dropped, and given back."""
    left = asyncio.Event()
    homeserver.give_everything(held(asyncio.Event(), b"never", left))
    await add(ours.pool, "cat", "dog")
    async with asyncio.timeout(20):
        async with working(ours, stop_within=timedelta(seconds=0.1)):
            await until(lambda: claimed(ours.pool, 2), "both under way")
        rows = await ours.pool.fetch("SELECT state, unfinished, due_at <= now() AS due FROM media")
        assert list(map(tuple, rows)) == [("pending", 0, True)] * 2
        await left.wait()


async def test_a_lost_lease_ends_the_job(ours: Parts, homeserver: Homeserver) -> None:
    """Who finds that another worker has the media now stops downloading it."""
    left = asyncio.Event()
    homeserver.give_everything(held(asyncio.Event(), b"never", left))
    await add(ours.pool, "cat")
    async with working(ours, lease=timedelta(seconds=0.3)):
        await until(lambda: claimed(ours.pool, 1), "the claim")
        await ours.pool.execute("UPDATE media SET attempts = 99, due_at = now() + interval '1 h'")
        async with asyncio.timeout(20):
            await left.wait()
    media = await row(ours.pool, "cat")
    assert (media["state"], media["attempts"]) == ("pending", 99)
    assert media["due_in"] > 3000


async def test_a_long_download_keeps_its_lease(ours: Parts, homeserver: Homeserver) -> None:
    """While a worker lives, its media is nobody else's, though it takes longer than a lease."""
    go_on = asyncio.Event()
    homeserver.give_everything(held(go_on, b"slow"))
    await add(ours.pool, "cat")
    async with working(ours, lease=timedelta(seconds=0.6)) as worker:
        await until(lambda: claimed(ours.pool, 1), "the claim")
        for _ in range(30):
            assert await claim(ours.pool) == []
            await asyncio.sleep(0.05)
        go_on.set()
        await settle(ours.pool, worker, ready=1)
    assert homeserver.asked(mxc("cat")) == 1


async def test_an_outage_of_the_homeserver_fails_nothing(
    ours: Parts, homeserver: Homeserver
) -> None:
    """While the homeserver is away its media wait, however old, and then they are archived."""
    homeserver.give_everything(body(b"bytes"))
    await homeserver.stop()
    await add(ours.pool, *named("m", 20))
    await ours.pool.execute("UPDATE media SET created_at = now() - interval '1 year'")
    async with working(ours) as worker:
        await until(lambda: some_reason(ours.pool, "does not answer"), "the outage is noticed")
        assert await states(ours.pool) == {"pending": 20}
        await homeserver.start()
        await settle(ours.pool, worker, ready=20)


async def some_reason(pool: Pool, part: str) -> bool:
    statement = "SELECT count(*) FROM media WHERE reason LIKE '%' || $1 || '%'"
    return bool(await pool.fetchval(statement, part))


async def test_an_outage_pauses_the_worker(ours: Parts, homeserver: Homeserver) -> None:
    """A homeserver that is away is not asked for every media that waits, one after the other."""
    homeserver.give_everything(error(401, "M_UNKNOWN_TOKEN"))
    await add(ours.pool, *named("m", 500))
    async with working(ours) as worker:
        await until(lambda: some_reason(ours.pool, "registration.yaml"), "the outage is noticed")
        for _ in range(50):
            worker.wake()
            await asyncio.sleep(0.005)
    assert len(homeserver.seen) <= 20


async def test_a_restart_of_the_database(
    own_postgres: PostgresProcess, homeserver: Homeserver, tmp_path: Path
) -> None:
    """The database goes away and comes back while media are under way; every one is archived."""
    before, during, after = (asyncio.Event() for _ in range(3))
    for number, name in enumerate(named("m", 60)):
        homeserver.give(mxc(name), held((before, during, after)[number % 3], name.encode()))
    async with open_pool(own_postgres.url, 20) as pool:
        async with pool.acquire() as conn:
            await migrate(conn)
        await add(pool, *named("m", 60))
        async with (
            parts(pool, tmp_path, homeserver.url) as ours,
            working(ours, concurrency=60, lease=timedelta(seconds=1)) as worker,
        ):
            await until(lambda: is_enough(homeserver, 60), "all under way")
            before.set()
            await until_ready(pool, "m0")
            await asyncio.to_thread(own_postgres.stop)
            during.set()
            await asyncio.to_thread(own_postgres.start)
            after.set()

            async def all_ready() -> bool:
                worker.wake()
                with suppress(*DATABASE_AWAY):
                    return await states(pool) == {"ready": 60}
                return False

            await until(all_ready, "everything after the restart", 60)


async def test_live_media_passes_by_the_backlog(ours: Parts, homeserver: Homeserver) -> None:
    """What is posted now is fetched next, though thousands of old ones wait."""

    async def slow(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.01)
        return web.Response(body=b"bytes")

    homeserver.give_everything(slow)
    await add(ours.pool, *named("old", 2000), due=timedelta(days=-30))
    async with working(ours, stop_within=timedelta(seconds=5)) as worker:
        await until(lambda: is_enough(homeserver, 30), "the backlog is being worked on")
        await add(ours.pool, "live")
        worker.wake()
        before = len(homeserver.seen)
        await until_ready(ours.pool, "live")
    paths = [seen.path.rpartition("/")[2] for seen in homeserver.seen]
    assert paths.index("live") - before < 30
    assert (await states(ours.pool))["pending"] > 1500


async def is_enough(homeserver: Homeserver, count: int) -> bool:
    return len(homeserver.seen) >= count


async def test_the_backlog_is_not_starved(ours: Parts, homeserver: Homeserver) -> None:
    """While there is always something younger, the oldest have their turn."""
    homeserver.give_everything(body(b"bytes"))
    await add(ours.pool, *named("young", 400), due=timedelta(seconds=-10))
    await add(ours.pool, "oldest", due=timedelta(days=-30))
    async with working(ours, concurrency=2) as worker:
        await settle(ours.pool, worker, ready=401)
    paths = [seen.path.rpartition("/")[2] for seen in homeserver.seen]
    assert paths.index("oldest") < 100


class FragileStore(FilesystemStore):
    """A store with a mistake in it."""

    async def put(self, body: Body) -> None:
        if body.size == len(LARGE):
            raise RuntimeError("nobody foresaw this")
        await super().put(body)


async def test_a_surprise_in_one_job_stays_there(
    pool: Pool, homeserver: Homeserver, tmp_path: Path
) -> None:
    """An exception that nobody foresaw costs one media its turn, and no other anything."""
    homeserver.give_everything(body(b"bytes"))
    homeserver.give(mxc("odd"), LARGE)
    homeserver.give(mxc("larger"), LARGE + b"x")
    await add(pool, "odd", "larger", *named("m", 20))
    store = FragileStore(tmp_path / "objects")
    async with (
        parts(pool, tmp_path, homeserver.url, objects=store) as ours,
        working(ours) as worker,
    ):
        await settle(pool, worker, ready=21, pending=1)
        await until(lambda: claimed(pool, 1), "the odd one is still leased")
    media = await row(pool, "odd")
    assert media["state"] == "pending"


async def test_a_blob_deleted_meanwhile_is_fetched_again(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Where the bytes were deleted between our look and our commit, the media starts over."""
    go_on = asyncio.Event()
    homeserver.give(mxc("cat"), LARGE)
    homeserver.give(mxc("copy"), held(go_on, LARGE))
    await add(ours.pool, "cat")
    async with working(ours, lease=LONG) as worker:
        await settle(ours.pool, worker, ready=1)
        await add(ours.pool, "copy")
        worker.wake()
        await until(lambda: claimed(ours.pool, 1), "the copy is under way")
        async with ours.pool.acquire() as deleter, deleter.transaction():
            await deleter.execute("SELECT FROM media WHERE media_id = 'copy' FOR UPDATE")
            go_on.set()
            await until(lambda: someone_waits(ours.pool), "its completion waits for the row")
            await deleter.execute("DELETE FROM media WHERE media_id = 'cat'")
            digest = await deleter.fetchval("DELETE FROM blob RETURNING sha256")
            await FilesystemStore(tmp_path / "objects").delete(digest)
        await settle(ours.pool, worker, ready=1)
    assert homeserver.asked(mxc("copy")) == 2
    assert await FilesystemStore(tmp_path / "objects").size(digest) == len(LARGE)


async def test_an_outage_of_the_store_lets_small_media_pass(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Large media wait with the reason while the object store is away; small ones go on."""
    homeserver.give_everything(body(LARGE))
    for name in named("small", 20):
        homeserver.give(mxc(name), name.encode())
    away = (tmp_path / "objects").rename(tmp_path / "away")
    await add(ours.pool, *named("large", 10), *named("small", 20))
    async with working(ours) as worker:
        await until_ready(ours.pool, "small0")
        await settle(ours.pool, worker, ready=20, pending=10)
        await until(lambda: reason_is(ours.pool, "large9", "storage.filesystem.path"), "reason")
        assert await ours.pool.fetchval("SELECT count(*) FROM blob WHERE place = 'object'") == 0
        away.rename(tmp_path / "objects")
        await settle(ours.pool, worker, ready=30)


WORKER = """
import asyncio, sys
from datetime import timedelta
from pathlib import Path
from archiver.db.pool import open_pool
from archiver.fetch.worker import Worker
from tests.support.fetching import parts

async def main(dsn, url, folder):
    async with open_pool(dsn, 4) as pool, parts(pool, Path(folder), url) as ours:
        lease = timedelta(seconds=2)
        await Worker(ours, concurrency=3, lease=lease, stop_within=lease).run()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_workers_media_pass_to_another(
    database_url: str, ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """After a SIGKILL the leases run out, and another worker archives what was under way."""
    homeserver.give_everything(held(asyncio.Event(), b"never"))
    await add(ours.pool, *named("m", 3))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, database_url, homeserver.url, str(tmp_path),
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        await until(lambda: is_enough(homeserver, 3), "all under way", 60)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    homeserver.give_everything(body(b"bytes"))
    async with working(ours):

        async def all_ready() -> bool:
            return await states(ours.pool) == {"ready": 3}

        await until(all_ready, "the other worker took over", 60)
    rows = await ours.pool.fetch("SELECT attempts FROM media")
    assert [record["attempts"] for record in rows] == [2, 2, 2]
