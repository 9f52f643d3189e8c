"""Archives beside real homeservers, and people who post there."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import yaml

from demo.people import People
from tests.support.archiver import ARCHIVER, Archiver, Reader
from tests.support.homeserver import TOKEN
from tests.support.process import Server, answers, free_port
from tests.support.synapse import Synapse

NEVER_RAN = None
UNFORESEEN = "Traceback"


@dataclass(frozen=True)
class Site:
    """A real homeserver that runs, and an archive that it pushes to, not started yet.

    `config` is the configuration as `init` wrote it.
    """

    synapse: Synapse
    archive: Archiver
    config: str


@pytest.fixture(scope="module")
def site(services_folder: Path, synapse_python: Path) -> Iterator[Site]:
    """Shared by the tests of a module, for what does not need a homeserver of its own."""
    folder = new_folder(services_folder)
    archive = Archiver(folder / "archive")
    archive.init()
    synapse = Synapse(synapse_python, folder / "synapse", registrations=[archive.registration])
    synapse.start()
    yield Site(synapse, archive, archive.config.read_text("utf-8"))
    synapse.stop()
    assert UNFORESEEN not in archive.log


@pytest.fixture
async def archive(site: Site) -> AsyncIterator[Archiver]:
    """The archive of the site, configured as `init` does it and not started; ended after.

    Its embedded database is shared by the tests of a module.
    """
    site.archive.config.write_text(site.config, "utf-8")
    site.archive.configure(site.synapse.url)
    yield site.archive
    assert await asyncio.to_thread(site.archive.stop) in (0, NEVER_RAN)


@pytest.fixture
async def lone_archive(services_folder: Path) -> AsyncIterator[Archiver]:
    """An archive for `support.homeserver`, whose token it has; not started; ended after."""
    archive = await asyncio.to_thread(made_lone, services_folder)
    yield archive
    assert await asyncio.to_thread(archive.stop) in (0, NEVER_RAN)
    assert UNFORESEEN not in archive.log


@pytest.fixture
async def second_url(archive: Archiver, http: aiohttp.ClientSession) -> AsyncIterator[str]:
    """The archive, started, has another serving process, which is reached there."""
    await started(archive, http)
    port = free_port()
    settings = yaml.safe_load(archive.config.read_text("utf-8"))
    settings["serve"]["listen"] = f"127.0.0.1:{port}"
    settings["database"]["url"] = archive.dsn
    config = archive.folder / "second.yaml"
    config.write_text(yaml.safe_dump(settings), "utf-8")
    url = f"http://127.0.0.1:{port}"
    second = Server(
        "second archiver",
        [*ARCHIVER, "run", "-c", str(config), "--only", "serve"],
        archive.folder / "second.log",
        ready=lambda: answers(f"{url}/healthz"),
    )
    await asyncio.to_thread(second.start)
    yield url
    await asyncio.to_thread(second.stop)


@pytest.fixture
async def people(site: Site, http: aiohttp.ClientSession) -> People:
    """People of this test, in rooms of their own."""
    return await newcomers(site.synapse, http)


async def newcomers(synapse: Synapse, http: aiohttp.ClientSession) -> People:
    """An administrator and two more new users, in a room of all and a room of two."""
    suffix = secrets.token_hex(4)
    people = People(
        await synapse.register(http, f"admin-{suffix}", admin=True),
        await synapse.register(http, f"alice-{suffix}"),
        await synapse.register(http, f"bob-{suffix}"),
    )
    await people.gather()
    return people


async def started(archive: Archiver, http: aiohttp.ClientSession) -> Reader:
    """Starts the archive and returns someone who reads it."""
    await asyncio.to_thread(archive.start)
    token = await asyncio.to_thread(lambda: archive.token)
    return Reader(http, archive.url, token)


def made_lone(services_folder: Path, only: str | None = None) -> Archiver:
    """An archive with the token of `support.homeserver`, for the parts `only`; not started."""
    archive = Archiver(new_folder(services_folder) / "archive", only=only)
    archive.init()
    registration = yaml.safe_load(archive.registration.read_text("utf-8"))
    registration["as_token"] = TOKEN
    archive.registration.write_text(yaml.safe_dump(registration), "utf-8")
    return archive


def new_folder(services_folder: Path) -> Path:
    """A folder that PostgreSQL's user can pass through; gone with the others."""
    folder = Path(tempfile.mkdtemp(dir=services_folder))
    folder.chmod(0o711)
    return folder
