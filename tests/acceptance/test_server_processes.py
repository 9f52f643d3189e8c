"""`serve.processes`: several processes answer readers at one address, and come and go together."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.acceptance.conftest import started
from tests.support.archiver import Archiver, eventually
from tests.support.homeserver import Homeserver

PROCESSES = 3
ASKED = 60
MOST_TRIES = 200


@pytest.fixture
async def several(
    lone_archive: Archiver, empty_database_url: str, http: aiohttp.ClientSession
) -> AsyncIterator[Archiver]:
    """An archive with so many serving processes, all up."""
    async with together(lone_archive, http, empty_database_url):
        yield lone_archive
        await asyncio.to_thread(lone_archive.stop)


@asynccontextmanager
async def together(
    archive: Archiver, http: aiohttp.ClientSession, database_url: str = "embedded"
) -> AsyncIterator[None]:
    """The archive runs with PROCESSES; so does a homeserver, as long as the block."""
    async with Homeserver() as homeserver:
        settings = {"serve": {"processes": PROCESSES}, "database": {"url": database_url}}
        archive.configure(homeserver.url, settings)
        await started(archive, http)
        await until_serving(archive, PROCESSES)
        yield


async def until_serving(archive: Archiver, number: int) -> None:
    """Waits until so many processes answer readers."""

    async def there() -> bool:
        return await metric(archive, "archiver_serving_processes") == number

    await eventually(f"{number} processes serve", there)


async def metric(archive: Archiver, name: str) -> float:
    """A figure of /metrics, as whichever process tells it; 0 where there is none."""
    for line in (await asked(archive, "/metrics")).splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return 0


async def asked(archive: Archiver, path: str, seconds: float = 20) -> str:
    """The body of a GET over a connection of its own, which the kernel gives to any process."""
    headers = {"Authorization": f"Bearer {archive.token}"}
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(seconds)) as alone,
        alone.get(archive.url + path) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return await answer.text()


async def status(archive: Archiver) -> int:
    """How a token is welcomed over a connection of its own."""
    headers = {"Authorization": f"Bearer {archive.token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as alone,
        alone.get(f"{archive.url}/api/v1/stats") as answer,
    ):
        return answer.status


def children_of(archive: Archiver) -> list[int]:
    """The process ids of those that only serve."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            line = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended
            continue
        if parent == archive.pid and b"--only" in line:
            found.append(int(process.name))
    return found


def folder_of(archive: Archiver) -> Path:
    """Where its processes count together."""
    environment = Path(f"/proc/{archive.pid}/environ").read_bytes().split(b"\0")
    (folder,) = (line for line in environment if line.startswith(b"PROMETHEUS_MULTIPROC_DIR="))
    return Path(os.fsdecode(folder.partition(b"=")[2]))


def lives(pid: int) -> bool:
    """False for what ended, also if nobody was told so yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def halted(*pids: int) -> Iterator[None]:
    """They do nothing meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def answers_at_last(archive: Archiver) -> bool:
    """Whether one of many connections reaches a process that is not halted."""
    for _ in range(MOST_TRIES):
        try:
            await asked(archive, "/healthz", 0.2)
        except TimeoutError:
            continue
        return True
    return False


async def test_every_process_answers(several: Archiver) -> None:
    """Each of them does while the others are halted."""
    processes = [several.pid, *children_of(several)]
    assert len(processes) == PROCESSES
    for process in processes:
        with halted(*(other for other in processes if other != process)):
            assert await answers_at_last(several)


async def test_metrics_are_of_all(several: Archiver) -> None:
    """Whoever is asked tells what all counted, and what only the first one looks up."""
    name = 'archiver_requests_total{route="/healthz",status="200"}'
    before = await metric(several, name)
    await asyncio.gather(*(asked(several, "/healthz") for _ in range(ASKED)))
    told = [await metric(several, name) for _ in range(3 * PROCESSES)]
    assert min(told) >= before + ASKED
    assert max(told) < before + ASKED + 20  # whoever looks whether it is up asks, too
    covered = await asked(several, "/metrics")
    assert covered.count("\narchiver_encrypted_events 0.0\n") == 1
    assert "pid=" not in covered


async def test_one_that_is_killed_comes_back(several: Archiver) -> None:
    """Meanwhile the others answer, and nothing that it counted is lost."""
    name = 'archiver_requests_total{route="/healthz",status="200"}'
    await asyncio.gather(*(asked(several, "/healthz") for _ in range(ASKED)))
    victim, other = children_of(several)
    before = await metric(several, name)
    os.kill(victim, signal.SIGKILL)
    await eventually("it is gone", lambda: not lives(victim))
    for _ in range(ASKED):
        await asked(several, "/healthz")
    assert await metric(several, name) >= before + ASKED
    await eventually("another is there", lambda: len(children_of(several)) == PROCESSES - 1)
    await until_serving(several, PROCESSES)
    assert other in children_of(several)
    assert "signal 9 ended it" in several.log


async def test_a_revoked_token_is_refused_by_all(several: Archiver) -> None:
    """Each had let it in, and hears of it at once."""
    for _ in range(ASKED):
        assert await status(several) == 200
    secret = several.token
    listed = await asyncio.to_thread(several.command, "token", "list", "-c", str(several.config))
    name = next(word for word in listed.split() if word.startswith("test-"))
    await asyncio.to_thread(several.command, "token", "revoke", name, "-c", str(several.config))
    assert several.token == secret
    assert {await status(several) for _ in range(ASKED)} == {401}


async def test_sigterm_ends_all_in_good_order(several: Archiver) -> None:
    """None is left, nor the folder in which they counted."""
    processes, folder = children_of(several), folder_of(several)
    assert folder.is_dir()
    assert await asyncio.to_thread(several.stop) == 0
    assert not any(map(lives, processes))
    assert not folder.exists()
    assert several.log.count("the archive has stopped") == PROCESSES


async def test_ctrl_c_ends_all_in_good_order(several: Archiver) -> None:
    """It reaches the first one, which ends the others."""
    processes = children_of(several)
    assert await asyncio.to_thread(several.interrupt) == 0
    assert not any(map(lives, processes))


async def test_none_outlives_a_killed_parent(
    lone_archive: Archiver, http: aiohttp.ClientSession
) -> None:
    """They end by themselves and remove the folder, though the embedded database goes as well;
    the next start is as the first. Its password was in no command line."""
    async with together(lone_archive, http):
        processes, folder = children_of(lone_archive), folder_of(lone_archive)
        password = (lone_archive.folder / "data/postgres/password").read_text("utf-8").strip()
        for pid in processes:
            assert password not in Path(f"/proc/{pid}/cmdline").read_text("utf-8")
        os.kill(lone_archive.pid, signal.SIGKILL)
        await eventually("all are gone", lambda: not any(map(lives, processes)))
        assert not folder.exists()
        await asyncio.to_thread(lone_archive.kill)
        await asyncio.to_thread(lone_archive.start)
        await until_serving(lone_archive, PROCESSES)


async def test_another_archive_is_kept_from_the_address(several: Archiver) -> None:
    """Sharing it is for one archive's own processes: another is told what is wrong."""
    second = await asyncio.to_thread(
        several.attempt, "run", "--only", "serve", "-c", str(several.config)
    )
    assert second.returncode == 1
    assert "is another archiver running?" in second.stderr
    assert len(children_of(several)) == PROCESSES - 1


def test_too_many_for_the_embedded_database(lone_archive: Archiver) -> None:
    """It is a mistake of the configuration that is told at the start."""
    lone_archive.configure("http://127.0.0.1:1", {"serve": {"processes": 9}})
    done: subprocess.CompletedProcess[str] = lone_archive.attempt(
        "run", "-c", str(lone_archive.config)
    )
    assert done.returncode == 2
    assert "serve.processes: with database.url embedded there may be 8" in done.stderr
