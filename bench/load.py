"""Load of many readers: wrk where it is installed, else the client of `bench.http`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.ground import client
from tests.support.process import LOOPBACK

SCRIPT = Path(__file__).with_name("wrk.lua")
THREADS = 2


class Load(NamedTuple):
    """What was answered in how long."""

    answers: int
    received: int
    seconds: float


def has_wrk() -> bool:
    """True where wrk is installed."""
    return shutil.which("wrk") is not None


def read_all(
    port: int, paths: Sequence[str], token: str, *, connections: int, seconds: float
) -> Load:
    """GETs the paths in turn, again and again. Every answer must be a 200."""
    if has_wrk():
        return _wrk(port, paths, token, connections, seconds)
    order = {
        "port": port,
        "paths": list(paths),
        "token": token,
        "connections": connections,
        "seconds": seconds,
    }
    found = client("bench.http", order=order)
    return Load(found["answers"], found["bytes"], found["seconds"])


def _wrk(port: int, paths: Sequence[str], token: str, connections: int, seconds: float) -> Load:
    command = ["wrk", "-t", str(THREADS), "-c", str(connections), "-d", f"{seconds:.0f}s"]
    command += ["--timeout", "60s", "-s", str(SCRIPT), f"http://{LOOPBACK}:{port}/"]
    done = subprocess.run(
        [*command, "--", token, *paths], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stderr.splitlines()[-1])
    assert found["errors"] == 0, f"{found['errors']} requests did not work:\n{done.stdout}"
    return Load(found["answers"], found["bytes"], found["microseconds"] / 1e6)
