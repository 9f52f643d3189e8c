"""Comparing rooms with history: a homeserver that plays them, and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import aiohttp
import asyncpg
import pytest

from archiver import metrics
from archiver.capture.batch import Batch
from archiver.capture.policy import ROOM_EXCLUDED, CapturePolicy
from archiver.capture.record import record
from archiver.capture.rows import keep
from archiver.catalogue import moments, rooms
from archiver.catalogue.moments import Moment
from archiver.db.pool import Pool
from archiver.errors import HomeserverUnavailable
from archiver.history import visit
from archiver.history.pace import Pace
from archiver.history.reconcile import Reconciler
from archiver.history.visit import LEASE, NEW_AT_ONCE, RECENT
from archiver.history.watch import Watch
from archiver.matrix.history import History
from archiver.model import Source
from tests.support.fetching import until
from tests.support.homeserver import BOT, SERVER_NAME, TOKEN
from tests.support.rooms import Asked, Event, Rooms, forever

ROOM = "!room"
EVERY = timedelta(minutes=10)
OLD = 1_500_000_000_000
POLICY = CapturePolicy(SERVER_NAME)
AT_ONCE = partial(asyncio.sleep, 0)


def now_ms() -> int:
    return int(time.time() * 1000)


def image(event_id: str, sent: int | None = None, server: str = SERVER_NAME) -> Event:
    content = {"msgtype": "m.image", "body": "cat", "url": f"mxc://{server}/{event_id[1:]}"}
    return {
        "event_id": event_id,
        "type": "m.room.message",
        "sender": "@a:b",
        "origin_server_ts": now_ms() if sent is None else sent,
        "content": content,
    }


def images(prefix: str, count: int, sent: int | None = None) -> list[Event]:
    return [image(f"${prefix}{number}", sent) for number in range(count)]


def minutes_ago(minutes: int) -> int:
    return now_ms() - minutes * 60_000


def text(event_id: str) -> Event:
    return {**image(event_id), "content": {"msgtype": "m.text", "body": "hello"}}


def state(event_id: str, kind: str, content: dict[str, Any], sent: int = OLD) -> Event:
    return {
        "event_id": event_id,
        "type": kind,
        "state_key": "",
        "sender": "@a:b",
        "origin_server_ts": sent,
        "content": content,
    }


@pytest.fixture
async def homeserver() -> AsyncIterator[Rooms]:
    async with Rooms() as server:
        yield server


@pytest.fixture
def reconciler(pool: Pool, homeserver: Rooms, http: aiohttp.ClientSession) -> Reconciler:
    return another(pool, homeserver, http)


def another(
    pool: Pool,
    homeserver: Rooms,
    http: aiohttp.ClientSession,
    *,
    policy: CapturePolicy = POLICY,
    grace: Callable[[], Awaitable[object]] = AT_ONCE,
) -> Reconciler:
    """One that gives the homeserver no rest, as every process of an archive has it."""
    history = History(http, homeserver.url, TOKEN, BOT)
    return Reconciler(pool, history, policy, EVERY, grace=grace, rest=0)


@asynccontextmanager
async def running(part: Reconciler | Watch) -> AsyncIterator[None]:
    task = asyncio.create_task(part.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def push(pool: Pool, *events: Event, room_id: str = ROOM) -> None:
    """What the intake does with a push."""
    body = json.dumps({"events": [{"room_id": room_id, **event} for event in events]}).encode()
    async with pool.acquire() as conn:
        await record(conn, keep(Batch(body), POLICY), Source.PUSH, POLICY)
        await rooms.active(conn, [room_id], EVERY)
        await moments.note(conn, Moment.PUSH)


async def made_long_ago(pool: Pool) -> None:
    """The archive is an hour old."""
    await pool.execute("UPDATE schema_migration SET applied_at = now() - interval '1 hour'")


async def room(pool: Pool, room_id: str = ROOM) -> asyncpg.Record:
    row = await pool.fetchrow(
        "SELECT *, extract(epoch FROM due_at - now())::float8 AS due_in, "
        "complete_from = '-infinity' AS whole FROM room WHERE room_id = $1",
        room_id,
    )
    assert row is not None
    return row


async def sources(pool: Pool) -> dict[str, str]:
    return {row[0]: row[1] for row in await pool.fetch("SELECT event_id, source FROM event")}


async def compared(reconciler: Reconciler, pool: Pool) -> None:
    """A doubt, and every room after it."""
    await reconciler.doubt("the test wants it")
    while await reconciler.visit_next():
        pass


async def die_at_page(number: int, homeserver: Rooms, dying: Reconciler) -> None:
    """A doubt, and its first visit ends while the homeserver is asked for so many pages in all."""
    stuck = asyncio.Event()

    async def hang(_asked: Asked) -> None:
        if len(homeserver.asked) == number:
            stuck.set()
            await forever()

    homeserver.before = hang
    await dying.doubt("the test wants it")
    visiting = asyncio.create_task(dying.visit_next())
    async with asyncio.timeout(60):
        await stuck.wait()
    visiting.cancel()
    with suppress(asyncio.CancelledError):
        await visiting
    homeserver.before = None


def gaps() -> float:
    return float(metrics.GAP_EVENTS._value.get())


async def test_the_first_visit_finds_a_position_and_what_is_there(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """What is older than the archive counts as old, what was lost since as lost; names come from
    the state; a room that is read to its beginning is known to be whole."""
    homeserver.add(
        ROOM,
        state("$create", "m.room.create", {}),
        state("$name", "m.room.name", {"name": "The garden"}),
        image("$old", OLD, server="elsewhere.test"),
        image("$lost"),
        text("$text"),
    )
    before = gaps()
    await compared(reconciler, pool)
    found = {"$create": "backfill", "$name": "backfill", "$old": "backfill", "$lost": "reconcile"}
    assert await sources(pool) == found
    assert gaps() - before == 1
    row = await room(pool)
    assert row["position"]
    assert row["whole"]
    assert row["complete_until"]
    assert row["reason"] is None
    assert (len(homeserver.asked), homeserver.states_asked) == (1, 1)
    media = await pool.fetch("SELECT media_id, paced_at IS NOT NULL FROM media")
    assert sorted(map(tuple, media)) == [("lost", False), ("old", True)]


async def test_a_long_room_is_complete_from_what_was_read(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """Of a room with a long past the first visit knows the newest events, and says since when;
    state from before them is kept as well."""
    homeserver.add(ROOM, state("$name", "m.room.name", {"name": "The garden"}))
    homeserver.add(ROOM, *(image(f"${n}", OLD + n * 1000) for n in range(3 * RECENT)))
    await compared(reconciler, pool)
    row = await room(pool)
    assert row["complete_from"].timestamp() * 1000 >= OLD + 2 * RECENT * 1000
    assert row["complete_from"] < row["complete_until"]
    assert len(await sources(pool)) == RECENT + 1


async def test_nothing_missing_costs_one_request_a_room(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """Also where everything was pushed properly since the last visit."""
    names = [f"!{n}" for n in range(10)]
    for name in names:
        homeserver.add(name, image(f"$old-{name[1:]}", OLD))
    await compared(reconciler, pool)
    for name in names[:5]:
        event = image(f"$new-{name[1:]}")
        homeserver.add(name, event)
        await push(pool, event, room_id=name)
    homeserver.asked.clear()
    before = gaps()
    await compared(reconciler, pool)
    assert len(await sources(pool)) == 15
    assert sorted(asked.room_id for asked in homeserver.asked) == names
    assert gaps() == before
    assert homeserver.states_asked == 10
    homeserver.asked.clear()
    await compared(reconciler, pool)
    assert len(homeserver.asked) == 10


async def test_what_was_lost_is_found_over_pages(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """Every lost event is recorded with source reconcile, its media queued, and counted once."""
    homeserver.add(ROOM, image("$old", OLD))
    await compared(reconciler, pool)
    count = 2 * NEW_AT_ONCE + 7
    homeserver.add(ROOM, *images("lost", count))
    before = gaps()
    await compared(reconciler, pool)
    await compared(reconciler, pool)
    found = list((await sources(pool)).values())
    assert (found.count("reconcile"), found.count("backfill")) == (count, 1)
    assert gaps() - before == count
    assert await pool.fetchval("SELECT count(*) FROM media WHERE state = 'pending'") == count + 1
    assert await pool.fetchval("SELECT at FROM moment WHERE name = 'reconcile'")


async def test_what_is_on_its_way_is_no_gap(
    pool: Pool, homeserver: Rooms, http: aiohttp.ClientSession
) -> None:
    """As long as some of what is missing is pushed while we wait, the rest is not taken for lost;
    what does not come is."""
    homeserver.add(ROOM, image("$old", OLD))
    await compared(another(pool, homeserver, http), pool)
    late = images("late", 5)
    homeserver.add(ROOM, *late, image("$lost"))
    before = gaps()
    waits = 0

    async def one_comes() -> None:
        nonlocal waits
        if waits < len(late):
            await push(pool, late[waits])
        waits += 1

    await compared(another(pool, homeserver, http, grace=one_comes), pool)
    assert gaps() - before == 1
    assert waits == len(late) + 1
    found = await sources(pool)
    assert found.pop("$lost") == "reconcile"
    assert found == {"$old": "backfill", **{event["event_id"]: "push" for event in late}}


async def _asked(homeserver: Rooms, times: int) -> bool:
    return len(homeserver.asked) >= times


async def test_a_push_that_comes_after_all_makes_it_a_push(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """In the end `source` says what was really lost."""
    late, lost = image("$late"), image("$lost")
    homeserver.add(ROOM, image("$old", OLD))
    await compared(reconciler, pool)
    homeserver.add(ROOM, late, lost)
    await compared(reconciler, pool)
    assert (await sources(pool))["$late"] == "reconcile"
    await push(pool, late)
    found = await sources(pool)
    assert (found["$late"], found["$lost"]) == ("push", "reconcile")


async def test_a_refused_position_starts_over(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """The room is read back to where it was compared, so that it stays as complete as it was."""
    homeserver.add(ROOM, *(image(f"${n}", OLD + n * 1000) for n in range(2 * RECENT)))
    await compared(reconciler, pool)
    before = await room(pool)
    assert not before["whole"]
    homeserver.add(ROOM, *images("lost", RECENT + NEW_AT_ONCE + 50))
    asked = len(homeserver.asked)
    homeserver.forgotten = {before["position"]}
    await compared(reconciler, pool)
    row = await room(pool)
    assert row["complete_from"] == before["complete_from"]
    assert row["reason"] is None
    found = list((await sources(pool)).values())
    assert found.count("reconcile") == RECENT + NEW_AT_ONCE + 50
    assert len(homeserver.asked) == asked + 4  # the refused one, and three pages back
    homeserver.add(ROOM, image("$next"))
    await compared(reconciler, pool)
    assert (await sources(pool))["$next"] == "reconcile"


async def test_a_room_without_a_position_is_read_back_to_what_was_pushed(
    pool: Pool, homeserver: Rooms, http: aiohttp.ClientSession
) -> None:
    """As after a restore: long ago pushes came, and some come now; who dies in between is
    succeeded by one that finds the rest."""
    await made_long_ago(pool)
    pushed, now = images("pushed", 3, minutes_ago(30)), image("$now")
    lost = images("lost", 2 * NEW_AT_ONCE, minutes_ago(10))
    talk = [text(f"$talk{number}") for number in range(RECENT - 1)]
    homeserver.add(ROOM, image("$old", OLD), *pushed, *lost, *talk, now)
    await push(pool, *pushed)
    await push(pool, now)
    await die_at_page(3, homeserver, another(pool, homeserver, http))
    assert list((await sources(pool)).values()).count("reconcile") == NEW_AT_ONCE
    assert (await room(pool))["position"] is None
    homeserver.asked.clear()
    await compared(another(pool, homeserver, http), pool)
    found = list((await sources(pool)).values())
    assert (found.count("reconcile"), found.count("push")) == (2 * NEW_AT_ONCE, 4)
    assert [asked.limit for asked in homeserver.asked] == [RECENT] + [NEW_AT_ONCE] * 3
    homeserver.asked.clear()
    await compared(another(pool, homeserver, http), pool)
    assert len(homeserver.asked) == 1


async def test_one_room_does_not_keep_the_others_waiting(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading back ends somewhere: the room is complete from there on, and no farther."""
    monkeypatch.setattr(visit, "FARTHEST", 2)
    await made_long_ago(pool)
    pushed = image("$pushed", minutes_ago(30))
    homeserver.add(ROOM, pushed, *images("lost", RECENT + 2 * NEW_AT_ONCE, minutes_ago(10)))
    await push(pool, pushed)
    await compared(reconciler, pool)
    assert [asked.limit for asked in homeserver.asked] == [RECENT, NEW_AT_ONCE]
    assert len(await sources(pool)) == RECENT + NEW_AT_ONCE + 1
    assert not (await room(pool))["whole"]


async def test_a_room_that_was_not_read_back_to_its_end_is_complete_from_there_on(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was known of it before: between the two something may be missing."""
    homeserver.add(ROOM, state("$create", "m.room.create", {}))
    await compared(reconciler, pool)
    before = await room(pool)
    assert before["whole"]
    monkeypatch.setattr(visit, "FARTHEST", 1)
    homeserver.add(ROOM, *images("lost", 2 * RECENT))
    homeserver.forgotten = {before["position"]}
    await compared(reconciler, pool)
    row = await room(pool)
    assert not row["whole"]
    assert row["complete_from"] > before["complete_until"]


async def test_what_was_said_before_anybody_here_joined_is_not_read_back(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """It could not be pushed, and is for a backfill."""
    await made_long_ago(pool)
    joined = image("$joined", minutes_ago(10))
    homeserver.add(ROOM, *images("before", 3 * RECENT, minutes_ago(30)), joined)
    await push(pool, joined)
    await compared(reconciler, pool)
    assert len(homeserver.asked) == 1


async def test_other_failures_keep_the_position(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """A homeserver's own error is a reason to try later, not to start over."""
    homeserver.add(ROOM, image("$old", OLD))
    await compared(reconciler, pool)
    position = (await room(pool))["position"]
    homeserver.refused[ROOM] = (500, "M_UNKNOWN")
    await compared(reconciler, pool)
    row = await room(pool)
    assert row["position"] == position
    assert "500" in row["reason"]
    assert 0 < row["due_in"] <= EVERY.total_seconds()
    homeserver.refused.clear()
    await compared(reconciler, pool)
    assert (await room(pool))["reason"] is None


async def test_what_federation_delivers_late_is_found(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """A look back finds what has its place before the position; a silent room needs none."""
    homeserver.add(ROOM, *images("a", 3))
    homeserver.add("!silent", *images("s", 3))
    await compared(reconciler, pool)
    homeserver.add(ROOM, image("$late"), at=1.5)
    await pool.execute("UPDATE room SET looked_back_at = now() - interval '7 hours'")
    await push(pool, text("$text"))
    await pool.execute(
        "UPDATE room SET active_at = now() - interval '8 h' WHERE room_id <> $1", ROOM
    )
    homeserver.asked.clear()
    await compared(reconciler, pool)
    assert [asked.direction for asked in homeserver.pages_of(ROOM)] == ["f", "b"]
    assert [asked.direction for asked in homeserver.pages_of("!silent")] == ["f"]
    assert (await sources(pool))["$late"] == "reconcile"
    homeserver.asked.clear()
    await compared(reconciler, pool)
    assert [asked.direction for asked in homeserver.pages_of(ROOM)] == ["f"]


async def test_an_unreadable_room_says_why_until_it_is_readable(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """It is tried once a day, and again at the next doubt; no pass waits for it."""
    homeserver.add(ROOM, image("$a", OLD))
    homeserver.refused[ROOM] = (403, "M_FORBIDDEN")
    await compared(reconciler, pool)
    row = await room(pool)
    assert "administrator" in row["reason"]
    assert row["complete_until"] is None
    assert row["due_in"] > 23 * 3600
    assert await pool.fetchval("SELECT at FROM moment WHERE name = 'reconcile'")
    homeserver.refused.clear()
    await compared(reconciler, pool)
    row = await room(pool)
    assert row["reason"] is None
    assert row["complete_until"]


async def test_rooms_that_are_left_out_are_not_asked_for(
    pool: Pool, homeserver: Rooms, http: aiohttp.ClientSession
) -> None:
    """And they say so."""
    homeserver.add(ROOM, image("$a", OLD))
    policy = CapturePolicy(SERVER_NAME, excluded=[ROOM])
    await compared(another(pool, homeserver, http, policy=policy), pool)
    assert homeserver.asked == []
    assert (await room(pool))["reason"] == ROOM_EXCLUDED


async def test_what_our_bot_says_is_no_gap(
    pool: Pool, homeserver: Rooms, http: aiohttp.ClientSession
) -> None:
    """It was never archived, so nothing is missing, and nothing is found."""
    homeserver.add(ROOM, {**image("$a"), "sender": BOT}, image("$b"))
    before = gaps()
    policy = CapturePolicy(SERVER_NAME, bot=BOT)
    await compared(another(pool, homeserver, http, policy=policy), pool)
    assert list(await sources(pool)) == ["$b"]
    assert gaps() - before == 1
    assert (await room(pool))["complete_until"]


async def test_several_processes_share_the_rooms(
    pool: Pool, homeserver: Rooms, http: aiohttp.ClientSession
) -> None:
    """Each room is asked for once, and each process has its part of them."""
    for number in range(40):
        homeserver.add(f"!{number}", image(f"${number}", OLD))
    ours = [another(pool, homeserver, http) for _ in range(3)]
    await ours[0].doubt("the test wants it")

    async def work(reconciler: Reconciler) -> int:
        visits = 0
        while await reconciler.visit_next():
            visits += 1
        return visits

    shares = await asyncio.gather(*map(work, ours))
    assert sum(shares) == len(homeserver.asked) == 40
    assert all(shares)


async def test_who_dies_between_pages_loses_nothing(
    pool: Pool, homeserver: Rooms, http: aiohttp.ClientSession
) -> None:
    """The next one goes on at the page that was not committed."""
    homeserver.add(ROOM, image("$old", OLD))
    await compared(another(pool, homeserver, http), pool)
    homeserver.add(ROOM, *images("lost", 2 * NEW_AT_ONCE + 1))
    homeserver.asked.clear()
    await die_at_page(2, homeserver, another(pool, homeserver, http))
    assert len(await sources(pool)) == NEW_AT_ONCE + 1
    assert (await room(pool))["due_in"] <= 0
    healthy = another(pool, homeserver, http)
    while await healthy.visit_next():
        pass
    assert len(await sources(pool)) == 2 * NEW_AT_ONCE + 2
    tokens = [asked.token for asked in homeserver.pages_of(ROOM)]
    assert len(tokens) == 4
    assert tokens[1] == tokens[2]


async def test_who_lost_the_claim_writes_nothing(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """A visit that a doubt made void neither records nor moves the position."""
    homeserver.add(ROOM, image("$old", OLD))
    await compared(reconciler, pool)
    homeserver.add(ROOM, image("$lost"))
    before = await room(pool)

    async def meanwhile(_asked: Asked) -> None:
        homeserver.before = None
        async with pool.acquire() as conn:
            await rooms.doubt(conn, None)

    homeserver.before = meanwhile
    await reconciler.doubt("the test wants it")
    assert await reconciler.visit_next()
    row = await room(pool)
    assert row["position"] == before["position"]
    assert row["due_in"] <= 0
    assert "$lost" not in await sources(pool)
    assert await reconciler.visit_next()
    assert (await sources(pool))["$lost"] == "reconcile"


async def test_active_rooms_come_first(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """After a doubt rooms have their turn by when they were active last."""
    ages = {"!hour": 1.0, "!minute": 1 / 60, "!week": 168.0, "!half-day": 12.0}
    for name, hours in ages.items():
        homeserver.add(name, image(f"${name}", OLD))
        await pool.execute(
            "INSERT INTO room (room_id, active_at) VALUES ($1, now() - $2::interval)",
            name,
            timedelta(hours=hours),
        )
    await compared(reconciler, pool)
    order = [asked.room_id for asked in homeserver.asked]
    assert order == sorted(ages, key=ages.__getitem__)


@pytest.mark.parametrize(
    ("silent_for", "rest"),
    [
        (timedelta(), EVERY),
        (timedelta(minutes=30), EVERY),
        (timedelta(hours=8), timedelta(hours=2)),
        (timedelta(days=30), timedelta(days=1)),
    ],
)
async def test_silent_rooms_rest_longer(
    pool: Pool,
    homeserver: Rooms,
    reconciler: Reconciler,
    silent_for: timedelta,
    rest: timedelta,
) -> None:
    """A quarter of the time for which it was silent, a day at most."""
    homeserver.add(ROOM, image("$old", OLD))
    await pool.execute(
        "INSERT INTO room (room_id, active_at) VALUES ($1, now() - $2::interval)", ROOM, silent_for
    )
    await compared(reconciler, pool)
    due_in = (await room(pool))["due_in"]
    assert rest.total_seconds() - 60 < due_in <= rest.total_seconds() + 60


async def test_a_doubt_opens_every_gap_until_it_is_compared(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """`IS_OPEN` is true of rooms that nobody compared since the last doubt."""
    homeserver.add(ROOM, image("$old", OLD))
    is_open = "SELECT " + rooms.IS_OPEN + "FROM room"
    await compared(reconciler, pool)
    assert await pool.fetchval(is_open) is False
    await reconciler.doubt("the test wants it")
    assert await pool.fetchval(is_open) is True
    while await reconciler.visit_next():
        pass
    assert await pool.fetchval(is_open) is False


async def test_on_demand_some_rooms_are_compared(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """Only those that were asked for, and nobody else's doubt is raised."""
    for name in ("!a", "!b"):
        homeserver.add(name, image(f"${name[1:]}"))
    began = await reconciler.compare(["!b", "!gone"])
    assert {asked.room_id for asked in homeserver.asked} == {"!b", "!gone"}
    async with pool.acquire() as conn:
        found = [tuple(row) for row in await rooms.found(conn, began, ["!b", "!gone"])]
        assert await moments.at(conn, Moment.DOUBT) is None
    assert found[0] == ("!b", None, 1)
    assert found[1][0] == "!gone"
    assert "does not have it" in found[1][1]


async def test_on_demand_an_absent_homeserver_is_an_error(
    homeserver: Rooms, reconciler: Reconciler
) -> None:
    """Somebody waits, so it is said at once."""
    homeserver.add(ROOM, image("$a"))
    await homeserver.stop()
    with pytest.raises(HomeserverUnavailable):
        await reconciler.compare(None)


async def test_it_runs_at_start_after_a_restart_and_after_silence(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """Each of these raises a doubt, and every room is compared again."""
    homeserver.add(ROOM, image("$old", OLD))
    async with running(reconciler):
        await until(lambda: _asked(homeserver, 1), "the pass at the start")
        homeserver.add(ROOM, image("$lost"))
        reconciler.restarted()
        await until(lambda: _has(pool, "$lost"), "the pass after a restart")
        homeserver.add(ROOM, image("$silent"))
        await pool.execute("INSERT INTO moment VALUES ('push', now() - interval '40 minutes') ")
        await pool.execute("UPDATE moment SET at = now() - interval '21 min' WHERE name = 'doubt'")
        await until(lambda: _has(pool, "$silent"), "the pass after silence")


async def _has(pool: Pool, event_id: str) -> bool:
    return event_id in await sources(pool)


async def test_it_goes_on_when_the_homeserver_is_back(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler
) -> None:
    """An outage costs a room its turn only until the homeserver answers."""
    homeserver.add(ROOM, image("$old", OLD))
    await homeserver.stop()
    async with running(reconciler):
        await until(lambda: _doubted(pool), "the doubt is there before the homeserver is")
        await homeserver.start()
        await until(lambda: _has(pool, "$old"), "the room was compared")


async def _doubted(pool: Pool) -> bool:
    async with pool.acquire() as conn:
        return await moments.at(conn, Moment.DOUBT) is not None


async def test_without_rights_one_line_says_what_to_do(
    pool: Pool, homeserver: Rooms, reconciler: Reconciler, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not one line a room."""
    homeserver.admin = False
    for number in range(5):
        await push(pool, image(f"${number}"), room_id=f"!{number}")
    await compared(reconciler, pool)
    await compared(reconciler, pool)
    said = capsys.readouterr().out
    assert said.count("warning") == said.count("the bot may read no room") == 1
    assert (await room(pool, "!3"))["reason"]


@pytest.mark.parametrize(
    ("pushed", "doubted", "silent"),
    [
        (1, 60, False),
        (9, 60, False),
        (11, 60, True),
        (15, 5, False),
        (21, 11, True),
        (39, 19, False),
        (41, 21, True),
        (60 * 24, 60 * 5, False),
        (60 * 24, 60 * 6 + 1, True),
        (None, 60 * 5, False),
        (None, 60 * 6 + 1, True),
    ],
)
async def test_silence_is_doubted_ever_more_rarely(
    pool: Pool, pushed: int | None, doubted: int, silent: bool
) -> None:
    """10 minutes after the last push, whenever the silence has doubled, then every 6 hours."""
    for name, minutes in (("push", pushed), ("doubt", doubted)):
        if minutes is not None:
            await pool.execute(
                "INSERT INTO moment VALUES ($1, now() - $2::interval)",
                name,
                timedelta(minutes=minutes),
            )
    async with pool.acquire() as conn:
        found = await moments.is_silent(conn, timedelta(minutes=10), timedelta(hours=6))
    assert found is silent


async def test_the_homeserver_rests_nine_times_as_long() -> None:
    """The next request does not begin before its time."""
    pace = Pace(9)
    began: list[float] = []

    async def request() -> None:
        began.append(time.monotonic())
        await asyncio.sleep(0.02)

    for _ in range(3):
        await pace.ask(request)
    assert began[1] - began[0] >= 0.19
    assert began[2] - began[1] >= 0.19


async def test_the_claim_reads_an_index(pool: Pool) -> None:
    """Whose turn it is does not depend on how many rooms there are."""
    await pool.execute(
        "INSERT INTO room (room_id, due_at) SELECT '!' || n, now() - n * interval '1 s' "
        "FROM generate_series(1, 20000) AS n; ANALYZE room"
    )
    async with pool.acquire() as conn:
        plan = "\n".join(
            row[0]
            for row in await conn.fetch("EXPLAIN " + rooms.CLAIM, LEASE, None, timedelta(hours=6))
        )
    assert "room_due" in plan
    assert "Seq Scan" not in plan


async def test_a_restart_is_noticed(homeserver: Rooms) -> None:
    """After one the homeserver is asked to push, and then the rooms are doubted."""
    alarms: list[str] = []
    async with running(_watch(homeserver, alarms)) as _:
        await until(lambda: _steady(homeserver), "it answers")
        assert alarms == []
        await homeserver.stop()
        await homeserver.start()
        await until(lambda: _two(alarms), "the alarm")
    assert alarms == ["asked", "restarted"]


async def test_a_proxy_in_front_of_a_dead_homeserver_is_no_answer(homeserver: Rooms) -> None:
    """It was away when the proxy says 502, and is back when it answers."""
    alarms: list[str] = []
    async with running(_watch(homeserver, alarms)):
        await until(lambda: _steady(homeserver), "it answers")
        homeserver.versions_status = 502
        homeserver.versions_asked = 0
        await until(lambda: _steady(homeserver), "it is away")
        assert alarms == []
        homeserver.versions_status = 200
        await until(lambda: _two(alarms), "the alarm")


async def test_connections_that_are_closed_in_good_order_are_no_alarm(homeserver: Rooms) -> None:
    """A server that keeps no connection says so with every answer."""
    alarms: list[str] = []
    homeserver.close_connections = True
    async with running(_watch(homeserver, alarms)):
        await until(lambda: _steady(homeserver), "it answers")
    assert alarms == []


def _watch(homeserver: Rooms, alarms: list[str]) -> Watch:
    async def ask() -> None:
        alarms.append("asked")

    return Watch(homeserver.url, ask, lambda: alarms.append("restarted"), every=0.01)


async def _steady(homeserver: Rooms) -> bool:
    return homeserver.versions_asked > 10


async def _two(alarms: list[str]) -> bool:
    return len(alarms) >= 2
