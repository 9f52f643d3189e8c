"""How fast media go, what readers notice of it, and what looking after many of them costs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from bench import filling
from bench.figures import Figures, Goal, Other, Row, Section, number
from bench.ground import Ground, client, download_path, say
from bench.installation import Archive
from bench.intake import p99
from tests.support.archiver import ARCHIVER

ROUNDS = 3
MEDIA = int(os.environ.get("BENCH_GOING", "100000"))
MANY = int(os.environ.get("BENCH_KEPT", "1000000"))
READERS, A_SECOND = 2, 100
READ = 2_000
MIB = 1024 * 1024
FILE, FILES = 20 * MIB, 100
GOAL_RATE, GOAL_P99, GOAL_MIB, GOAL_HASHED = 2_000, 2, 150, 0.8
LARGEST = "!room0:archive.test"

STAYS = """
SELECT array_agg(server_name || '/' || media_id) FROM (
    SELECT m.server_name, m.media_id FROM media AS m JOIN reference USING (server_name, media_id)
    JOIN event AS e USING (event_id) WHERE m.state = 'ready' AND e.room_id <> $1 LIMIT $2
) AS chosen
"""
STATES = "SELECT count(*) FROM media WHERE state = 'deleted'"
OBJECT = """
WITH b AS (INSERT INTO blob (sha256, size, mimetype, place)
           VALUES ($1, $2, 'video/mp4', 'object') RETURNING sha256)
INSERT INTO media (server_name, media_id, state, blob_sha256, settled_at)
SELECT 'archive.test', $3, 'ready', sha256, now() FROM b
"""

HOW = f"""\
An archive of {MEDIA:,} made-up media with a blob of 128 bytes in PostgreSQL each, in
{filling.ROOMS:,} rooms; four in ten are in the largest, and these go: by `archiver delete`, and in
another such archive by a rule of retention and `archiver retention run`. `archiver sweep` compares
all that such an archive has. The rate is that of the whole command, with its start and its
question; fsync is on. Beside each of them, and as long without, {READERS} readers ask
`archiver run --only serve` for {A_SECOND} of the other media a second each, at an even pace and
without the hot cache: the figure is what 99 of 100 answers did not exceed. {ROUNDS} rounds, each
with new archives.

Memory is the kernel's own peak of a whole command (ru_maxrss), once, with {MANY:,} media.

Hashing: {FILES} files of {FILE // MIB} MiB in the directory, all of them in the machine's memory;
`archiver verify --all`, its start included, and `sha256sum` on the same files, in turn, {ROUNDS}
rounds after one that does not count. The archive hashes several files at once."""


def measure(ground: Ground) -> Section:
    """Going, memory and hashing, one after the other."""
    rows = [*_going(ground), *_memory(ground), *_hashing(ground)]
    return Section("Upkeep", HOW, rows)


class _Work(NamedTuple):
    """What is done beside readers, and what it did to so many media."""

    what: str
    arguments: Sequence[str]
    count: Callable[[Archive], int]


def _deleted(archive: Archive) -> int:
    return int(archive.sql(STATES))


WORKS = (
    _Work("deleted", ("delete", LARGEST, "--yes"), _deleted),
    _Work("expired", ("retention", "run", "--yes"), _deleted),
    _Work("swept", ("sweep",), lambda archive: int(archive.sql("SELECT count(*) FROM blob"))),
)


def _going(ground: Ground) -> list[Row]:
    rows = []
    for work in WORKS:
        archive = Archive(ground, work.what)
        rounds = [_round(archive, work) for _ in range(ROUNDS)]
        ground.drop(archive.database)
        rates, beside, idle = (Figures(column) for column in zip(*rounds, strict=True))
        rows.append(Row(f"{work.what}, media/s", rates, goal=Goal(GOAL_RATE)))
        other = Other("nothing goes on", idle, Goal(GOAL_P99, at_most=True))
        rows.append(Row(f"p99 of readers while media are {work.what}, ms", beside, [other]))
    return rows


def _round(archive: Archive, work: _Work) -> tuple[float, float, float]:
    """Media a second, and the readers' p99 beside it and idle."""
    archive.configure("http://127.0.0.1:1", {}, serve={"hot_cache": 0})
    archive.change("retention", {"rules": [{"room": LARGEST, "keep": "1 d"}], "every": "365 d"})
    asyncio.run(filling.fill(archive.database, MEDIA))
    asyncio.run(_checkpoint(archive.database))
    paths = [download_path(f"mxc://{name}") for name in asyncio.run(_staying(archive.database))]
    with archive.running("serve"):
        token = archive.token()
        order = {
            "port": archive.files.serve_port,
            "token": token,
            "paths": paths,
            "connections": READERS,
            "a_second": A_SECOND,
        }
        client("bench.latency", order={**order, "seconds": 2})
        with _readers(order) as beside:
            started = time.monotonic()
            _command(archive, *work.arguments)
            took = time.monotonic() - started
        idle = client("bench.latency", order={**order, "seconds": max(took, 5)})
    done = work.count(archive)
    assert done > MEDIA / 4, f"{done} media were {work.what}"
    found = done / took, p99(beside), p99(idle)
    rate, busy, quiet = map(number, found)
    say(f"{work.what}: {rate} media/s in {number(took)} s; p99 {busy} ms, idle {quiet} ms")
    return found


@contextmanager
def _readers(order: dict[str, Any]) -> Iterator[list[float]]:
    """They read until the end of the block; then the list holds what each answer took."""
    seconds: list[float] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seconds.extend(client("bench.latency", order={**order, "seconds": 1}))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield seconds
    finally:
        over.set()
        thread.join()


def _command(archive: Archive, *arguments: str) -> float:
    """Runs `archiver …` to its end; returns the peak of its memory in MiB."""
    command = [*ARCHIVER, *arguments, "-c", str(archive.files.config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{arguments} ended with {process.returncode}"
    return usage.ru_maxrss / 1024


def _memory(ground: Ground) -> list[Row]:
    archive = Archive(ground, "many")
    archive.configure("http://127.0.0.1:1", {})
    asyncio.run(filling.fill(archive.database, MANY))
    with archive.running("serve"):
        pass  # it makes the folder of objects
    rows = []
    for arguments in (("sweep",), ("verify", "--all")):
        started = time.monotonic()
        peak = _command(archive, *arguments)
        took = time.monotonic() - started
        say(f"{arguments[0]} of {MANY:,}: {number(peak)} MiB, {number(MANY / took)} media/s")
        goal = Goal(GOAL_MIB, at_most=True)
        rows.append(Row(f"peak of memory of `{' '.join(arguments)}`, MiB", Figures((peak,)),
                        goal=goal))  # fmt: skip
        rows.append(Row(f"`{' '.join(arguments)}`, media/s", Figures((MANY / took,))))
    ground.drop(archive.database)
    return rows


def _hashing(ground: Ground) -> list[Row]:
    archive = Archive(ground, "files")
    objects = ground.folder / "files-objects"
    archive.configure("http://127.0.0.1:1", {"filesystem": {"path": str(objects)}})
    archive.files.command("migrate", "-c", str(archive.files.config))
    files = asyncio.run(_put(archive.database, objects))
    ours, theirs = [], []
    for _ in range(ROUNDS + 1):
        ours.append(_megabytes(lambda: _command(archive, "verify", "--all")))
        theirs.append(_megabytes(lambda: _sha256sum(files)))
        say(f"hashed: archive {number(ours[-1])}, sha256sum {number(theirs[-1])} MB/s")
    other = Other("sha256sum", Figures(tuple(theirs[1:])), Goal(GOAL_HASHED))
    return [Row("verified in the directory, MB/s", Figures(tuple(ours[1:])), [other])]


def _megabytes(work: Callable[[], object]) -> float:
    """A second."""
    started = time.monotonic()
    work()
    return FILES * FILE / 1e6 / (time.monotonic() - started)


def _sha256sum(files: Sequence[Path]) -> None:
    subprocess.run(["sha256sum", *files], check=True, stdout=subprocess.DEVNULL)


async def _put(dsn: str, objects: Path) -> list[Path]:
    """Objects as the directory store has them, and their rows."""
    files = []
    conn = await asyncpg.connect(dsn)
    try:
        for n in range(FILES):
            data = os.urandom(FILE)
            sha256 = hashlib.sha256(data).digest()
            name = sha256.hex()
            file = objects / name[:2] / name[2:4] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            await conn.execute(OBJECT, sha256, FILE, f"film{n}")
            files.append(file)
    finally:
        await conn.close()
    return files


async def _staying(dsn: str) -> list[str]:
    conn = await asyncpg.connect(dsn)
    try:
        return list(await conn.fetchval(STAYS, LARGEST, READ))
    finally:
        await conn.close()


async def _checkpoint(dsn: str) -> None:
    """Else the filling's own would come while something is measured."""
    conn = await asyncpg.connect(dsn)
    try:
        await conn.execute("CHECKPOINT")
    finally:
        await conn.close()
