"""What five hundred readers on slow lines cost the archive, and those who read beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bench.figures import Figures, Goal, Other, Row, Section, number
from bench.ground import Ground, client, download_path, picture, s3_settings, say, upload_all
from bench.installation import Archive
from bench.intake import p99
from bench.memory import resident

ROUNDS = 3
READERS = 500
BYTES_A_SECOND = 64 * 1024
CONNECTIONS = 4
SECONDS = 6
MIB = 1024 * 1024
LARGE, LARGE_NUMBER = 100 * MIB, 2
SMALL, SMALL_NUMBER = 100 * 1024, 100
GOAL_MIB = 300

HOW = f"""\
{READERS} readers of {LARGE // MIB} MiB each, who take at most {BYTES_A_SECOND // 1024} KiB a
second over connections with small buffers, and beside them a client that reads media of
{SMALL // 1024} KiB from PostgreSQL over {CONNECTIONS} connections, as fast as it can for
{SECONDS} s; the same client before, alone. All its requests must be answered with 200, and no slow
reader may be cut off, or there is no figure. No hot cache. {ROUNDS} rounds, each with a new
`archiver run --only serve`: its resident memory (VmRSS) at the end of the {SECONDS} s, and the
kernel's own peak of it (VmHWM). The slow readers' own process works on the same cores, and so does
Swift, which sends as much ahead as the buffers between them hold."""


def measure(ground: Ground) -> Section:
    """With the large objects in a directory, and in Swift."""
    archive = Archive(ground)
    synapse = ground.synapse(archive.files.registration)
    large, _ = upload_all(synapse, "slow", (picture(LARGE) for _ in range(LARGE_NUMBER)))
    small, _ = upload_all(synapse, "fast", (picture(SMALL) for _ in range(SMALL_NUMBER)))
    stores: dict[str, Mapping[str, Any]] = {
        "directory": {"filesystem": {"path": str(ground.folder / "objects")}},
        "Swift": {"objects": "s3", "s3": s3_settings(ground.swift(), "slow/")},
    }
    rows = []
    for name, storage in stores.items():
        archive.configure(synapse.url, storage, serve={"hot_cache": 0})
        with archive.running("intake", "worker"):
            archive.push([*large, *small])
            archive.until_ready(len(large) + len(small))
        rounds = [_round(archive, large, small) for _ in range(ROUNDS)]
        rows += _rows(name, rounds)
    return Section("Slow readers", HOW, rows)


def _round(archive: Archive, large: Sequence[str], small: Sequence[str]) -> dict[str, float]:
    port = archive.files.serve_port
    with archive.running("serve") as process:
        token = archive.token()
        order = {
            "port": port,
            "paths": [download_path(mxc) for mxc in small],
            "token": token,
            "connections": CONNECTIONS,
        }
        client("bench.latency", order={**order, "seconds": 1})
        alone = client("bench.latency", order={**order, "seconds": SECONDS})
        found = {"alone": resident(process, "VmHWM")}
        with slow_readers(port, large, token):
            beside = client("bench.latency", order={**order, "seconds": SECONDS})
            found["memory"] = resident(process, "VmRSS")
        found["peak"] = resident(process, "VmHWM")
    found |= {"alone req/s": len(alone) / SECONDS, "req/s": len(beside) / SECONDS}
    found |= {"alone p99": p99(alone), "p99": p99(beside)}
    say(", ".join(f"{name} {number(value)}" for name, value in found.items()))
    return found


@contextmanager
def slow_readers(port: int, mxcs: Sequence[str], token: str) -> Iterator[None]:
    """They read until the end of the block, and all of them got something meanwhile."""
    order = {
        "port": port,
        "paths": [download_path(mxc) for mxc in mxcs],
        "token": token,
        "readers": READERS,
        "bytes_a_second": BYTES_A_SECOND,
    }
    command = [sys.executable, "-m", "bench.slow_readers"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as readers:
        assert readers.stdin is not None
        assert readers.stdout is not None
        readers.stdin.write(json.dumps(order) + "\n")
        readers.stdin.flush()
        assert readers.stdout.readline() == "reading\n", "the slow readers did not all begin"
        yield
        found, _ = readers.communicate()
        assert readers.returncode == 0, "a slow reader was cut off"
    paces = {name: value / 1024 for name, value in json.loads(found).items()}
    say("slow readers, KiB/s:", ", ".join(f"{name} {number(v)}" for name, v in paces.items()))
    assert paces["slowest"] > 0, "a slow reader got nothing"


def _rows(store: str, rounds: Sequence[Mapping[str, float]]) -> list[Row]:
    columns = {name: Figures(tuple(found[name] for found in rounds)) for name in rounds[0]}

    def beside(name: str) -> list[Other]:
        return [Other("nobody else reads", columns[f"alone {name}"])]

    goal = Goal(GOAL_MIB, at_most=True)
    return [
        Row(f"peak of memory, objects in {store}, MiB", columns["peak"], goal=goal),
        Row("memory while they read, MiB", columns["memory"]),
        Row("peak before they come, MiB", columns["alone"]),
        Row("100 KiB beside them, req/s", columns["req/s"], beside("req/s")),
        Row("p99 of that, ms", columns["p99"], beside("p99")),
    ]
