"""What a large media costs in memory, and how soon a part from its middle is there."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import boto3
from botocore.config import Config

from bench.figures import Figures, Goal, Other, Row, Section, number
from bench.ground import Ground, client, download_path, s3_settings, say
from bench.http import get_request
from bench.installation import Archive
from tests.support.matrix import request
from tests.support.process import LOOPBACK, Server
from tests.support.swift import Swift
from tests.support.synapse import Synapse

ROUNDS = 3
RANGES = 20
MIB = 1024 * 1024
SIZE = 1024 * MIB
MIDDLE = SIZE // 2
PART = 64 * 1024
GOAL_MIB = 48
GOAL_FIRST_MS = 20

HOW = f"""\
One file of 1 GiB, from a real Synapse, archived into S3 (Swift) and read again by one reader who
takes all he gets. `archiver run` with all parts is one process: its resident memory (VmRSS) when
it is up, and the kernel's own peak of it (VmHWM) at the end. {ROUNDS} rounds, each with a new
process, database and object; {RANGES} requests a round for {PART // 1024} KiB from its middle,
each over a new connection."""


def measure(ground: Ground) -> Section:
    """The rounds one after the other."""
    archive = Archive(ground)
    synapse = ground.synapse(archive.files.registration, max_upload_size="2G")
    mxc = asyncio.run(_upload(synapse))
    swift = ground.swift()
    rounds = [_round(archive, synapse, mxc, swift) for _ in range(ROUNDS)]
    columns = {name: Figures(tuple(found[name] for found in rounds)) for name in rounds[0]}
    swift_out = Other("Swift itself", columns["swift out"])
    swift_first = Other("Swift itself", columns["swift first"])
    goal = Goal(GOAL_MIB, at_most=True)
    rows = [
        Row("peak while archiving, MiB over idle", columns["archiving"]),
        Row("peak with serving, MiB over idle", columns["both"], goal=goal),
        Row("idle, MiB", columns["idle"]),
        Row("1 GiB into S3, MB/s", columns["in"]),
        Row("1 GiB out of S3, MB/s", columns["out"], [swift_out]),
        Row(
            "first byte of a range in its middle, ms",
            columns["first"],
            [swift_first],
            Goal(GOAL_FIRST_MS, at_most=True),
        ),
    ]
    return Section("Memory", HOW, rows)


async def _upload(synapse: Synapse) -> str:
    """A file that is never in memory as a whole; returns its mxc URI."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(SIZE // MIB):
            yield os.urandom(MIB)

    async with aiohttp.ClientSession() as http:
        user = await synapse.register(http, "filmmaker")
        headers = {"Content-Type": "video/mp4", "Content-Length": str(SIZE)}
        answer = await request(
            http,
            "POST",
            f"{synapse.url}/_matrix/media/v3/upload",
            data=chunks(),
            headers={**user.headers, **headers},
        )
        return str(answer["content_uri"])


def _round(archive: Archive, synapse: Synapse, mxc: str, swift: Swift) -> dict[str, float]:
    prefix = f"{secrets.token_hex(4)}/"
    s3 = s3_settings(swift, prefix)
    archive.configure(synapse.url, {"objects": "s3", "s3": s3})
    path = download_path(mxc)
    os.sync()
    with archive.running("intake", "worker", "serve", "bot") as process:
        found = {"idle": resident(process, "VmRSS")}
        token = archive.token()
        started = time.perf_counter()
        archive.push([mxc])
        archive.until_ready(1)
        found["in"] = SIZE / 1e6 / (time.perf_counter() - started)
        found["archiving"] = resident(process, "VmHWM") - found["idle"]
        port = archive.files.serve_port
        found["out"] = SIZE / 1e6 / _download(port, path, token)
        found["both"] = resident(process, "VmHWM") - found["idle"]
        found["first"] = _first_byte(port, path, token)
    found |= _ask_swift(s3, prefix)
    say(", ".join(f"{name} {number(value)}" for name, value in found.items()))
    return found


def resident(process: Server, field: str) -> float:
    """MiB, as proc(5) has it."""
    lines = Path(f"/proc/{process.pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def _download(port: int, path: str, token: str) -> float:
    order = {"port": port, "paths": [path], "token": token, "connections": 1, "seconds": None}
    found = client("bench.http", order=order)
    assert found["bytes"] > SIZE, f"{found['bytes']} bytes came"
    return float(found["seconds"])


def _first_byte(port: int, path: str, token: str) -> float:
    """The median of what a player waits for, in ms: from the connection to the first byte."""
    waits = sorted(_wait_for_range(port, path, token) for _ in range(RANGES))
    return waits[RANGES // 2] * 1000


def _wait_for_range(port: int, path: str, token: str) -> float:
    wanted = f"Range: bytes={MIDDLE}-{MIDDLE + PART - 1}"
    message = get_request(port, path, token, wanted, "Connection: close")
    started = time.perf_counter()
    with socket.create_connection((LOOPBACK, port), 60) as connection:
        connection.sendall(message)
        answer = b""
        while b"\r\n\r\n" not in answer or answer.endswith(b"\r\n\r\n"):
            more = connection.recv(65536)
            assert more, answer
            answer += more
    assert answer.startswith(b"HTTP/1.1 206"), answer
    return time.perf_counter() - started


def _ask_swift(s3: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The same of Swift alone, by a signed URL; then the object makes room."""
    s3_client = boto3.client(
        "s3",
        endpoint_url=s3["endpoint_url"],
        region_name=s3["region"],
        aws_access_key_id=s3["access_key_id"],
        aws_secret_access_key=s3["secret_access_key"],
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    bucket = "media-archive"
    [kept] = s3_client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    where = {"Bucket": bucket, "Key": kept["Key"]}
    url = urlsplit(s3_client.generate_presigned_url("get_object", Params=where))
    path = f"{url.path}?{url.query}"
    assert url.port is not None
    found = {
        "swift out": SIZE / 1e6 / _download(url.port, path, ""),
        "swift first": _first_byte(url.port, path, ""),
    }
    s3_client.delete_object(Bucket=bucket, Key=kept["Key"])
    return found
