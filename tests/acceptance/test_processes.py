"""Processes that end in good order, and several that share the work."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.acceptance.conftest import made_lone, started
from tests.acceptance.hostile import INLINE_LIMIT, SERVER_NAME, bytes_of
from tests.support.archiver import Archiver, eventually
from tests.support.homeserver import Answer, Homeserver, body, held

LONG_LEASE = "1h"
CONCURRENCY = 4
SHARED = {
    "storage": {"inline_limit": INLINE_LIMIT},
    "worker": {"concurrency": CONCURRENCY},
    "log": {"level": "debug"},
}


def media_held_by(gate: asyncio.Event) -> Answer:
    """Every media, as its id describes it, once the gate is open."""

    async def answer(request: web.Request) -> web.StreamResponse:
        data = bytes_of(request.path.rpartition("/")[2])
        return await held(gate, data)(request) if data else await body(data)(request)

    return answer


def mxc(media_id: str) -> str:
    """The URI of a media that `bytes_of` knows."""
    return f"mxc://{SERVER_NAME}/{media_id}"


def transaction(*media_ids: str) -> bytes:
    """A push of one image an event."""
    events = (
        f'{{"event_id": "${media_id}", "type": "m.room.message",'
        f' "content": {{"url": "{mxc(media_id)}"}}}}'
        for media_id in media_ids
    )
    return f'{{"events": [{", ".join(events)}]}}'.encode()


@pytest.mark.parametrize(
    "end",
    [Archiver.stop, Archiver.interrupt, Archiver.interrupt_twice],
    ids=["SIGTERM", "Ctrl-C", "timeout(1)"],
)
async def test_an_archiver_ends_in_good_order(
    lone_archive: Archiver, http: aiohttp.ClientSession, end: Callable[[Archiver], int | None]
) -> None:
    """Asked to end while downloads hang, it exits with 0 within its deadline, leaves no process,
    and gives its claims back, so that the next start takes them at once."""
    gate = asyncio.Event()
    media_ids = [f"{number}-{number}-{size}" for number, size in enumerate((10, 5000, 900_000))]
    async with Homeserver() as homeserver:
        homeserver.give_everything(media_held_by(gate))
        worker = {"lease": LONG_LEASE, "stop_within": "1s"}
        lone_archive.configure(homeserver.url, {"worker": worker})
        reader = await started(lone_archive, http)
        assert await lone_archive.push(http, transaction(*media_ids), "1") == 200
        await eventually("downloads hang", lambda: len(homeserver.downloads) == len(media_ids))
        assert len(_processes_in(lone_archive.folder)) > 1
        assert await asyncio.to_thread(end, lone_archive) == 0
        assert _processes_in(lone_archive.folder) == []
        gate.set()
        await asyncio.to_thread(lone_archive.start)
        await reader.until("ready", *map(mxc, media_ids))
        for media_id in media_ids:
            assert await reader.download(mxc(media_id)) == bytes_of(media_id)
            assert (await reader.state(mxc(media_id)))["attempts"] == 2


async def test_a_lease_that_nobody_gave_back_runs_out(
    lone_archive: Archiver, http: aiohttp.ClientSession
) -> None:
    """What a killed archiver was working on is fetched again by the next one."""
    gate = asyncio.Event()
    async with Homeserver() as homeserver:
        homeserver.give_everything(media_held_by(gate))
        lone_archive.configure(homeserver.url, {"worker": {"lease": "1s"}})
        reader = await started(lone_archive, http)
        assert await lone_archive.push(http, transaction("0-1-5000"), "1") == 200
        await eventually("the download hangs", lambda: len(homeserver.downloads) == 1)
        await asyncio.to_thread(lone_archive.kill)
        gate.set()
        await asyncio.to_thread(lone_archive.start)
        await reader.until("ready", mxc("0-1-5000"))
        assert len(homeserver.downloads) == 2


async def test_workers_share_one_queue(
    services_folder: Path, empty_database_url: str, http: aiohttp.ClientSession
) -> None:
    """Two worker processes beside a third for the rest fetch every media once, and both work."""
    gate = asyncio.Event()
    sizes = (100, INLINE_LIMIT + 1)
    media_ids = [f"{number}-{number % 70}-{sizes[number % 2]}" for number in range(200)]
    archive = await asyncio.to_thread(made_lone, services_folder, "intake,serve,bot")
    workers = [archive.helper(f"worker{number}", "worker") for number in (1, 2)]
    async with Homeserver() as homeserver:
        homeserver.give_everything(media_held_by(gate))
        archive.configure(homeserver.url, {**SHARED, "database": {"url": empty_database_url}})
        try:
            reader = await started(archive, http)
            for worker in workers:
                await asyncio.to_thread(worker.start)
            assert await archive.push(http, transaction(*media_ids), "1") == 200
            busy = 2 * CONCURRENCY
            await eventually("both are at work", lambda: len(homeserver.downloads) == busy)
            gate.set()
            await reader.until("ready", *map(mxc, media_ids))
            for media_id in media_ids:
                assert await reader.download(mxc(media_id)) == bytes_of(media_id)
        finally:
            stops = [*(worker.stop for worker in workers), archive.stop]
            ended = [await asyncio.to_thread(stop) for stop in stops]
        fetched = Counter(seen.path.rpartition("/")[2] for seen in homeserver.downloads)
    assert ended == [0, 0, 0]
    assert fetched == Counter(media_ids)
    shares = [worker.log.read_text("utf-8").count(" archived ") for worker in workers]
    assert sum(shares) == len(media_ids)
    assert min(shares) >= CONCURRENCY


def _processes_in(folder: Path) -> list[str]:
    """The command lines of the processes that work in a folder, as PostgreSQL's all do."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append((process / "cmdline").read_text("utf-8", "replace"))
        except OSError:  # it ended, or is none of ours
            continue
    return found
