"""Real servers for the tests: each is started when the first test asks for it.

Every fixture here that is a server ends it, on Ctrl-C and on SIGTERM too. When a test fails, the
report shows the end of the log of every server that was up.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from archiver.db.pool import open_pool
from tests.support.moto import Moto
from tests.support.postgres import PostgresProcess, PostgresServer
from tests.support.process import running
from tests.support.swift import S3Endpoint, Swift
from tests.support.synapse import Synapse
from tools.setup_services import at_hand, service_python

if TYPE_CHECKING:
    from archiver.db.pool import Pool

# No wheel and no npm package holds clamd: what needs it is for machines that can have it.
PREFIX = "archiver-test-"
MEMORY, ROOM = Path("/dev/shm"), 8 * 1024**3  # noqa: S108  # a folder of our own is made there
CLAMD_TESTS = ["integration/test_clamd.py", "acceptance/test_clamd.py"]
collect_ignore = [] if at_hand("clamd") else CLAMD_TESTS


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def pytest_configure(config: pytest.Config) -> None:
    """Makes a SIGTERM end the run as Ctrl-C does, so that the servers are ended."""
    previous = signal.signal(signal.SIGTERM, _interrupt)

    def restore() -> None:
        signal.signal(signal.SIGTERM, previous)

    config.add_cleanup(restore)


def pytest_report_header() -> list[str]:
    """Says which tests are left out, because this machine lacks what they need."""
    missing = "clamd: not here, its tests are left out (`make services` gets it by apt-get)"
    return [] if at_hand("clamd") else [missing]


def pytest_unconfigure() -> None:
    """Ends what an interrupt left behind while a fixture was still starting it."""
    for server in running():
        server.kill()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What the servers wrote during earlier tests tells nothing of this one."""
    for server in running():
        server.turn_page()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds to the report of a failure what the servers wrote during the test."""
    report = yield
    if report.failed:
        for server in running():
            if told := server.log_tail():
                report.sections.append((f"log of {server.name}", told))
    return report


def _memory() -> Path | None:
    """A file system in memory, where there is one with room: making the thousand files of a new
    database takes a disk's journal ten times as long, and thousands of databases are made."""
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return None
    fits = found.f_bavail * found.f_frsize >= ROOM and not found.f_flag & os.ST_NOEXEC
    return MEMORY if fits and os.access(MEMORY, os.W_OK) else None


@pytest.fixture(scope="session")
def services_folder() -> Iterator[Path]:
    """Where the servers keep their data and logs; gone at the end.

    Not one of pytest's own folders, because PostgreSQL's user could not pass through those.
    """
    memory = _memory()
    if memory:
        _remove_leftovers(memory)
    with _new_folder(memory) as folder:
        yield folder


@pytest.fixture(scope="session")
def disk_folder() -> Iterator[Path]:
    """The same on a disk, for what a file system in memory may lack."""
    with _new_folder(None) as folder:
        yield folder


def _remove_leftovers(memory: Path) -> None:
    """What a killed run left there a day ago or longer: it would stay until the machine is off."""
    for old in memory.glob(f"{PREFIX}*"):
        if time.time() - old.stat().st_mtime > 24 * 3600:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _new_folder(where: Path | None) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=where))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server(services_folder: Path) -> Iterator[PostgresServer]:
    """The PostgreSQL that all tests share: ours, or ARCHIVER_TEST_DATABASE_URL's."""
    if url := os.environ.get("ARCHIVER_TEST_DATABASE_URL"):
        server = PostgresServer(url)
        yield server
        asyncio.run(server.close())
        return
    process = PostgresProcess(services_folder / "postgres")
    process.start()
    try:
        yield PostgresServer(process.url)
    finally:
        process.stop()


@pytest.fixture
async def empty_database_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """A new database with nothing in it."""
    url = await postgres_server.create()
    yield url
    await postgres_server.drop(url)


@pytest.fixture
async def database_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """A new database with every migration applied."""
    url = await postgres_server.create_migrated()
    yield url
    await postgres_server.drop(url)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    """Connections to a new, migrated database."""
    async with open_pool(database_url, 10) as opened:
        yield opened


@pytest.fixture
def own_postgres(services_folder: Path) -> Iterator[PostgresProcess]:
    """A durable PostgreSQL, up and empty, that this test may stop, kill and start again."""
    folder = Path(tempfile.mkdtemp(prefix="own-postgres-", dir=services_folder))
    folder.chmod(0o711)
    process = PostgresProcess(folder / "server", durable=True)
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def swift(disk_folder: Path) -> Iterator[Swift]:
    """The S3 server that all tests share; who stops it starts it again."""
    server = Swift(service_python("swift"), disk_folder / "swift")  # extended attributes
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def moto(services_folder: Path) -> Iterator[Moto]:
    """The S3 server with Object Lock that all tests share."""
    server = Moto(service_python("moto"), services_folder / "moto")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3(swift: Swift) -> S3Endpoint:
    """How to reach the S3 server. Every test makes a bucket of its own."""
    return swift.endpoint


@pytest.fixture(scope="session")
def synapse_python() -> Path:
    """The interpreter of the environment that has Synapse, for `Synapse(...)`."""
    return service_python("synapse")


@pytest.fixture
async def start_synapse(
    synapse_python: Path, tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[Synapse]]]:
    """Starts a homeserver of this test's own, with the keywords of `Synapse`; ended after it."""
    started: list[Synapse] = []

    async def start(**keywords: Any) -> Synapse:
        synapse = Synapse(synapse_python, tmp_path / f"synapse{len(started)}", **keywords)
        started.append(synapse)
        await asyncio.to_thread(synapse.start)
        return synapse

    yield start
    for synapse in started:
        await asyncio.to_thread(synapse.stop)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client for whatever a test wants to ask over HTTP."""
    async with aiohttp.ClientSession() as session:
        yield session
