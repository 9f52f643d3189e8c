"""Whatever is killed, whenever, and whatever comes in: every media is archived, once, whole."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

import aiohttp
import asyncpg
from aiohttp import web

from tests.acceptance.conftest import started
from tests.acceptance.hostile import INLINE_LIMIT, SERVER_NAME, Room, bytes_of, hostile_room
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.homeserver import Homeserver, body
from tests.support.postgres import PostgresProcess

DISTINCT, REPEATED = 900, 100
EVENTS_A_PUSH = 10
PUSHES_A_KILL, DOWNLOADS_A_KILL = 8, 40
ARCHIVER_KILLS = 10
DATABASE_KILLS = (4, 9)  # come in between, as the fourth and the ninth kill
SETTINGS = {
    "storage": {"inline_limit": INLINE_LIMIT},
    "worker": {"lease": "2s"},
    "log": {"level": "warning"},
}


async def test_kills_lose_nothing_with_a_database_elsewhere(
    own_postgres: PostgresProcess, lone_archive: Archiver, http: aiohttp.ClientSession
) -> None:
    """A thousand events, duplicates and hostile ones among them, survive ten kills of the
    archiver and two of PostgreSQL."""

    async def kill_database() -> None:
        await asyncio.to_thread(own_postgres.kill)
        await asyncio.to_thread(own_postgres.start)

    database = {"database": {"url": own_postgres.url}}
    async with Homeserver() as homeserver:
        lone_archive.configure(homeserver.url, {**SETTINGS, **database})
        await _survives(lone_archive, homeserver, http, kill_database)


async def test_kills_lose_nothing_with_the_embedded_database(
    lone_archive: Archiver, http: aiohttp.ClientSession
) -> None:
    """The same with the embedded server, which ends with the archiver, or alone."""
    data = lone_archive.folder / "data" / "postgres"

    async def kill_database() -> None:
        status = next(data.glob("*/postmaster.pid"))
        os.kill(int(status.read_text("utf-8").split()[0]), signal.SIGKILL)

    async with Homeserver() as homeserver:
        lone_archive.configure(homeserver.url, SETTINGS)
        await _survives(lone_archive, homeserver, http, kill_database)


async def _survives(
    archive: Archiver,
    homeserver: Homeserver,
    http: aiohttp.ClientSession,
    kill_database: Callable[[], Awaitable[None]],
) -> None:
    homeserver.give_everything(_media)
    room = hostile_room(DISTINCT, REPEATED)
    pusher = _Pusher(archive, http)
    reader = await started(archive, http)
    async with asyncio.TaskGroup() as group:
        group.create_task(pusher.push(room.events))
        group.create_task(_kill(archive, pusher, homeserver, kill_database))
    reader = Reader(http, archive.url, archive.token)

    async def all_ready() -> bool:
        media: dict[str, int] = (await reader.stats())["media"]
        return media == {"ready": len(room.media)}

    await eventually("all media are ready", all_ready, 120)
    for media_id in room.media:
        data = await reader.download(f"mxc://{SERVER_NAME}/{media_id}")
        assert data == bytes_of(media_id), media_id
    conn = await asyncpg.connect(archive.dsn)
    try:
        await _check_events(conn, room)
        await _check_blobs(conn, room, archive.folder / "data" / "objects")
    finally:
        await conn.close()
    await _check_leftovers(archive)


async def _media(request: web.Request) -> web.StreamResponse:
    return await body(bytes_of(request.path.rpartition("/")[2]))(request)


class _Pusher:
    """Pushes as Synapse does: one transaction after the other, each until it is taken. Every
    third one comes twice at the same time, as when a slow answer is not waited for.

    It goes as far as `allowed` says, so that pushes and kills go on side by side until the end.
    """

    def __init__(self, archive: Archiver, http: aiohttp.ClientSession) -> None:
        self.allowed = self.taken = 0
        self._archive = archive
        self._http = http

    async def push(self, events: list[bytes]) -> None:
        for number in range(len(events) // EVENTS_A_PUSH):
            await eventually("the next push may go", lambda: self.taken < self.allowed)
            some = events[number * EVENTS_A_PUSH :][:EVENTS_A_PUSH]
            transaction = b'{"events": [' + b",".join(some) + b"]}"
            twice = 2 if number % 3 == 0 else 1
            await asyncio.gather(*(self._until_taken(transaction, number) for _ in range(twice)))
            self.taken += 1

    async def _until_taken(self, transaction: bytes, number: int) -> None:
        async def taken() -> bool:
            try:
                return await self._archive.push(self._http, transaction, str(number)) == 200
            except aiohttp.ClientError:
                return False

        await eventually("a push is taken", taken)


async def _kill(
    archive: Archiver,
    pusher: _Pusher,
    homeserver: Homeserver,
    kill_database: Callable[[], Awaitable[None]],
) -> None:
    """Kills amid pushes and amid downloads, by turns."""
    for number in range(1, ARCHIVER_KILLS + len(DATABASE_KILLS) + 1):
        pusher.allowed = PUSHES_A_KILL * number
        if number % 2:
            await _pushes(pusher, pusher.allowed - 3)
        else:
            await _downloads(homeserver, len(homeserver.downloads) + DOWNLOADS_A_KILL)
        if number in DATABASE_KILLS:
            await kill_database()
        else:
            await asyncio.to_thread(archive.kill)
            await asyncio.to_thread(archive.start)
    pusher.allowed = DISTINCT + REPEATED


async def _pushes(pusher: _Pusher, taken: int) -> None:
    await eventually("pushes are taken", lambda: pusher.taken >= taken)


async def _downloads(homeserver: Homeserver, begun: int) -> None:
    await eventually("media is fetched", lambda: len(homeserver.downloads) >= begun)


async def _check_events(conn: asyncpg.Connection[asyncpg.Record], room: Room) -> None:
    rows = await conn.fetch("SELECT event_id, media_id FROM reference WHERE event_id ^@ '$event'")
    assert {row["media_id"]: row["event_id"] for row in rows} == room.named
    assert await conn.fetchval("SELECT count(*) FROM event") == len(room.named) + room.nameless
    assert await conn.fetchval("SELECT count(DISTINCT media_id) FROM reference") == len(room.media)


async def _check_blobs(
    conn: asyncpg.Connection[asyncpg.Record], room: Room, objects: Path
) -> None:
    """Every blob is in the place that its row names, and nowhere is one without a row."""
    expected: dict[str, set[bytes]] = {"inline": set(), "object": set()}
    for data in map(bytes_of, room.media):
        expected["inline" if len(data) <= INLINE_LIMIT else "object"].add(sha256(data).digest())
    for place, digests in expected.items():
        rows = await conn.fetch("SELECT sha256 FROM blob WHERE place = $1", place)
        assert {row["sha256"] for row in rows} == digests
    rows = await conn.fetch("SELECT sha256, data FROM blob_data")
    assert {row["sha256"] for row in rows} == expected["inline"]
    assert all(sha256(row["data"]).digest() == row["sha256"] for row in rows)
    files = [path for path in objects.glob("??/??/*") if path.is_file()]
    assert {bytes.fromhex(path.name[-64:]) for path in files} == expected["object"]
    assert len(files) == len(expected["object"])


async def _check_leftovers(archive: Archiver) -> None:
    """The spool holds nothing; what a kill left in `tmp/` goes with a start a day later."""
    data = archive.folder / "data"
    assert list((data / "spool").iterdir()) == []
    assert await asyncio.to_thread(archive.stop) == 0
    temporary = data / "objects" / "tmp"
    for path in temporary.iterdir():
        os.utime(path, (0, 0))
    await asyncio.to_thread(archive.start)
    await eventually("tmp/ is tidied", lambda: list(temporary.iterdir()) == [])
