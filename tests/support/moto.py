"""An S3 server that knows versions and Object Lock: moto's, in memory, on loopback.

It refuses to delete a version that is under a legal hold or a retention, as S3 does. It does not
check who asks, nor whether a body hashes to its Content-MD5; it forgets older versions when
versioning is suspended; and it forgets everything when it is stopped.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tests.support.process import LOOPBACK, Server, accepts, free_port
from tests.support.swift import S3Endpoint

REGION = "us-east-1"


class Moto:
    """One server. All calls block; within a running loop use `asyncio.to_thread`."""

    def __init__(self, python: Path, folder: Path) -> None:
        """`python` is the interpreter of an environment that has moto; `folder` is made."""
        folder.mkdir(parents=True)
        self._port = free_port()
        self._server = Server(
            "moto",
            [str(python.with_name("moto_server")), "-H", "127.0.0.1", "-p", str(self._port)],
            folder / "moto.log",
            ready=lambda: accepts(self._port),
        )

    @property
    def endpoint(self) -> S3Endpoint:
        """What a client needs. Any keys will do."""
        return S3Endpoint(f"http://127.0.0.1:{self._port}", REGION, "archive", "secret")

    def start(self) -> None:
        """Returns when it answers. Raises ServerError."""
        self._server.start()

    def stop(self) -> None:
        """Ends it."""
        self._server.stop()


class Door:
    """Another address of a server on loopback, which a test may close for a while."""

    def __init__(self, endpoint: S3Endpoint) -> None:
        port = free_port()
        self.endpoint = replace(endpoint, endpoint_url=f"http://{LOOPBACK}:{port}")
        self._port = port
        self._behind = int(endpoint.endpoint_url.rpartition(":")[2])
        self._server: asyncio.Server | None = None
        self._visits: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Lets everybody in."""
        self._server = await asyncio.start_server(self._visit, LOOPBACK, self._port)

    async def close(self) -> None:
        """Throws everybody out, those at the threshold as well."""
        if self._server is not None:
            self._server.close()
            for visit in self._visits.copy():
                visit.cancel()
            await asyncio.gather(*self._visits, return_exceptions=True)
            await self._server.wait_closed()

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._visits.add(task)
        try:
            there, back = await asyncio.open_connection(LOOPBACK, self._behind)
            try:
                await asyncio.gather(_carry(reader, back), _carry(there, writer))
            finally:
                back.transport.abort()
        finally:
            writer.transport.abort()
            self._visits.discard(task)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
