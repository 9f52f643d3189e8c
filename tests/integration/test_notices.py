"""What the bot tells the control room by itself, and that it does so once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web

from archiver.catalogue import notices as catalogue
from archiver.config import parse_config
from archiver.control.notices import Notices, Pace
from archiver.control.watching.answering import Asking
from archiver.control.watching.building import written_to
from archiver.control.watching.conditions import Surroundings
from archiver.control.watching.disks import GIB, Space, spaces
from archiver.control.words import moment
from archiver.db.migrate import migrate
from archiver.db.pool import Pool, open_pool
from archiver.matrix.answering import answers
from archiver.matrix.bot import Bot
from archiver.matrix.registration import Registration, load_registration, new_registration
from archiver.matrix.speech import Speech
from archiver.store.filesystem import FilesystemStore
from tests.support.homeserver import BOT, SERVER_NAME
from tests.support.postgres import PostgresProcess
from tests.support.process import LOOPBACK, free_port
from tests.support.synapse import Synapse

ROOM = f"!control:{SERVER_NAME}"
KINDS = ("trouble", "disk", "failed", "gaps", "damage")
AT_ONCE = Pace(patience=timedelta(0), settling=timedelta(0))
STEADY = Pace(settling=timedelta(0))
REGISTRATION = Registration("id", "as", "hs", BOT, f"@_archiver:{SERVER_NAME}")
ROOMY = Space((Path("/archive"),), 1, 50 * GIB, 100 * GIB)
LOW = ROOMY._replace(free=GIB)
EARLIER = "UPDATE notice SET begun_at = begun_at - interval '5 min' WHERE cause = $1"


class ControlRoom:
    """A homeserver that takes messages, and knows a transaction id that it has seen before."""

    def __init__(self) -> None:
        self.url = f"http://{LOOPBACK}:{free_port()}"
        self.bodies: list[str] = []
        self.refuses = False  # to take messages
        self.forgets_to_answer = False  # once it has taken them
        self.requests = 0
        self._txns: set[str] = set()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Returns when it answers."""
        app = web.Application()
        app.router.add_get("/_matrix/client/versions", self._versions)
        path = "/_matrix/client/v3/rooms/{room}/send/m.room.message/{txn}"
        app.router.add_put(path, self._send)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        port = int(self.url.rpartition(":")[2])
        await web.TCPSite(self._runner, LOOPBACK, port, reuse_address=True).start()

    async def stop(self) -> None:
        """Nothing answers afterwards."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _versions(self, _request: web.Request) -> web.Response:
        return web.json_response({"versions": ["v1.11"]})

    async def _send(self, request: web.Request) -> web.Response:
        self.requests += 1
        if self.refuses:
            return web.json_response({"errcode": "M_UNKNOWN", "error": "not now"}, status=500)
        assert request.match_info["room"] == ROOM
        assert request.query["user_id"] == BOT
        txn = request.match_info["txn"]
        if txn not in self._txns:
            self._txns.add(txn)
            content: dict[str, Any] = await request.json()
            self.bodies.append(content["body"])
        if self.forgets_to_answer:
            return web.json_response({"errcode": "M_UNKNOWN", "error": "lost"}, status=502)
        return web.json_response({"event_id": f"${txn}"})


class Stage:
    """A homeserver with a control room, an object store, a disk, and bots that watch them."""

    def __init__(self, pool: Pool, session: aiohttp.ClientSession, folder: Path) -> None:
        self.pool = pool
        self.homeserver = ControlRoom()
        self.url = self.homeserver.url
        self.objects = folder / "objects"
        self.store = FilesystemStore(self.objects)
        self.disk = ROOMY
        self.room: str | None = ROOM
        self.clock = 0.0
        self.session = session

    def notices(
        self, *kinds: str, pace: Pace = AT_ONCE, registration: Registration = REGISTRATION
    ) -> Notices:
        """A bot of another process, or of the same one after a restart; every kind for none."""
        asked = partial(answers, self.session, self.url)
        around = Surroundings(asked, self.store.check, lambda: [self.disk])
        speech = Speech(self.session, self.url, registration)
        return Notices(
            self.pool, speech, lambda: self.room, around, kinds or KINDS, "!archive",
            pace=pace, clock=lambda: self.clock,
        )  # fmt: skip

    def lose_objects(self) -> None:
        """The folder of the objects is not mounted any more."""
        self.objects.rename(self.objects.with_name("elsewhere"))

    def find_objects(self) -> None:
        """It is back."""
        self.objects.with_name("elsewhere").rename(self.objects)

    @property
    def told(self) -> list[str]:
        """The first sentences of what the room was told."""
        return [body.partition("\n")[0] for body in self.homeserver.bodies]


@pytest.fixture
async def stage(pool: Pool, http: aiohttp.ClientSession, tmp_path: Path) -> AsyncIterator[Stage]:
    """All is well."""
    stage = Stage(pool, http, tmp_path)
    await stage.store.open()
    await stage.homeserver.start()
    yield stage
    await stage.homeserver.stop()


async def fail(pool: Pool, *reasons: str) -> None:
    for number, reason in enumerate(reasons):
        await pool.execute(
            "INSERT INTO media (server_name, media_id, state, reason, settled_at) "
            "VALUES ('b', $1 || (SELECT count(*) FROM media), 'failed', $2, now())",
            f"m{number}-",
            reason,
        )


async def fill_gaps(pool: Pool, *event_ids: str) -> None:
    await pool.executemany(
        "INSERT INTO event (event_id, room_id, content, source) "
        "VALUES ($1, '!' || left($1, 2), '{}', 'reconcile')",
        [(event_id,) for event_id in event_ids],
    )


async def damage(pool: Pool, *names: str) -> None:
    for name in names:
        await pool.execute(
            "INSERT INTO blob (sha256, size, place, damaged_at) "
            "VALUES (sha256($1::bytea), 1, 'object', now())",
            name.encode(),
        )
        await pool.execute(
            "INSERT INTO media (server_name, media_id, state, blob_sha256) "
            "VALUES ('b', $1, 'ready', sha256($2::bytea))",
            name,
            name.encode(),
        )


async def test_nothing_is_told_while_all_is_well(stage: Stage) -> None:
    """Not even at the first look of a new archive."""
    for _ in range(3):
        await stage.notices().look()
    assert stage.told == []


async def test_the_homeserver_is_told_of_when_it_is_back(stage: Stage) -> None:
    """Once, with from when to when, also by a bot that was started meanwhile."""
    await stage.homeserver.stop()
    await stage.notices(pace=STEADY).look()
    await stage.pool.execute(EARLIER, "homeserver")
    await stage.notices(pace=STEADY).look()
    await stage.homeserver.start()
    bot = stage.notices(pace=STEADY)
    await bot.look()
    await bot.look()
    [told] = stage.told
    assert told.startswith("✅ The homeserver answers again. It did not from 20")
    assert told.endswith("(UTC).")


@pytest.mark.parametrize("what", ["homeserver", "store"])
async def test_a_hiccup_is_told_to_nobody(stage: Stage, what: str) -> None:
    """What lasts less than a minute needs nobody."""
    bot = stage.notices(pace=STEADY)
    for _ in range(2):
        if what == "store":
            stage.lose_objects()
        else:
            await stage.homeserver.stop()
        await bot.look()
        await bot.look()
        if what == "store":
            stage.find_objects()
        else:
            await stage.homeserver.start()
        await bot.look()
    assert stage.told == []
    assert await stage.pool.fetchval("SELECT count(*) FROM notice WHERE cause = $1", what) == 0


async def test_the_object_store_is_told_of_twice(stage: Stage) -> None:
    """Once that it is away and what to do, and once that it is back; restarts repeat nothing."""
    stage.lose_objects()
    await stage.notices(pace=STEADY).look()
    assert stage.told == []
    await stage.pool.execute(EARLIER, "store")
    for _ in range(3):
        await stage.notices(pace=STEADY).look()
    [told] = stage.told
    assert told.startswith("⚠️ The object store has not answered since")
    assert "storage.filesystem.path" in told
    stage.find_objects()
    for _ in range(3):
        await stage.notices(pace=STEADY).look()
    assert len(stage.told) == 2
    assert stage.told[1].startswith("✅ The object store answers again. It did not from 20")


async def test_an_outage_ends_when_it_was_seen_last(stage: Stage) -> None:
    """What ended while the archive itself was stopped did not last until it started."""
    stage.lose_objects()
    await stage.notices("trouble").look()
    stage.find_objects()
    last_at = await stage.pool.fetchval(
        "UPDATE notice SET begun_at = begun_at - interval '25 h',"
        " last_at = last_at - interval '1 d'"
        " WHERE cause = 'store' RETURNING last_at"
    )
    await stage.notices("trouble").look()
    assert stage.told[1].endswith(f" to {moment(last_at)} (UTC).")


async def test_each_outage_is_told(stage: Stage) -> None:
    """The second one is no repetition of the first."""
    bot = stage.notices("trouble")
    for _ in range(2):
        stage.lose_objects()
        await bot.look()
        stage.find_objects()
        await bot.look()
    assert [told[0] for told in stage.told] == ["⚠", "✅", "⚠", "✅"]


async def test_what_cannot_be_said_is_said_later(stage: Stage) -> None:
    """What came and went while the homeserver was away is told once it is back."""
    bot = stage.notices()
    await bot.look()
    await stage.homeserver.stop()
    stage.lose_objects()
    stage.disk = LOW
    await damage(stage.pool, "one")
    await bot.look()
    stage.find_objects()
    await bot.look()
    await stage.homeserver.start()
    await bot.look()
    await bot.look()
    assert len(stage.told) == 4
    homeserver, store, disk, blob = stage.told
    assert homeserver.startswith("✅ The homeserver")
    assert store.startswith("✅ The object store answers again. It did not from")
    assert disk.startswith("⚠️ The disk of /archive")
    assert blob.startswith("⚠️ 1 file in the archive")


async def test_a_refused_message_does_not_count_as_told(stage: Stage) -> None:
    """Neither does its recovery, nor what was found."""
    bot = stage.notices()
    stage.homeserver.refuses = True
    stage.lose_objects()
    await fail(stage.pool, "gone")
    await fill_gaps(stage.pool, "$late")
    await bot.look()
    await fill_gaps(stage.pool, "$later")
    await bot.look()
    stage.homeserver.refuses = False
    await bot.look()
    assert len(stage.told) == 3
    assert "⚠️ 1 event in 1 room" in stage.told[2]
    stage.homeserver.refuses = True
    stage.find_objects()
    await bot.look()
    stage.homeserver.refuses = False
    await stage.notices().look()
    assert stage.told[3].startswith("✅ The object store")
    assert len(stage.told) == 4


async def test_a_message_whose_taking_was_not_heard_is_the_same_message(stage: Stage) -> None:
    """It is sent again, as after a crash, under the same transaction id."""
    stage.homeserver.forgets_to_answer = True
    stage.lose_objects()
    await stage.notices("trouble").look()
    stage.homeserver.forgets_to_answer = False
    await stage.notices("trouble").look()
    assert stage.homeserver.requests == 2
    assert len(stage.told) == 1


async def test_many_processes_tell_once(stage: Stage) -> None:
    """Whoever decides first tells, the others wait for it and find that it was told."""
    bots = [stage.notices(pace=AT_ONCE._replace(findings_every=timedelta(0))) for _ in range(4)]
    await bots[0].look()
    stage.disk = LOW
    stage.lose_objects()
    await fill_gaps(stage.pool, "$1", "$2")
    await damage(stage.pool, "one")
    await asyncio.gather(*(bot.look() for bot in bots))
    assert len(stage.told) == 4
    stage.find_objects()
    stage.disk = ROOMY
    await asyncio.gather(*(bot.look() for bot in bots))
    assert sorted(told[0] for told in stage.told[4:]) == ["✅", "✅"]
    assert stage.homeserver.requests == 6


async def test_a_full_disk_is_told_once_until_there_is_room(stage: Stage) -> None:
    """In between, where it is neither full nor roomy, nothing is told."""
    between = ROOMY._replace(free=5 * GIB // 2)
    for disk in (LOW, LOW, between, LOW, ROOMY, ROOMY, between, LOW):
        stage.disk = disk
        await stage.notices().look()
    assert [told[0] for told in stage.told] == ["⚠", "✅", "⚠"]
    assert "1.0 GiB of 100.0 GiB are free" in stage.told[0]


async def test_a_disk_that_had_little_room_unheard_is_no_news(stage: Stage) -> None:
    """Once there is room again nobody needs to know that there was not."""
    await stage.homeserver.stop()
    stage.disk = LOW
    await stage.notices("disk").look()
    await stage.homeserver.start()
    stage.disk = ROOMY
    await stage.notices("disk").look()
    assert stage.told == []


@pytest.mark.parametrize(
    ("free", "size", "low"),
    [
        (GIB, 100 * GIB, True), (2 * GIB, 100 * GIB, None), (4 * GIB, 100 * GIB, False),
        (GIB // 2, 10 * GIB, True), (GIB, 10 * GIB, None), (2 * GIB, 10 * GIB, False),
        (0, 0, None),
    ],
)  # fmt: skip
def test_a_disk_is_low_by_the_smaller_measure(free: int, size: int, low: bool | None) -> None:
    """A tenth or 2 GiB, and roomy over 15 % or 3 GiB."""
    assert Space((Path("/a"),), 1, free, size).is_low is low


def test_paths_on_one_disk_are_told_together(tmp_path: Path) -> None:
    """What is not there is left out: its store tells of it."""
    (tmp_path / "spool").mkdir()
    [space] = spaces([tmp_path, tmp_path / "spool", tmp_path / "gone"])
    assert space.paths == (tmp_path, tmp_path / "spool")
    assert 0 < space.free <= space.size


def test_only_what_grows_on_this_machine_is_watched(tmp_path: Path) -> None:
    """Another machine's database and a bucket have disks that we cannot see."""
    homeserver = {"url": "http://localhost:8008", "server_name": SERVER_NAME}
    here = parse_config({"homeserver": homeserver}, tmp_path)
    assert [path.name for path in written_to(here)] == ["spool", "postgres", "objects"]
    elsewhere = {"database": {"url": "postgresql://a/b"}, "storage": {"objects": "s3"}}
    away = parse_config({"homeserver": homeserver, **elsewhere}, tmp_path)
    assert [path.name for path in written_to(away)] == ["spool"]


async def test_a_disk_that_hangs_is_asked_once() -> None:
    """Every further question would cost a thread."""
    answered, asked = asyncio.Event(), []

    async def ask() -> str:
        asked.append(1)
        await answered.wait()
        return "well"

    asking = Asking(ask, 0.01)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asking.answer()
    assert len(asked) == 1
    answered.set()
    assert await asking.answer() == "well"


async def test_failures_are_told_once_a_day(stage: Stage) -> None:
    """With the five most frequent reasons; what fails later is told the next day."""
    reasons = [f"reason {n}: detail" for n in range(6) for _ in range(7 - n)]
    await fail(stage.pool, *reasons)
    await stage.notices().look()
    await fail(stage.pool, "another")
    await stage.notices().look()
    [body] = stage.homeserver.bodies
    assert body.startswith("⚠️ 27 media failed for good so far:")
    assert "• reason 0 · 7\n" in body
    assert "• other reasons · 2" in body
    assert "`!archive retry failed`" in body
    yesterday = "UPDATE notice SET said_at = said_at - interval '1 day' WHERE cause = 'failed'"
    await stage.pool.execute(yesterday)
    await stage.notices().look()
    assert stage.told[1].startswith("⚠️ 1 media failed for good since 20")
    await stage.pool.execute(yesterday)
    await stage.notices().look()
    assert len(stage.told) == 2


async def test_gaps_are_told_once_an_hour(stage: Stage) -> None:
    """Only those that were found since; what was found before anybody watched is no news."""
    await fill_gaps(stage.pool, "$old")
    await stage.notices().look()
    assert stage.told == []
    await fill_gaps(stage.pool, "$a1", "$a2", "$b1")
    await stage.notices().look()
    await fill_gaps(stage.pool, "$c1")
    await stage.notices().look()
    [told] = stage.told
    assert told.startswith("⚠️ 3 events in 2 rooms had never been pushed.")
    await stage.pool.execute("UPDATE notice SET said_at = said_at - interval '1 hour'")
    await stage.notices("gaps").look()
    await stage.notices("gaps").look()
    assert stage.told[1].startswith("⚠️ 1 event in 1 room ")
    assert len(stage.told) == 2


async def test_damage_is_told_when_it_grows(stage: Stage) -> None:
    """With the first few media; what is mended and what stays damaged is not told again."""
    await damage(stage.pool, *(f"media{n}" for n in range(7)))
    for _ in range(2):
        await stage.notices().look()
    [body] = stage.homeserver.bodies
    assert body.startswith("⚠️ 7 files in the archive turned out to be damaged or gone; 7 in all.")
    assert body.count("• mxc://b/media") == 5
    assert "`!archive verify`" in body
    await stage.pool.execute("UPDATE blob SET damaged_at = NULL WHERE sha256 = sha256('media0')")
    await stage.pool.execute("UPDATE notice SET said_at = said_at - interval '1 hour'")
    await stage.notices("damage").look()
    assert len(stage.told) == 1
    await damage(stage.pool, "media7")
    await stage.notices("damage").look()
    assert stage.told[1].startswith("⚠️ 1 file in the archive turned out")
    assert stage.told[1].endswith("7 in all.")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_kind_that_is_off_is_silent(stage: Stage, kind: str) -> None:
    """The others are told all the same."""
    bot = stage.notices(*(other for other in KINDS if other != kind))
    await bot.look()
    await stage.homeserver.stop()
    await bot.look()
    await stage.homeserver.start()
    stage.lose_objects()
    stage.disk = LOW
    await damage(stage.pool, "one")
    await fail(stage.pool, "gone")
    await fill_gaps(stage.pool, "$a")
    await stage.pool.execute(
        "UPDATE notice SET said_at = said_at - interval '1 day' WHERE cause = 'failed'"
    )
    await bot.look()
    words = {
        "trouble": ["The homeserver", "The object store"], "disk": ["The disk"],
        "failed": ["failed"], "gaps": ["pushed"], "damage": ["damaged"],
    }  # fmt: skip
    for other, sentences in words.items():
        for sentence in sentences:
            said = [told for told in stage.told if sentence in told]
            assert len(said) == (other != kind), sentence


async def test_without_a_control_room_nothing_counts_as_told(stage: Stage) -> None:
    """It is told once there is one."""
    stage.room = None
    await fail(stage.pool, "gone")
    stage.disk = LOW
    await stage.notices().look()
    assert stage.told == []
    stage.room = ROOM
    await stage.notices().look()
    assert len(stage.told) == 2


async def test_without_kinds_there_is_nothing_to_do(stage: Stage) -> None:
    """`notify: []` looks at nothing."""
    asked = partial(answers, stage.session, stage.homeserver.url)
    around = Surroundings(asked, stage.store.check, list)
    speech = Speech(stage.session, stage.homeserver.url, REGISTRATION)
    await Notices(stage.pool, speech, lambda: ROOM, around, (), "!archive").run()
    assert await stage.pool.fetchval("SELECT count(*) FROM notice") == 0


@pytest.mark.parametrize("seconds", [59, 60])
async def test_the_database_is_told_of_when_it_is_back(
    own_postgres: PostgresProcess, http: aiohttp.ClientSession, tmp_path: Path, seconds: int
) -> None:
    """Once by all processes, and once more when the room could not hear it; no hiccups."""
    async with open_pool(own_postgres.url, 4) as pool:
        async with pool.acquire() as conn:
            await migrate(conn)
        stage = Stage(pool, http, tmp_path)
        await stage.store.open()
        await stage.homeserver.start()
        bots = [stage.notices(pace=STEADY) for _ in range(2)]
        await asyncio.to_thread(own_postgres.stop)
        for bot in bots:
            await bot.look()
        stage.clock += seconds
        await asyncio.to_thread(own_postgres.start)
        stage.homeserver.refuses = True
        for bot in bots:
            await bot.look()
        stage.clock += 600
        stage.homeserver.refuses = False
        for bot in (*bots, *bots):
            await bot.look()
        await stage.homeserver.stop()
        if seconds < 60:
            assert stage.told == []
        else:
            [told] = stage.told
            assert told.startswith("✅ The database answers again. It did not from 20")


async def test_a_real_homeserver_makes_one_message_of_it(
    stage: Stage, start_synapse: Callable[..., Awaitable[Synapse]], tmp_path: Path
) -> None:
    """Also when it was said and that was forgotten; and it hears of its own outage."""
    file = tmp_path / "registration.yaml"
    answer = new_registration(f"http://{LOOPBACK}:{free_port()}", SERVER_NAME)
    file.write_text(json.dumps(answer), "utf-8")
    synapse = await start_synapse(registrations=[file])
    alice = await synapse.register(stage.session, "alice")
    registration = load_registration(file, SERVER_NAME)
    await Bot(stage.session, synapse.url, registration).register()
    stage.url, stage.room = synapse.url, await alice.create_room(invite=[registration.bot])
    await Speech(stage.session, synapse.url, registration).join(stage.room)

    async def look() -> list[str]:
        await stage.notices("trouble", registration=registration).look()
        path = f"/_matrix/client/v3/rooms/{quote(stage.room or '')}/messages"
        chunk = (await alice.call("GET", path, params={"dir": "b"}))["chunk"]
        said = [event["content"] for event in chunk if event["type"] == "m.room.message"]
        return [content["body"] for content in reversed(said)]

    stage.lose_objects()
    first = await look()
    assert len(first) == 1
    await stage.pool.execute("UPDATE notice SET said_at = NULL WHERE cause = 'store'")
    assert await look() == first
    await asyncio.to_thread(synapse.kill)
    await stage.notices("trouble", registration=registration).look()
    stage.find_objects()
    await asyncio.to_thread(synapse.start)
    _, homeserver, store = await look()
    assert homeserver.startswith("✅ The homeserver answers again.")
    assert store.startswith("✅ The object store answers again.")


async def test_looking_reads_indexes(pool: Pool) -> None:
    """However large the archive is, gaps and damage are found by what is new."""
    for statement, index in (
        (catalogue.NEXT_GAPS, "event_filled"),
        (catalogue.NEXT_DAMAGE, "blob_damaged"),
    ):
        async with pool.acquire() as conn, conn.transaction():
            await catalogue.watch(conn)
            await conn.execute("SET LOCAL enable_seqscan = off")
            zero = timedelta(0)
            rows = await conn.fetch(f"EXPLAIN {statement}", zero, zero)
            assert any(index in row[0] for row in rows), rows
