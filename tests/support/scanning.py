"""Scanners that behave in every way, and an archive whose media they look at."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from archiver.fetch.archive import Parts
from archiver.keep.scanning import Scanning
from archiver.scan.base import Outcome, Scanner, Verdict
from tests.support.process import LOOPBACK

if TYPE_CHECKING:
    from archiver.db.pool import Pool, Row

MINUTE = timedelta(minutes=1)
MIB = 1024 * 1024

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(talk: Talk) -> AsyncIterator[str]:
    """A server that talks so to everybody; yields its address."""

    talking: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Who asked may have had enough.
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                await talk(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.add(asyncio.ensure_future(serve(reader, writer)))

    server = await asyncio.start_server(begin, LOOPBACK, 0)
    try:
        yield f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)


async def received(reader: asyncio.StreamReader) -> bytes:
    """The bytes of a whole INSTREAM command."""
    assert await reader.readuntil(b"\0") == b"zINSTREAM\0"
    data = b""
    while length := struct.unpack(">I", await reader.readexactly(4))[0]:
        data += await reader.readexactly(length)
    return data


class Oracle:
    """A scanner that says what it is told to, and remembers what it was shown."""

    def __init__(self, **found: str) -> None:
        """Signatures by a word in the bytes that they are found by."""
        self.found = {word.encode(): name for word, name in found.items()}
        self.shown: list[bytes] = []
        self.trouble: Exception | None = None
        self.refuses: str | None = None

    async def scan(self, chunks: AsyncIterator[bytes]) -> Verdict:
        """See `Scanner.scan`."""
        if self.trouble:
            raise self.trouble
        data = b"".join([chunk async for chunk in chunks])
        self.shown.append(data)
        if self.refuses:
            return Verdict(Outcome.UNSCANNED, self.refuses)
        for word, name in self.found.items():
            if word in data:
                return Verdict(Outcome.INFECTED, name)
        return Verdict(Outcome.CLEAN)

    async def version(self) -> str:
        """See `Scanner.version`."""
        return "Oracle 1"


def scanning(ours: Parts, scanner: Scanner | None, *, max_size: int = MIB) -> Scanning:
    """What scans the archive."""
    return Scanning(
        ours.pool, ours.store, scanner, max_size=max_size, timeout=MINUTE, concurrency=2
    )


async def scan_all(ours: Parts, scanner: Scanner, *, max_size: int = MIB) -> None:
    """Scans all that is due, and what was archived before there was a scanner."""
    work = scanning(ours, scanner, max_size=max_size)
    await work.switch()
    while await work.schedule():
        pass
    while await work.work(scanner):
        pass


async def scan_of(pool: Pool, name: str) -> Row:
    """What is known of the bytes of a media; `due_in` are the seconds until it is looked at."""
    row = await pool.fetchrow(
        "SELECT b.sha256, b.scan, b.scan_reason, b.scan_engine, b.scanned_at, b.scan_due,"
        " b.scan_attempts, extract(epoch FROM b.scan_due - now())::float8 AS due_in"
        " FROM media AS m JOIN blob AS b ON b.sha256 = m.blob_sha256 WHERE m.media_id = $1",
        name,
    )
    assert row is not None
    return row
