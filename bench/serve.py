"""How fast media are served, against Synapse, a bare handler, and nginx on the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench import load, nginx
from bench.figures import Figures, Goal, Other, Row, Section, number
from bench.ground import Ground, download_path, picture, port_of, say, upload_all
from bench.installation import Archive
from bench.load import Load

ROUNDS = 5
SECONDS = 4
MIB = 1024 * 1024

HOW = f"""\
The same media from each, {ROUNDS} rounds of {SECONDS} s against one after the other: 100 KiB from
PostgreSQL over 16 connections, 20 MiB from the directory over 8. `archiver run --only serve` and
Synapse are one process each and check a token; the bare handler (aiohttp, asyncpg, uvloop) asks
the archive's database once and checks nothing; nginx has one worker and the bytes as files. Load
and servers share the machine's cores."""


class Size(NamedTuple):
    """A kind of media and how it is asked for."""

    name: str
    size: int
    number: int
    connections: int
    unit: str
    figure: Callable[[Load], float]
    goal: float


def requests(found: Load) -> float:
    """A second."""
    return found.answers / found.seconds


def megabytes(found: Load) -> float:
    """A second."""
    return found.received / found.seconds / 1e6


SIZES = (
    Size("100 KiB", 100 * 1024, 100, 16, "req/s", requests, 2.5),
    Size("20 MiB", 20 * MIB, 8, 8, "MB/s", megabytes, 1.2),
)


class Server(NamedTuple):
    """Who is asked, and with what token."""

    name: str
    port: int
    token: str


def measure(ground: Ground) -> Section:
    """Archives the media from Synapse, then asks everybody in turn."""
    archive = Archive(ground)
    synapse = ground.synapse(archive.files.registration)
    objects, root = ground.folder / "objects", ground.folder / "files"
    archive.configure(synapse.url, {"filesystem": {"path": str(objects)}})
    uploads: dict[str, list[str]] = {}
    token = ""
    for size in SIZES:
        bodies = [picture(size.size) for _ in range(size.number)]
        mxcs, token = upload_all(synapse, f"user{size.size}", iter(bodies))
        _keep_files(root, mxcs, bodies)
        uploads[size.name] = mxcs
    with archive.running("intake", "worker"):
        every = [mxc for mxcs in uploads.values() for mxc in mxcs]
        archive.push(every)
        archive.until_ready(len(every))
    bare = ground.module("bench.bare", "serve", archive.database, str(objects))
    others = [
        Server("Synapse", port_of(synapse.url), token),
        Server("bare aiohttp + asyncpg", bare, ""),
        *_nginx(ground, root),
    ]
    with archive.running("serve"):
        servers = [Server("archive", archive.files.serve_port, archive.token()), *others]
        rows = [_row(size, uploads[size.name], servers) for size in SIZES]
    return Section("Serving", HOW, rows, list(_remarks(others)))


def _keep_files(root: Path, mxcs: list[str], bodies: list[bytes]) -> None:
    """For nginx. Which bytes are behind which name is all the same to it."""
    for mxc, body in zip(mxcs, bodies, strict=True):
        path = Path(f"{root}{download_path(mxc)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def _nginx(ground: Ground, root: Path) -> Iterator[Server]:
    if program := nginx.find():
        server, port = nginx.start(program, ground.folder / "nginx", root)
        ground.stack.callback(server.stop)
        yield Server("nginx", port, "")


def _row(size: Size, mxcs: list[str], servers: list[Server]) -> Row:
    paths = [download_path(mxc) for mxc in mxcs]
    found: dict[str, list[float]] = {server.name: [] for server in servers}
    for server in servers:  # warm: code, caches, connections to the database
        load.read_all(server.port, paths, server.token, connections=size.connections, seconds=1)
    for round_ in range(ROUNDS):
        for server in servers:
            answered = load.read_all(
                server.port,
                paths,
                server.token,
                connections=size.connections,
                seconds=SECONDS,
            )
            found[server.name].append(size.figure(answered))
        shown = (f"{name} {number(values[-1])}" for name, values in found.items())
        say(f"{size.name}, round {round_ + 1}, {size.unit}:", ", ".join(shown))
    figures = {name: Figures(tuple(values)) for name, values in found.items()}
    ours = figures.pop("archive")
    others = [Other(name, values) for name, values in figures.items()]
    return Row(f"{size.name}, {size.unit}", ours, others, Goal(size.goal, of_ratio=True))


def _remarks(others: list[Server]) -> Iterator[str]:
    if load.has_wrk():
        yield "The load is wrk's."
    else:
        yield "wrk is not installed: the load is a Python client's, which may be the limit."
    if "nginx" not in {other.name for other in others}:
        yield "nginx is not installed: it is not compared with."
