"""How fast media get from Synapse into the archive, against Synapse's and the stores' rates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from bench.figures import Figures, Goal, Other, Row, Section, lower, number
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
from bench.installation import Archive
from tests.support.swift import Swift
from tests.support.synapse import Synapse

ROUNDS = 3
AT_ONCE = 8  # the default of worker.concurrency
MIB = 1024 * 1024
HOLD_BACK = "UPDATE media SET due_at = now() + interval '1 hour'"
RELEASE = """
WITH due AS (UPDATE media SET due_at = now() RETURNING due_at)
SELECT max(due_at), pg_notify('media_pending', '') FROM due
"""

HOW = f"""\
Media that a real Synapse has (SQLite, one process), {AT_ONCE} at a time. The references are pushed
first, the worker starts and waits; then all are due at once, and the clock runs until the last is
`ready`. Synapse's own rate is that of a bare client that reads the same media once and throws them
away. The store's own rate is that of plain writes of the same sizes and number, durable one by
one: a file with its fsync, boto3's put_object, an INSERT. Compared with the lower of the two.
{ROUNDS} rounds, everything once in each, each run with an empty database and store."""


class Size(NamedTuple):
    """A kind of media, its goal, and in which unit it is counted."""

    name: str
    size: int
    number: int
    goal: float
    unit: str
    unit_size: float
    stores: tuple[str, ...]


SIZES = (
    Size("100 KiB", 100 * 1024, 600, 0.6, "media/s", 1, ("PostgreSQL", "directory", "Swift")),
    Size("20 MiB", 20 * MIB, 30, 0.5, "MB/s", 20 * MIB / 1e6, ("directory", "Swift")),
)


def measure(ground: Ground) -> Section:
    """Every store for every size, the rounds one after the other."""
    archive = Archive(ground)
    synapse = ground.synapse(archive.files.registration)
    bench = _Bench(ground, archive, synapse, ground.swift())
    rows = [row for size in SIZES for row in bench.rows(size)]
    return Section("Archiving", HOW, rows)


class _Bench:
    def __init__(self, ground: Ground, archive: Archive, synapse: Synapse, swift: Swift) -> None:
        self._ground = ground
        self._archive = archive
        self._synapse = synapse
        self._swift = swift
        self._runs = 0

    def rows(self, size: Size) -> list[Row]:
        """A row for each store."""
        bodies = (picture(size.size) for _ in range(size.number))
        mxcs, _ = upload_all(self._synapse, f"uploader{size.size}", bodies)
        synapse: list[float] = []
        store: dict[str, list[float]] = {name: [] for name in size.stores}
        ours: dict[str, list[float]] = {name: [] for name in size.stores}
        for round_ in range(ROUNDS):
            synapse.append(self._rate(size, self._read_synapse(mxcs)))
            say(f"{size.name}, round {round_ + 1}: Synapse {number(synapse[-1])} {size.unit}")
            for name in size.stores:
                ours[name].append(self._rate(size, self._run(name, mxcs)))
                store[name].append(self._rate(size, self._write(name, size)))
                say(f"{size.name}, {name}: archive {number(ours[name][-1])},"
                    f" bare {number(store[name][-1])} {size.unit}")  # fmt: skip
        return [_row(size, name, ours[name], synapse, store[name]) for name in size.stores]

    def _rate(self, size: Size, seconds: float) -> float:
        return size.number * size.unit_size / seconds

    def _read_synapse(self, mxcs: list[str]) -> float:
        paths = [f"{download_path(mxc)}?user_id=@archiver:archive.test" for mxc in mxcs]
        order = {
            "port": port_of(self._synapse.url),
            "paths": paths,
            "token": self._archive.registration["as_token"],
            "connections": AT_ONCE,
            "seconds": None,
        }
        return float(client("bench.http", order=order)["seconds"])

    def _run(self, name: str, mxcs: list[str]) -> float:
        """Seconds from when the media were due until the last was ready."""
        archive = self._archive
        self._runs += 1
        archive.configure(self._synapse.url, self._storage(name))
        with archive.running("intake"):
            archive.push(mxcs)
        archive.sql(HOLD_BACK)
        with archive.running("worker"):
            os.sync()  # what earlier runs wrote is not this one's work
            due_at = archive.sql(RELEASE)
            archive.until_ready(len(mxcs))
        return float((archive.sql("SELECT max(settled_at) FROM media") - due_at).total_seconds())

    def _storage(self, name: str) -> Mapping[str, Any]:
        if name == "PostgreSQL":
            return {"inline_limit": "5 MiB", "objects": "filesystem"}
        if name == "directory":
            path = str(self._ground.folder / f"objects{self._runs}")
            return {"inline_limit": 0, "objects": "filesystem", "filesystem": {"path": path}}
        s3 = s3_settings(self._swift, f"run{self._runs}/")
        return {"inline_limit": 0, "objects": "s3", "s3": s3}

    def _write(self, name: str, size: Size) -> float:
        folder = self._ground.folder / f"bare{self._runs}"
        folder.mkdir()
        endpoint = self._swift.endpoint
        where = {
            "PostgreSQL": {"dsn": self._archive.database},
            "directory": {"folder": str(folder)},
            "Swift": {
                "endpoint_url": endpoint.endpoint_url,
                "region": endpoint.region,
                "key": endpoint.access_key_id,
                "secret": endpoint.secret_access_key,
            },
        }
        os.sync()
        seconds = client(
            "bench.bare_store", name, str(size.size), str(size.number), order=where[name]
        )
        return float(seconds)


def _row(
    size: Size, name: str, ours: list[float], synapse: list[float], store: list[float]
) -> Row:
    own = Other("Synapse's own", Figures(tuple(synapse)))
    bare = Other(f"bare {name}", Figures(tuple(store)))
    first = lower(own, bare)
    return Row(
        f"{size.name} into {name}, {size.unit}",
        Figures(tuple(ours)),
        [replace(first, goal=Goal(size.goal)), bare if first is own else own],
    )
