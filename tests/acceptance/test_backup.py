"""Backup and restore as docs/operating.md says it, word by word, and what keeps a dump whole."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from demo.people import People
from tests.acceptance.conftest import NEVER_RAN, UNFORESEEN, Site, new_folder, started
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.samples import png

DOCUMENT = Path(__file__).parents[2] / "docs" / "operating.md"
HEADING = "## Backup and restore\n"
INLINE_LIMIT = 64 * 1024
LARGE = 200_000
SEVERAL_PAGES = 110  # of the room's history, with the first of 100 events
PATIENCE = 300.0  # seconds; nothing is waited for that long but on a machine that does much else
THUMBNAIL = "/_matrix/client/v1/media/thumbnail/{}?width=96&height=96&method=crop"
CUSTODY = "SELECT id, actor, action, target, detail FROM custody ORDER BY id"
HOLDS = "SELECT kind, target, reason FROM hold WHERE released_at IS NULL"
# Each ends well, and says so.
SAID = {
    "archiver doctor": "ok",
    "archiver custody verify": "",
    "archiver verify --all": "Nothing is damaged",
    "archiver sweep": "Nothing is left over, and nothing is missing",
    "archiver reconcile": "2 rooms compared",
}


def documented() -> list[list[str]]:
    """The lines of the section's blocks: to back up, to restore, and to look."""
    section = DOCUMENT.read_text("utf-8").partition(HEADING)[2].partition("\n## ")[0]
    return [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]


async def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """A line of the document, said in this folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return await asyncio.to_thread(
        subprocess.run, ["bash", "-c", line], cwd=folder, env={**os.environ, "PATH": path},
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


async def say(folder: Path, *lines: str) -> list[str]:
    """The same, of lines that have to end well; what each printed."""
    printed = []
    for line in lines:
        done = await shell(folder, line)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        printed.append(done.stdout)
    return printed


@asynccontextmanager
async def posting(people: People, reader: Reader) -> AsyncIterator[dict[str, bytes]]:
    """Somebody posts small and large media all the time."""
    posted: dict[str, bytes] = {}

    async def go_on() -> None:
        number = 0
        while True:
            number += 1
            mxc = await post(people, posted, number % 2 * LARGE + 1000 + number)
            await reader.until("ready", mxc, timeout=PATIENCE)  # or a slow machine falls behind

    task = asyncio.create_task(go_on())
    try:
        yield posted
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def post(people: People, posted: dict[str, bytes], size: int) -> str:
    """A file of random bytes."""
    data = secrets.token_bytes(size)
    mxc = await people.alice.upload(data, "application/octet-stream", "file")
    content = {"msgtype": "m.file", "body": "file", "url": mxc}
    await people.alice.send(people.room, "m.room.message", content)
    posted[mxc] = data
    return mxc


async def rows(archive: Archiver, statement: str) -> list[tuple[Any, ...]]:
    """What its database says."""
    conn = await asyncpg.connect(archive.dsn)
    try:
        return [tuple(row) for row in await conn.fetch(statement)]
    finally:
        await conn.close()


async def collect_garbage(archive: Archiver) -> None:
    """Until what is due has gone: another object is, for the last."""
    conn = await asyncpg.connect(archive.dsn)
    try:
        await conn.execute("INSERT INTO garbage (sha256, due_at) VALUES (sha256('due'), now())")

        async def gone() -> bool:
            return not await conn.fetchval(
                "SELECT EXISTS (SELECT FROM garbage WHERE sha256 = sha256('due'))"
            )

        await eventually("garbage is collected", gone, PATIENCE)
    finally:
        await conn.close()


@pytest.fixture
async def elsewhere(archive: Archiver, services_folder: Path) -> AsyncIterator[Archiver]:
    """Another machine, with nothing on it, which the homeserver reaches at the same address."""
    other = Archiver(new_folder(services_folder) / "elsewhere")
    other.folder.mkdir()
    other.push_port, other.serve_port = archive.push_port, archive.serve_port
    yield other
    assert await asyncio.to_thread(other.stop) in (0, NEVER_RAN)
    assert UNFORESEEN not in other.log


async def test_everything_is_lost_and_restored_elsewhere(
    site: Site, archive: Archiver, elsewhere: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """The archive runs and takes media while it is backed up. Then its disk is gone. On another
    machine all of the backup is there, and what came later is fetched."""
    to_back_up, to_restore, to_look = documented()
    archive.configure(site.synapse.url, {"storage": {"inline_limit": INLINE_LIMIT}})
    reader, posted = await started(archive, http), dict[str, bytes]()
    there = "the homeserver reaches us"
    await eventually("the bot is there", lambda: there in archive.log, PATIENCE)
    await people.admin.make_admin(f"@archiver:{site.synapse.server_name}")
    picture = await people.bob.upload(png(640, 480, (90, 170, 60)))
    await people.bob.send_image(people.room, picture)
    held, goes = await post(people, posted, LARGE), await post(people, posted, LARGE + 1)
    await post(people, posted, 5_000)
    await reader.until("ready", picture, *posted, timeout=PATIENCE)
    thumbnail = THUMBNAIL.format(picture.removeprefix("mxc://"))
    seen = {path: await reader.body(path) for path in (thumbnail,)}
    await say(archive.folder, f"archiver hold {held} as the test wants it")

    before: list[tuple[Any, ...]] = []
    async with posting(people, reader) as meanwhile:
        for line in to_back_up:
            # In another order its row would be in the backup, and its bytes would not.
            await reader.until("ready", await post(people, meanwhile, LARGE), timeout=PATIENCE)
            await say(archive.folder, line)
            if "database dump" in line:
                before = await rows(archive, CUSTODY)
                await say(archive.folder, f"archiver delete {goes} --yes")
                assert (await reader.state(goes))["state"] == "deleted"
                await collect_garbage(archive)  # and its bytes stay nevertheless
    later: dict[str, bytes] = {}
    await post(people, later, LARGE)
    for _ in range(SEVERAL_PAGES):
        await post(people, later, 100)
    await reader.until("ready", *meanwhile, *later, timeout=PATIENCE)
    backup = elsewhere.folder / "backup"
    await asyncio.to_thread(shutil.move, archive.folder / "backup", backup)
    await asyncio.to_thread(archive.kill)
    await asyncio.to_thread(shutil.rmtree, archive.folder / "data", ignore_errors=True)

    await say(elsewhere.folder, *to_restore)
    # Before it runs, and the homeserver mends what is not there.
    [told] = await say(elsewhere.folder, "archiver verify --all")
    assert "Nothing is damaged" in told
    await asyncio.to_thread(elsewhere.start)
    reader = Reader(http, elsewhere.url, archive.token)
    printed = await say(elsewhere.folder, *to_look)
    assert to_look == list(SAID)
    for line, told in zip(to_look, printed, strict=True):
        assert SAID[line] in told, (line, told)
    everything = {**posted, **meanwhile, **later}
    await reader.until("ready", picture, *everything, timeout=PATIENCE)
    for mxc, data in everything.items():
        assert await reader.download(mxc) == data
    assert {path: await reader.body(path) for path in seen} == seen
    after = await rows(elsewhere, CUSTODY)
    assert after[: len(before)] == before
    assert (before[-1][2], after[len(before)][2]) == ("database dump", "database restore")
    assert await rows(elsewhere, HOLDS) == [("mxc", held, "as the test wants it")]


async def test_a_dump_that_breaks_off_is_told_and_leaves_the_older_one(
    lone_archive: Archiver, database_url: str
) -> None:
    """A full disk, a quota, a database in use: a sentence each, and never half of a file."""
    settings = {"database": {"url": database_url}}
    lone_archive.configure("http://127.0.0.1:1", settings)
    folder, dump = lone_archive.folder, lone_archive.folder / "archive.dump"
    await say(folder, "archiver database dump archive.dump")
    older = dump.read_bytes()
    full = await shell(folder, "archiver database dump - > /dev/full")
    assert (full.returncode, "o space left on device; make room" in full.stderr) == (1, True)
    quota = await shell(folder, "ulimit -f 8; archiver database dump archive.dump")
    assert (quota.returncode, "archive.dump was not written" in quota.stderr) == (1, True)
    assert dump.read_bytes() == older
    assert [path.name for path in folder.glob("archive.dump*")] == [dump.name]
    in_use = await shell(folder, "archiver database restore archive.dump")
    assert (in_use.returncode, "is not empty" in in_use.stderr) == (1, True)
    for done in (full, quota, in_use):
        assert UNFORESEEN not in done.stderr
        assert done.stderr.startswith("archiver: ")
    conn = await asyncpg.connect(database_url)
    try:
        assert await conn.fetchval("SELECT count(*) FROM custody") == 3
    finally:
        await conn.close()


async def test_a_dump_goes_through_pipes(
    lone_archive: Archiver, database_url: str, empty_database_url: str
) -> None:
    """Written to standard output, and read from standard input."""
    folder = lone_archive.folder
    lone_archive.configure("http://127.0.0.1:1", {"database": {"url": database_url}})
    await say(folder, "set -o pipefail; archiver database dump - | gzip > archive.dump.gz")
    lone_archive.configure("http://127.0.0.1:1", {"database": {"url": empty_database_url}})
    await say(folder, "set -o pipefail; gunzip -c archive.dump.gz | archiver database restore -")
    conn = await asyncpg.connect(empty_database_url)
    try:
        actions = [row[0] for row in await conn.fetch("SELECT action FROM custody ORDER BY id")]
    finally:
        await conn.close()
    assert actions == ["database dump", "database restore"]
