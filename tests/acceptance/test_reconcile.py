"""A real Synapse that loses pushes: all is there in the end, and a metric says how many."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import asyncpg
import orjson
import pytest

from demo.people import People
from tests.acceptance.conftest import UNFORESEEN, new_folder, newcomers, started
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.samples import png
from tests.support.synapse import Synapse

LOST_AT_LEAST = 100
LOST = "SELECT count(*) FROM event WHERE source = 'reconcile'"
BOT = "@archiver:archive.test"


@pytest.fixture
async def archive(services_folder: Path) -> AsyncIterator[Archiver]:
    """An archive of this test's own, not started; ended after."""
    archive = Archiver(new_folder(services_folder) / "archive")
    archive.init()
    yield archive
    assert await asyncio.to_thread(archive.stop) in (0, None)
    assert UNFORESEEN not in archive.log


async def test_what_synapse_loses_is_found_when_it_is_back(
    start_synapse: Callable[..., Awaitable[Synapse]],
    archive: Archiver,
    http: aiohttp.ClientSession,
) -> None:
    """Pushes hang, Synapse is killed with them in its memory: the archive notices that it was
    restarted, finds every one in the history, and counts them."""
    synapse, people, reader = await _beginning(start_synapse, archive, http)
    async with _intake_hangs(archive):
        mxcs = await _post(people, 150)
        await asyncio.to_thread(synapse.kill)
    await eventually("it is missed", lambda: "the homeserver is away" in archive.log)
    await asyncio.to_thread(synapse.start)
    await reader.until("ready", *mxcs, timeout=120)
    lost = await _lost(archive)
    assert lost >= LOST_AT_LEAST
    assert await _gap_events(http, archive) == lost
    assert await reader.download(mxcs[-1]) == _picture(149)
    report = await _command(archive)
    assert {(row["reason"], row["found"]) for row in report} == {(None, 0)}


async def test_what_was_lost_while_the_archive_was_down_is_found_at_its_start(
    start_synapse: Callable[..., Awaitable[Synapse]],
    archive: Archiver,
    http: aiohttp.ClientSession,
) -> None:
    """Synapse and the archive die together; the archive comes back last, and misses nothing, not
    even in a room that it never heard of."""
    synapse, people, _ = await _beginning(start_synapse, archive, http)
    async with _intake_hangs(archive):
        mxcs = await _post(people, 60)
        people.room = await people.alice.create_room(name="Unheard of")
        mxcs += await _post(people, 30)
        await asyncio.to_thread(synapse.kill)
        await asyncio.to_thread(archive.kill)
    await asyncio.to_thread(synapse.start)
    reader = await started(archive, http)
    await reader.until("ready", *mxcs, timeout=120)
    assert await _lost(archive) > 0


async def _beginning(
    start_synapse: Callable[..., Awaitable[Synapse]],
    archive: Archiver,
    http: aiohttp.ClientSession,
) -> tuple[Synapse, People, Reader]:
    """A homeserver with the archive's bot as an administrator, and people with one picture."""
    synapse = await start_synapse(registrations=[archive.registration])
    archive.configure(synapse.url)
    people = await newcomers(synapse, http)
    await asyncio.to_thread(archive.start)
    await eventually("the bot is there", lambda: "the homeserver reaches us" in archive.log)
    await people.admin.make_admin(BOT)
    assert await asyncio.to_thread(archive.stop) == 0
    reader = await started(archive, http)
    mxcs = await _post(people, 1)
    await reader.until("ready", *mxcs)
    assert all(row["reason"] is None for row in await _command(archive))
    return synapse, people, reader


@asynccontextmanager
async def _intake_hangs(archive: Archiver) -> AsyncIterator[None]:
    """Until the end of the block no push is answered."""
    conn = await asyncpg.connect(archive.dsn)
    try:
        await conn.execute("BEGIN; LOCK TABLE event IN EXCLUSIVE MODE")
        yield
    finally:
        conn.terminate()


def _picture(number: int) -> bytes:
    return png(8, 8, (number, 80, 90)) + str(number).encode()


async def _post(people: People, count: int) -> list[str]:
    mxcs = []
    for number in range(count):
        mxcs.append(await people.alice.upload(_picture(number)))
        await people.alice.send_image(people.room, mxcs[-1])
    return mxcs


async def _lost(archive: Archiver) -> int:
    """How many events were never pushed, by what is recorded of each."""
    conn = await asyncpg.connect(archive.dsn)
    try:
        return int(await conn.fetchval(LOST))
    finally:
        await conn.close()


async def _gap_events(http: aiohttp.ClientSession, archive: Archiver) -> int:
    headers = {"Authorization": f"Bearer {archive.token}"}
    async with http.get(f"{archive.url}/metrics", headers=headers) as response:
        found = re.search(
            r"^archiver_gap_events_total (\S+)$", await response.text(), re.MULTILINE
        )
    assert found
    return int(float(found[1]))


async def _command(archive: Archiver) -> list[dict[str, object]]:
    """What `archiver reconcile` says of each room."""
    told = await asyncio.to_thread(
        archive.command, "reconcile", "--json", "-c", str(archive.config)
    )
    report: list[dict[str, object]] = orjson.loads(told)
    return report
