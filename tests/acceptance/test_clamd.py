"""An archive beside a real homeserver and a real clamd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from demo.people import People
from tests.acceptance.conftest import Site, new_folder, started
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.clamd import FOUND, INFECTION, Clamd
from tests.support.matrix import MatrixUser
from tools.setup_services import service_program


@pytest.fixture
def clamd(services_folder: Path) -> Iterator[Clamd]:
    """Not started yet; ended after."""
    server = Clamd(service_program("clamd"), new_folder(services_folder) / "clamd")
    yield server
    server.stop()


async def post(user: MatrixUser, room: str, data: bytes) -> str:
    """Returns the mxc URI of a file."""
    mxc = await user.upload(data, "application/octet-stream", "file.bin")
    content = {"msgtype": "m.file", "body": "file.bin", "url": mxc}
    await user.send(room, "m.room.message", content)
    return mxc


async def until_scanned(reader: Reader, outcome: str, *mxcs: str) -> None:
    """Waits until that was found in them."""

    async def is_scanned() -> bool:
        scans = [(await reader.state(mxc))["blob"]["scan"] for mxc in mxcs]
        return all(scan and scan["outcome"] == outcome for scan in scans)

    await eventually(f"the scanner calls them {outcome}", is_scanned)


async def test_what_clamd_finds_is_hidden_and_an_outage_hides_nothing(
    site: Site, archive: Archiver, people: People, clamd: Clamd, http: aiohttp.ClientSession
) -> None:
    """What comes while clamd is away is archived and read; when it is back, it is looked at."""
    alice, bob, room = people.alice, people.bob, people.room
    archive.configure(site.synapse.url, {"scan": {"with": "clamd", "clamd": clamd.address}})
    reader = await started(archive, http)
    infected = os.urandom(100) + INFECTION
    first = await post(alice, room, infected)
    await reader.until("ready", first)
    await until_scanned(reader, "unscanned", first)
    assert (await reader.state(first))["state"] == "ready"
    path = f"/_matrix/client/v1/media/download/{first.removeprefix('mxc://')}"
    assert await reader.body(path) == infected
    told = await asyncio.to_thread(archive.attempt, "scan", "-c", str(archive.config))
    assert "is away, and nothing is called infected for that" in told.stdout

    await asyncio.to_thread(clamd.start)
    good = await post(bob, room, os.urandom(100))
    again = await asyncio.to_thread(archive.attempt, "scan", first, "-c", str(archive.config))
    assert "1 file of" in again.stdout, again.stderr
    await reader.until("quarantined", first)
    await until_scanned(reader, "clean", good)
    await until_scanned(reader, "infected", first)
    assert (await reader.state(first))["blob"]["scan"]["reason"] == FOUND
    assert await reader.lacks(path)

    second = await post(bob, room, infected)
    await reader.until("quarantined", second)
    assert (await reader.state(good))["state"] == "ready"
