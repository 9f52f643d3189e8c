"""What every part stands on: a folder, a PostgreSQL that syncs, other servers, and clients."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.support.archiver import reachable_folder
from tests.support.matrix import CLIENT, MatrixUser, request
from tests.support.postgres import PostgresProcess, PostgresServer
from tests.support.process import Server, accepts, free_port
from tests.support.swift import Swift
from tests.support.synapse import Synapse
from tools.setup_services import service_python

SERVER_NAME = "archive.test"


class Ground:
    """Servers that are ended, and a folder that is removed, with `stack`."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.folder = reachable_folder()
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.postgres = PostgresProcess(self.folder / "postgres", durable=True)
        self.postgres.start()
        stack.callback(self.postgres.stop)
        self._databases = PostgresServer(self.postgres.url)

    def database(self) -> str:
        """The URL of a new, empty database."""
        return asyncio.run(self._databases.create())

    def drop(self, url: str) -> None:
        """Gives its disk space back."""
        asyncio.run(self._databases.drop(url))

    def synapse(self, registration: Path, **extra: Any) -> Synapse:
        """A Synapse that knows the archive's bot; `extra` as in homeserver.yaml."""
        synapse = Synapse(
            service_python("synapse"),
            self.folder / "synapse",
            registrations=[registration],
            server_name=SERVER_NAME,
            extra=extra,
        )
        synapse.start()
        self.stack.callback(synapse.stop)
        as_token = yaml.safe_load(registration.read_text("utf-8"))["as_token"]
        asyncio.run(_register_bot(synapse.url, as_token))
        return synapse

    def swift(self) -> Swift:
        """An S3 server."""
        swift = Swift(service_python("swift"), self.folder / "swift")
        swift.start()
        self.stack.callback(swift.stop)
        return swift

    def module(self, name: str, *arguments: str) -> int:
        """A server of ours, `python -m name PORT …`; returns its port."""
        port = free_port()
        command = [sys.executable, "-m", name, str(port), *arguments]
        server = Server(
            name,
            command,
            self.folder / f"{name}.log",
            ready=lambda: accepts(port),
            env={"PYTHONPATH": str(Path.cwd())},
        )
        server.start()
        self.stack.callback(server.stop)
        return port


def client(module: str, *arguments: str, order: Mapping[str, Any] | None = None) -> Any:
    """Runs a client of ours as a process of its own; returns what it found."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        input=json.dumps(order),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def download_path(mxc: str) -> str:
    """Where Matrix has the bytes of a media."""
    return f"/_matrix/client/v1/media/download/{mxc.removeprefix('mxc://')}"


def picture(size: int) -> bytes:
    """`size` random bytes with the head of a PNG of 1600 by 1200 pixels."""
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x06\x40\0\0\x04\xb0\x08\x02\0\0\0"
    return head + os.urandom(size - len(head))


async def upload(user: MatrixUser, bodies: Iterator[bytes], at_once: int = 4) -> list[str]:
    """Uploads them all; returns their mxc URIs, in no order."""

    async def some() -> list[str]:
        return [await user.upload(body) for body in bodies]

    mxcs = await asyncio.gather(*(some() for _ in range(at_once)))
    return list(chain.from_iterable(mxcs))


def upload_all(synapse: Synapse, name: str, bodies: Iterator[bytes]) -> tuple[list[str], str]:
    """As a new user `name`; returns the mxc URIs and the user's access token."""

    async def run() -> tuple[list[str], str]:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            user = await synapse.register(http, name)
            return await upload(user, bodies), user.access_token

    return asyncio.run(run())


def s3_settings(swift: Swift, prefix: str = "") -> dict[str, Any]:
    """`storage.s3` of config.yaml."""
    return {
        "endpoint_url": swift.endpoint.endpoint_url,
        "region": swift.endpoint.region,
        "access_key_id": swift.endpoint.access_key_id,
        "secret_access_key": swift.endpoint.secret_access_key,
        "addressing_style": "path",
        "prefix": prefix,
    }


def port_of(url: str) -> int:
    """The port of one of our own URLs."""
    return int(url.rpartition(":")[2])


def say(*words: Sequence[str] | str) -> None:
    """Progress."""
    print("   ", *words, flush=True)


async def _register_bot(url: str, as_token: str) -> None:
    body = {"type": "m.login.application_service", "username": "archiver", "inhibit_login": True}
    headers = {"Authorization": f"Bearer {as_token}"}
    async with aiohttp.ClientSession() as http:
        await request(http, "POST", f"{url}{CLIENT}/register", json=body, headers=headers)
