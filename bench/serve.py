"""How fast media are served, against Synapse, bare handlers and clients, and nginx."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyvips

from bench import load, nginx
from bench.bare_read import presigned
from bench.figures import Figures, Goal, Other, Row, Section, number
from bench.ground import (
    Ground,
    client,
    download_path,
    picture,
    port_of,
    s3_settings,
    say,
    upload_all,
)
from bench.installation import HOT_CACHE, Archive
from bench.load import Load

ROUNDS = 5
SECONDS = 4
MIB = 1024 * 1024
SMALL, SMALL_NUMBER, SMALL_AT_ONCE = 100 * 1024, 100, 16
LARGE, LARGE_NUMBER, LARGE_AT_ONCE = 20 * MIB, 8, 8
PICTURES = 20
THUMBNAIL = "?width=320&height=240&method=scale"
BARE = "bare aiohttp + asyncpg"

# Asks somebody for the paths, over so many connections, for so many seconds.
Ask: TypeAlias = Callable[[Sequence[str], int, float], Load]

HOW = f"""\
The same media from each, {ROUNDS} rounds of {SECONDS} s against one after the other, over
{SMALL_AT_ONCE} connections, and {LARGE_AT_ONCE} for what is large. `archiver run --only serve` and
Synapse are one process each and check a token; the bare handler (aiohttp, asyncpg, uvloop) asks
the archive's database once and checks nothing; nginx has one worker and the bytes as files. Load
and servers share the machine's cores.

"From PostgreSQL" is without the hot cache: every request is a question to the database. "Hot" is
with {HOT_CACHE} of it, the default: the {SMALL_NUMBER} media that are asked for again and again
fit into it, and were asked for before. The thumbnails are of {PICTURES} pictures of 1600 by 1200
pixels and were made beforehand, by the archive as well as by Synapse, in the size of 320 by 240
that both keep; the archive has its hot cache for them, too. What is read out of Swift is held
against a bare client (aiohttp, uvloop) that reads the same objects by presigned URLs over as many
connections and throws them away: the archive is one process more on the same cores."""


class Kind(NamedTuple):
    """What is asked for, over how many connections, and the figure of it."""

    what: str
    connections: int
    figure: Callable[[Load], float]


def requests(found: Load) -> float:
    """A second."""
    return found.answers / found.seconds


def megabytes(found: Load) -> float:
    """A second."""
    return found.received / found.seconds / 1e6


def measure(ground: Ground) -> Section:
    """Archives the media from Synapse, then asks everybody in turn."""
    bench = _Bench(ground)
    rows = [*bench.cold(), *bench.hot(), *bench.out_of_swift()]
    return Section("Serving", HOW, rows, list(_remarks()))


def photograph(seed: int) -> bytes:
    """A JPEG of noise, which is as hard to scale as any picture."""
    return bytes(pyvips.Image.gaussnoise(1600, 1200, seed=seed, mean=128).jpegsave_buffer(Q=75))


class _Bench:
    """The media, and all who have them."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._archive = Archive(ground)
        self._synapse = ground.synapse(self._archive.files.registration)
        objects, self._root = ground.folder / "objects", ground.folder / "files"
        self._archive.configure(self._synapse.url, {"filesystem": {"path": str(objects)}})
        self._token = ""
        small = self._upload([picture(SMALL) for _ in range(SMALL_NUMBER)])
        self._large = self._upload([picture(LARGE) for _ in range(LARGE_NUMBER)])
        pictures = self._upload([photograph(seed) for seed in range(PICTURES)])
        self._keep([*small, *self._large, *pictures])
        self._downloads = [download_path(mxc) for mxc in small]
        self._large_downloads = [download_path(mxc) for mxc in self._large]
        self._thumbnails = [_thumbnail_path(mxc) for mxc in pictures]
        bare = ground.module("bench.bare", "serve", self._archive.database, str(objects))
        self._others = {
            "Synapse": _load(port_of(self._synapse.url), self._token),
            BARE: _load(bare, ""),
            **self._nginx(),
        }

    def cold(self) -> Iterator[Row]:
        """Each request is a question to the database."""
        kind = Kind("100 KiB from PostgreSQL, req/s", SMALL_AT_ONCE, requests)
        with self._serving(hot_cache=0) as ours:
            goals = {"Synapse": 3, BARE: None, "nginx": None}
            yield self._row(kind, self._downloads, ours, goals)

    def hot(self) -> Iterator[Row]:
        """With the archive's defaults."""
        with self._serving() as ours:
            kind = Kind("100 KiB hot, req/s", SMALL_AT_ONCE, requests)
            yield self._row(kind, self._downloads, ours, {"Synapse": 8, "nginx": 0.4})
            kind = Kind("thumbnail, req/s", SMALL_AT_ONCE, requests)
            yield self._row(kind, self._thumbnails, ours, {"Synapse": 8})
            kind = Kind("20 MiB from the directory, MB/s", LARGE_AT_ONCE, megabytes)
            goals = {"Synapse": 1.5, "nginx": 0.5, BARE: None}
            yield self._row(kind, self._large_downloads, ours, goals)

    def out_of_swift(self) -> Iterator[Row]:
        """From a new archive, whose objects are there."""
        s3 = s3_settings(self._ground.swift(), "serve/")
        self._archive.configure(self._synapse.url, {"objects": "s3", "s3": s3})
        self._keep(self._large)
        self._others["bare client"] = partial(_read_bare, presigned(s3))
        kind = Kind("20 MiB out of Swift, MB/s", LARGE_AT_ONCE, megabytes)
        with self._serving() as ours:
            yield self._row(kind, self._large_downloads, ours, {"bare client": 0.9})

    @contextmanager
    def _serving(self, **settings: Any) -> Iterator[Ask]:
        self._archive.change("serve", {"hot_cache": HOT_CACHE, **settings})
        with self._archive.running("serve"):
            yield _load(self._archive.files.serve_port, self._archive.token())

    def _upload(self, bodies: list[bytes]) -> list[str]:
        """To Synapse, and for nginx, to which it is all the same which bytes have which name."""
        mxcs, self._token = upload_all(self._synapse, f"user{len(bodies[0])}", iter(bodies))
        for mxc, body in zip(mxcs, bodies, strict=True):
            path = Path(f"{self._root}{download_path(mxc)}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        return mxcs

    def _keep(self, mxcs: list[str]) -> None:
        """In the archive, with their thumbnails."""
        with self._archive.running("intake", "worker"):
            self._archive.push(mxcs)
            self._archive.until_ready(len(mxcs))
            self._archive.until_pictured()

    def _nginx(self) -> dict[str, Ask]:
        server, port = nginx.start(self._ground.folder / "nginx", self._root)
        self._ground.stack.callback(server.stop)
        return {"nginx": _load(port, "")}

    def _row(
        self, kind: Kind, paths: list[str], ours: Ask, goals: Mapping[str, float | None]
    ) -> Row:
        asked = {"archive": ours, **{name: self._others[name] for name in goals}}
        found: dict[str, list[float]] = {name: [] for name in asked}
        for ask in asked.values():  # warm: code, caches, connections to the database
            ask(paths, kind.connections, 1)
        for round_ in range(ROUNDS):
            for name, ask in asked.items():
                found[name].append(kind.figure(ask(paths, kind.connections, SECONDS)))
            shown = (f"{name} {number(values[-1])}" for name, values in found.items())
            say(f"{kind.what}, round {round_ + 1}:", ", ".join(shown))
        figures = {name: Figures(tuple(values)) for name, values in found.items()}
        others = [
            Other(name, figures[name], None if goal is None else Goal(goal))
            for name, goal in goals.items()
        ]
        return Row(kind.what, figures["archive"], others)


def _thumbnail_path(mxc: str) -> str:
    return f"/_matrix/client/v1/media/thumbnail/{mxc.removeprefix('mxc://')}{THUMBNAIL}"


def _load(port: int, token: str) -> Ask:
    def ask(paths: Sequence[str], connections: int, seconds: float) -> Load:
        return load.read_all(port, paths, token, connections=connections, seconds=seconds)

    return ask


def _read_bare(
    urls: Sequence[str], _paths: Sequence[str], connections: int, seconds: float
) -> Load:
    order = {"urls": list(urls), "connections": connections, "seconds": seconds}
    found = client("bench.bare_read", order=order)
    return Load(0, found["bytes"], found["seconds"])


def _remarks() -> Iterator[str]:
    if load.has_wrk():
        yield "The load is wrk's."
    else:
        yield "wrk is not installed: the load is a Python client's, which may be the limit."
