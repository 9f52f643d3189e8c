"""Old messages are read once, all of them, whatever the homeserver does meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web

from archiver.base import http_session
from archiver.capture.policy import CapturePolicy
from archiver.catalogue import backfill as catalogue
from archiver.history import backfill as module
from archiver.history.backfill import Backfiller
from archiver.history.reading import FAST, GENTLE, Speed
from archiver.matrix.history import History
from tests.support.fetching import until
from tests.support.homeserver import (
    BOT,
    SERVER_NAME,
    TOKEN,
    Answer,
    Homeserver,
    cut_off,
    error,
    plain,
    raw,
)

if TYPE_CHECKING:
    from archiver.db.pool import Pool, Row

ALL = CapturePolicy(SERVER_NAME)
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
PAGE = 10
HOSTILE = [
    b'{"event_id":"$surrogate","type":"m.sticker","content":{"url":"mxc://a.test/1","b":"\\ud800"}}',
    b'{"event_id":"$nul","type":"m.sticker","content":{"url":"mxc://a.test/2","b":"\\u0000"}}',
    b'{"event_id":"$deep","type":7,"content":{"url":"mxc://a.test/3","b":' + b"[" * 3000
    + b"]" * 3000 + b"}}",
    b'{"type":"m.sticker","content":{"url":"mxc://a.test/4"},"origin_server_ts":"soon"}',
    b'{"event_id":"$ts","origin_server_ts":99999999999999999999,"content":{"url":"mxc://a.test/5"}}',
    b'"no event"', b"null", b"[]", b"{}",
]  # fmt: skip


def image(room_id: str, number: int) -> bytes:
    """The event `number` days after the first."""
    sent = FIRST + timedelta(days=number)
    content = {"msgtype": "m.image", "body": "a", "url": f"mxc://{SERVER_NAME}/{number}"}
    return orjson.dumps(
        {
            "event_id": f"${room_id}-{number}",
            "room_id": room_id,
            "sender": "@alice:archive.test",
            "type": "m.room.message",
            "origin_server_ts": int(sent.timestamp() * 1000),
            "content": content,
        }
    )


class Rooms:
    """Answers as Synapse's admin API does, a page of ten events at a time, from `events`.

    What is in `troubles` is answered first, to one request each, in every room.
    """

    def __init__(self, homeserver: Homeserver) -> None:
        self.events: dict[str, list[bytes]] = {}
        self.state: dict[str, list[bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.troubles: list[Answer] = []
        self.knows_times = True
        self.gate: dict[str, asyncio.Event] = {}
        self._met: Counter[str] = Counter()
        homeserver.give(f"/_synapse/admin/v1/users/{BOT}/admin", _json({"admin": True}))
        homeserver.give_everything(self._answer)

    def fill(self, room_id: str, number: int) -> str:
        """A room of as many images, one a day."""
        self.events[room_id] = [image(room_id, n) for n in range(number)]
        return room_id

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        room_id, what = request.path.removeprefix("/_synapse/admin/v1/rooms/").split("/")[:2]
        if what == "state" and room_id in self.state:
            return web.Response(body=_listed("state", self.state[room_id]))
        if what == "messages" and room_id in self.events:
            return await self._messages(request, room_id)
        if self.knows_times and what == "timestamp_to_event":
            days = (int(request.query["ts"]) / 1000 - FIRST.timestamp()) / 86_400
            return web.json_response({"event_id": f"${-(-days // 1):.0f}"})
        if what == "context":
            number = int(request.path.rpartition("$")[2])
            return web.json_response({"end": f"t{number + 1}"})
        return await error(403 if what == "messages" else 404, "M_UNKNOWN")(request)

    async def _messages(self, request: web.Request, room_id: str) -> web.StreamResponse:
        token = request.query.get("from")
        self._met[room_id] += 1
        trouble, odd = divmod(self._met[room_id], 2)
        if odd and trouble < len(self.troubles):
            return await self.troubles[trouble](request)
        self.asked.append((room_id, token))
        if room_id in self.gate:
            await self.gate[room_id].wait()
        events = self.events[room_id]
        stop = len(events) if token is None else int(token[1:])
        start = max(0, stop - PAGE)
        end = {"end": f"t{start}"} if start else {}
        page = events[start:stop][::-1]
        return web.Response(body=_listed("chunk", page, start=f"t{stop}", **end))


def _listed(key: str, events: list[bytes], **tokens: str) -> bytes:
    return orjson.dumps(tokens)[:-1] + (b"," if tokens else b"") + (
        b'"' + key.encode() + b'":[' + b",".join(events) + b"]}"
    )  # fmt: skip


def _json(answer: dict[str, Any]) -> Answer:
    async def give(_request: web.Request) -> web.Response:
        return web.json_response(answer)

    return give


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of the same kind, but shorter."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "FIRST_WAIT", timedelta(milliseconds=10))


@pytest.fixture
def rooms(homeserver: Homeserver) -> Rooms:
    return Rooms(homeserver)


@pytest.fixture
async def history(homeserver: Homeserver) -> AsyncIterator[History]:
    async with http_session() as session:
        yield History(session, homeserver.url, TOKEN, BOT)


@asynccontextmanager
async def working(
    pool: Pool, history: History, policy: CapturePolicy = ALL, speed: Speed = FAST
) -> AsyncIterator[Backfiller]:
    """Somebody reads."""
    backfiller = Backfiller(pool, history, policy, speed=speed)
    running = asyncio.create_task(backfiller.run())
    try:
        yield backfiller
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def ask(
    pool: Pool, *room_ids: str, since: datetime | None = None, until: datetime | None = None
) -> int:
    async with pool.acquire() as conn:
        return await catalogue.request(conn, room_ids, since, until)


async def settled(pool: Pool) -> bool:
    return not await pool.fetchval("SELECT count(*) FROM backfill WHERE state = 'pending'")


async def read(pool: Pool, history: History, *room_ids: str, **span: datetime) -> None:
    """Asks for rooms, and waits until they are read."""
    await ask(pool, *room_ids, **span)
    async with working(pool, history):
        await until(lambda: settled(pool), "all is read")


async def row(pool: Pool, table: str, room_id: str) -> Row:
    [found] = await pool.fetch(
        f"SELECT *, complete_from = '-infinity' AS whole FROM {table} "  # noqa: S608  # the test's own words
        "JOIN room USING (room_id) WHERE room_id = $1"
        if table == "backfill"
        else "SELECT *, complete_from = '-infinity' AS whole FROM room WHERE room_id = $1",
        room_id,
    )
    return found


async def days(pool: Pool) -> set[int]:
    """Which days' events are kept."""
    return {int(r[0].rpartition("-")[2]) for r in await pool.fetch("SELECT event_id FROM event")}


async def test_a_room_is_read_to_its_beginning(pool: Pool, rooms: Rooms, history: History) -> None:
    """Every event is there, from the newest page on; the room is complete from its beginning to
    the moment when reading began, and its token is where what comes later is read from."""
    rooms.fill("!a", 95)
    before = datetime.now(UTC)
    await read(pool, history, "!a")
    assert await days(pool) == set(range(95))
    done = await row(pool, "backfill", "!a")
    assert (done["state"], done["events"], done["kept"], done["media"]) == ("done", 95, 95, 95)
    assert done["reached_at"] <= FIRST + timedelta(days=PAGE)
    assert done["whole"]
    assert done["position"] == "t95"
    assert before - timedelta(seconds=1) <= done["complete_until"] <= datetime.now(UTC)
    assert rooms.asked == [("!a", None), *(("!a", f"t{n}") for n in range(85, 0, -10))]


async def test_an_empty_room_is_read(pool: Pool, rooms: Rooms, history: History) -> None:
    """Nothing in it is no reason to wait."""
    rooms.fill("!a", 0)
    await read(pool, history, "!a")
    assert (await row(pool, "backfill", "!a"))["state"] == "done"


async def test_hostile_events_stop_nothing(pool: Pool, rooms: Rooms, history: History) -> None:
    """Each is kept if it names media, and none hides its neighbours or the next page."""
    rooms.fill("!a", 12)
    rooms.events["!a"][6:6] = HOSTILE
    await read(pool, history, "!a")
    names = {r[0] for r in await pool.fetch("SELECT event_id FROM event")}
    assert {f"$!a-{n}" for n in range(12)} | {"$surrogate", "$nul", "$ts"} <= names
    found = await pool.fetch("SELECT media_id FROM media WHERE server_name = 'a.test'")
    assert {r[0] for r in found} == {"1", "2", "3", "4", "5"}
    assert (await row(pool, "backfill", "!a"))["events"] == 12 + len(HOSTILE)


async def test_whatever_the_homeserver_does_is_waited_out(
    pool: Pool, rooms: Rooms, history: History
) -> None:
    """Errors, limits, cut and garbled bodies between the pages: all is read all the same, once."""
    rooms.fill("!a", 95)
    rooms.fill("!b", 95)
    rooms.troubles = [
        error(500, "M_UNKNOWN"),
        error(429, "M_LIMIT_EXCEEDED", retry_after_ms=10),
        cut_off(b'{"chunk":[', 5_000),
        plain(502, b"<html>away</html>"),
        plain(200, b'{"chunk":[{"event_id":"$x"}', "application/json"),
        plain(200, b'{"chunk":7}', "application/json"),
        plain(200, b"<html>hello</html>"),
        raw(b"no HTTP\r\n\r\n"),
        error(413, "M_TOO_LARGE"),
    ]
    await read(pool, history, "!a", "!b")
    for room_id in ("!a", "!b"):
        done = await row(pool, "backfill", room_id)
        assert (done["state"], done["events"], done["kept"]) == ("done", 95, 95)
        assert done["reason"] is None


async def test_who_waits_says_why(
    pool: Pool, rooms: Rooms, history: History, homeserver: Homeserver
) -> None:
    """A room whose homeserver is away is never failed; it goes on when that is back."""
    rooms.fill("!a", 5)
    await homeserver.stop()
    await ask(pool, "!a")

    async def waits() -> bool:
        async with pool.acquire() as conn:
            troubles = await catalogue.troubles(conn, ["!a"])
        return [(t.state, "does not answer" in t.reason) for t in troubles] == [("pending", True)]

    async with working(pool, history):
        await until(waits, "a reason is given")
        await homeserver.start()
        await until(lambda: settled(pool), "all is read")
    assert (await row(pool, "backfill", "!a"))["events"] == 5


async def test_a_room_that_may_not_be_read_fails_alone(
    pool: Pool, rooms: Rooms, history: History
) -> None:
    """Its reason says what to do, the others are read; asked for again it is tried again."""
    rooms.fill("!a", 5)
    await read(pool, history, "!secret", "!a")
    failed = await row(pool, "backfill", "!secret")
    assert failed["state"] == "failed"
    assert "make the bot an administrator" in (await _reason(pool, "!secret"))
    assert await days(pool) == set(range(5))
    rooms.fill("!secret", 7)
    assert await ask(pool, "!secret", "!a") == 1
    await read(pool, history)
    assert await _reason(pool, "!secret") is None
    assert await days(pool) == set(range(7))


async def _reason(pool: Pool, room_id: str) -> Any:
    return await pool.fetchval("SELECT reason FROM backfill WHERE room_id = $1", room_id)


async def test_interruptions_lose_nothing_and_double_nothing(
    pool: Pool, rooms: Rooms, history: History
) -> None:
    """Stopped at any point, again and again, the rooms are read as if it were in one go."""
    chance = random.Random(1)  # noqa: S311  # no secret
    for room_id in ("!a", "!b", "!c"):
        rooms.fill(room_id, 200)
        rooms.state[room_id] = [_name(room_id)]
    await ask(pool, "!a", "!b", "!c")
    interruptions = 0
    while not await settled(pool):
        goal = len(rooms.asked) + chance.randrange(1, 8)

        async def there(goal: int = goal) -> bool:
            return len(rooms.asked) >= goal or await settled(pool)

        async with working(pool, history):
            await until(there, "some pages are read")
            await asyncio.sleep(chance.uniform(0, 0.01))
        interruptions += 1
    assert interruptions > 5
    for room_id in ("!a", "!b", "!c"):
        done = await row(pool, "backfill", room_id)
        assert (done["events"], done["kept"]) == (200, 201)
    assert await pool.fetchval("SELECT count(*) FROM event") == 603
    assert await pool.fetchval("SELECT sum(media) FROM backfill") == 200


async def test_who_stops_gives_its_room_to_another(
    pool: Pool, rooms: Rooms, history: History
) -> None:
    """A cancelled one leaves nothing that another would have to wait for."""
    rooms.fill("!a", 5)
    rooms.gate["!a"] = asyncio.Event()
    await ask(pool, "!a")
    async with working(pool, history):
        await until(_true(lambda: rooms.asked != []), "the room is being read")
    assert await pool.fetchval("SELECT due_at <= now() FROM backfill")
    rooms.gate["!a"].set()
    await read(pool, history)
    assert await days(pool) == set(range(5))


async def test_workers_share_the_rooms(pool: Pool, rooms: Rooms, history: History) -> None:
    """Each room is read by one of them, page by page, and nothing is asked for twice."""
    names = [rooms.fill(f"!{n}", 30) for n in range(12)]
    await ask(pool, *names)
    async with working(pool, history), working(pool, history):
        await until(lambda: settled(pool), "all is read")
    assert len(rooms.asked) == len(set(rooms.asked)) == 12 * 3


async def test_who_lost_its_lease_changes_nothing(
    pool: Pool, rooms: Rooms, history: History
) -> None:
    """A worker whose room another one took over meanwhile writes neither events nor cursor."""
    rooms.fill("!a", 5)
    rooms.gate["!a"] = asyncio.Event()
    await ask(pool, "!a")
    async with working(pool, history, speed=GENTLE):
        await until(_true(lambda: rooms.asked != []), "the room is being read")
        await pool.execute("UPDATE backfill SET attempts = attempts + 1, events = 77")
        rooms.gate["!a"].set()
        await ask(pool, "!next")
        await until(lambda: _failed(pool, "!next"), "it goes on with another room")
    lost = await row(pool, "backfill", "!a")
    assert (lost["state"], lost["events"], lost["cursor"]) == ("pending", 77, None)
    assert await days(pool) == set()


async def _failed(pool: Pool, room_id: str) -> bool:
    state = await pool.fetchval("SELECT state FROM backfill WHERE room_id = $1", room_id)
    return bool(state == "failed")


def _true(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        return condition()

    return asked


async def test_leases_are_kept_while_a_page_takes_long(
    pool: Pool, rooms: Rooms, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the homeserver longer than a lease keeps its room."""
    rooms.fill("!a", 5)
    rooms.gate["!a"] = asyncio.Event()
    await ask(pool, "!a")
    lease = timedelta(milliseconds=300)
    backfillers = [Backfiller(pool, history, ALL, lease) for _ in range(2)]
    tasks = [asyncio.create_task(backfiller.run()) for backfiller in backfillers]
    await until(_true(lambda: rooms.asked != []), "the room is being read")
    due = await pool.fetchval("SELECT due_at FROM backfill")

    async def renewed() -> bool:
        now = await pool.fetchval("SELECT due_at FROM backfill")
        return bool(now > due + 3 * lease)

    await until(renewed, "the lease is renewed a few times")
    rooms.gate["!a"].set()
    await until(lambda: settled(pool), "all is read")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert rooms.asked == [("!a", None)]


async def test_since_ends_the_reading(pool: Pool, rooms: Rooms, history: History) -> None:
    """Pages that are older as a whole are not asked for, and the room is complete from there;
    who wants more later goes on where it ended."""
    rooms.fill("!a", 100)
    await read(pool, history, "!a", since=FIRST + timedelta(days=55))
    assert rooms.asked[-1] == ("!a", "t50")
    assert await days(pool) == set(range(40, 100))
    since = (await row(pool, "room", "!a"))["complete_from"]
    assert FIRST + timedelta(days=40) <= since <= FIRST + timedelta(days=55)
    asked = len(rooms.asked)
    await read(pool, history, "!a")
    assert rooms.asked[asked] == ("!a", "t40")
    assert await days(pool) == set(range(100))
    assert (await row(pool, "room", "!a"))["whole"]


@pytest.mark.parametrize("knows_times", [True, False])
async def test_until_passes_over_what_is_newer(
    pool: Pool, rooms: Rooms, history: History, knows_times: bool
) -> None:
    """Where the homeserver can tell, reading begins there; else newer events are not kept. The
    room is not complete by that."""
    rooms.fill("!a", 100)
    rooms.knows_times = knows_times
    await read(pool, history, "!a", until=FIRST + timedelta(days=42))
    assert rooms.asked[0] == ("!a", "t43" if knows_times else None)
    assert await days(pool) == set(range(43))
    room = await row(pool, "room", "!a")
    assert (room["position"], room["complete_from"]) == (None, None)


async def test_reading_on_from_what_is_complete_makes_it_complete(
    pool: Pool, rooms: Rooms, history: History
) -> None:
    """Reading the time before joins what a comparison knows already; a gap between stays one."""
    for room_id, day in (("!joined", 30), ("!apart", 60)):
        rooms.fill(room_id, 100)
        since = FIRST + timedelta(days=day)
        await pool.execute(
            "INSERT INTO room (room_id, position, complete_from, complete_until) "
            "VALUES ($1, 't100', $2, now())", room_id, since,
        )  # fmt: skip
    await read(pool, history, "!joined", "!apart", until=FIRST + timedelta(days=42))
    assert (await row(pool, "room", "!joined"))["whole"]
    assert (await row(pool, "room", "!apart"))["complete_from"] == FIRST + timedelta(days=60)


def _name(room_id: str) -> bytes:
    return orjson.dumps(
        {
            "event_id": f"$name-of-{room_id}-1000",
            "room_id": room_id,
            "sender": "@alice:archive.test",
            "type": "m.room.name",
            "state_key": "",
            "origin_server_ts": 1,
            "content": {"name": "The garden"},
        }
    )


async def test_the_present_state_is_recorded_first(
    pool: Pool, rooms: Rooms, history: History
) -> None:
    """The name of a room is known before its oldest events are; without it the rest is read."""
    rooms.fill("!a", 15)
    rooms.fill("!stateless", 5)
    rooms.state["!a"] = [_name("!a"), *HOSTILE]
    await read(pool, history, "!a", "!stateless")
    assert await pool.fetchval("SELECT count(*) FROM event WHERE type = 'm.room.name'") == 1
    assert (await row(pool, "backfill", "!stateless"))["events"] == 5


async def test_tokens_that_lead_nowhere_end_the_reading(
    pool: Pool, rooms: Rooms, history: History, homeserver: Homeserver
) -> None:
    """A page that points at itself is the last one; what has no token is no text."""
    page = {"chunk": [], "start": "t5", "end": "t5"}
    homeserver.give("/_synapse/admin/v1/rooms/!loop/messages", _json(page))
    homeserver.give("/_synapse/admin/v1/rooms/!odd/messages", _json({"chunk": [], "end": [7]}))
    await read(pool, history, "!loop", "!odd")
    assert not (await row(pool, "backfill", "!loop"))["whole"]


async def test_a_wish_that_is_fulfilled_is_left_alone(
    pool: Pool, rooms: Rooms, history: History
) -> None:
    """Only what was not read yet is asked for: nothing within a span, and all from the newest on
    for a later end."""
    rooms.fill("!a", 40)
    early, late = FIRST + timedelta(days=10), FIRST + timedelta(days=20)
    await read(pool, history, "!a", since=early, until=late)
    assert await ask(pool, "!a", since=early, until=late) == 0
    assert await ask(pool, "!a", since=early + timedelta(days=1), until=late) == 0
    assert await ask(pool, "!a", since=early, until=late + timedelta(days=5)) == 1
    await read(pool, history)
    assert await days(pool) >= set(range(10, 26))
    assert 39 not in await days(pool)
    assert await ask(pool, "!a", since=early) == 1
    await read(pool, history)
    assert await days(pool) >= set(range(10, 40))


async def test_a_wider_wish_is_added_to_one_that_waits(pool: Pool) -> None:
    """What others asked for and did not get stays asked for."""
    day = FIRST + timedelta(days=10)
    await ask(pool, "!a", since=FIRST, until=day)
    await ask(pool, "!a", since=day, until=day + timedelta(days=1))
    waiting = await pool.fetchrow("SELECT since, until FROM backfill")
    assert waiting is not None
    assert tuple(waiting) == (FIRST, day + timedelta(days=1))


async def test_remote_media_waits_and_local_media_does_not(
    pool: Pool, rooms: Rooms, history: History
) -> None:
    """What is due goes by the event's own time, so that live media goes first; what another
    server has waits for the budget. The command can tell the two apart."""
    rooms.fill("!a", 2)
    rooms.events["!a"].append(image("!a", 3).replace(b"mxc://archive.test", b"mxc://far.test"))
    await read(pool, history, "!a")
    due = await pool.fetchval("SELECT due_at FROM media WHERE media_id = '1'")
    assert due == FIRST + timedelta(days=1)
    async with pool.acquire() as conn:
        progress = await catalogue.progress(conn, ["!a"])
        outcomes = await catalogue.outcomes(conn, ["!a"])
    assert (progress.rooms, progress.done, progress.failed) == (1, 1, 0)
    assert (progress.untried, progress.paced) == (2, 1)
    assert {(o.state, o.paced, o.media) for o in outcomes} == {
        ("pending", False, 2),
        ("pending", True, 1),
    }


async def test_a_wish_wakes_whoever_listens(pool: Pool, rooms: Rooms, history: History) -> None:
    """Without waiting for the next look."""
    rooms.fill("!a", 5)
    async with working(pool, history) as backfiller:
        await ask(pool, "!a")
        backfiller.wake()
        await until(lambda: settled(pool), "all is read")
    assert await days(pool) == set(range(5))
