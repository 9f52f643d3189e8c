"""ClamAV's daemon, which is sent the bytes over a socket.

Commands and answers are those of clamd(8): `zINSTREAM`, then chunks, each behind its length in
four bytes, network byte order; one of length zero ends them. With `z`, answers end with NUL.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from typing import Any

from archiver.scan.base import Outcome, ScanFailed, ScannerAway, Verdict, told

CHUNK = 256 * 1024
LONGEST_ANSWER = 4096
ANSWER_SECONDS = 10.0
NOTICED_SECONDS = 0.2  # until we know that the last bytes, which were answered, are sent
# Found, by `AlertExceedsMax`, in what it did not look at as a whole.
TOO_MUCH = "Heuristics.Limits.Exceeded"


class Clamd:
    """`address` is host:port, or the path of a socket."""

    def __init__(self, address: str, timeout: timedelta) -> None:
        """`timeout` is for a whole scan."""
        self._address = address
        self._seconds = timeout.total_seconds()

    async def scan(self, chunks: AsyncIterator[bytes]) -> Verdict:
        """See `Scanner.scan`."""
        try:
            async with asyncio.timeout(self._seconds):
                with closing(await self._connected()) as connection:
                    return _verdict(*await _converse(connection, chunks))
        except TimeoutError:
            raise ScanFailed(f"clamd has not answered for {self._seconds:g} s") from None

    async def version(self) -> str:
        """Of the engine, and of its signatures. See `Scanner.version`."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                with closing(await self._connected()) as connection:
                    await _send(connection, b"zVERSION\0")
                    answer = await _answer(connection)
        except TimeoutError:
            raise ScannerAway(f"clamd has not answered for {ANSWER_SECONDS:g} s") from None
        except ScanFailed as error:
            raise ScannerAway(str(error)) from error
        if not answer.startswith(b"ClamAV"):
            raise ScannerAway(
                f"what answers at {self._address} is no clamd: check scan.clamd"
            ) from None
        return told(answer)

    async def _connected(self) -> socket.socket:
        """Raises ScannerAway."""
        try:
            return await self._connect()
        except (OSError, UnicodeError) as error:  # the latter of what can be no host's name
            reason = getattr(error, "strerror", None) or error
            raise ScannerAway(
                f"clamd does not answer at {self._address} ({reason}):"
                " check scan.clamd, and that clamd runs"
            ) from None

    async def _connect(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        if self._address.startswith("/"):
            return await _connected(socket.AF_UNIX, self._address)
        host, _, port = self._address.rpartition(":")
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        for family, _, _, _, address in found[:-1]:
            try:
                return await _connected(family, address)
            except OSError:
                continue
        family, _, _, _, address = found[-1]
        return await _connected(family, address)


async def _connected(family: int, address: str | tuple[Any, ...]) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


async def _converse(connection: socket.socket, chunks: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """The answer, and whether all was sent. It may come before that: then the rest is not.

    The socket is used as it is, because a stream of asyncio's forgets an answer that was not read
    before writing failed, as it does when clamd has had enough.
    """
    sending = asyncio.ensure_future(_stream(connection, chunks))
    answer = asyncio.ensure_future(_answer(connection))
    try:
        await asyncio.wait({sending, answer}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            await sending
        said = await answer
        await asyncio.wait({sending}, timeout=NOTICED_SECONDS)
        return said, sending.done() and await sending
    finally:
        sending.cancel()
        answer.cancel()
        await asyncio.gather(sending, answer, return_exceptions=True)


async def _stream(connection: socket.socket, chunks: AsyncIterator[bytes]) -> bool:
    """Sends all of it; False where who listens has gone, which its answer explains."""
    if not await _send(connection, b"zINSTREAM\0"):
        return False
    async for chunk in chunks:
        for start in range(0, len(chunk), CHUNK):
            piece = chunk[start : start + CHUNK]
            if not await _send(connection, struct.pack(">I", len(piece)) + piece):
                return False
    return await _send(connection, bytes(4))


async def _send(connection: socket.socket, data: bytes) -> bool:
    try:
        await asyncio.get_running_loop().sock_sendall(connection, data)
    except OSError:
        return False
    return True


async def _answer(connection: socket.socket) -> bytes:
    """What it says, up to the NUL. Raises ScanFailed."""
    loop, answer = asyncio.get_running_loop(), b""
    while not answer.endswith(b"\0") and len(answer) <= LONGEST_ANSWER:
        try:
            piece = await loop.sock_recv(connection, LONGEST_ANSWER)
        except OSError:
            piece = b""
        if not piece:
            raise ScanFailed("clamd closed the connection before it had answered")
        answer += piece
    return answer


def _verdict(answer: bytes, whole: bool) -> Verdict:
    """Raises ScanFailed for what is neither here nor there. `whole`: it was sent all of it."""
    if answer == b"stream: OK\0":
        if not whole:
            raise ScanFailed("clamd answered before it had all of it")
        return Verdict(Outcome.CLEAN)
    name = told(answer.removeprefix(b"stream: ").removesuffix(b" FOUND\0"))
    if answer.startswith(b"stream: ") and answer.endswith(b" FOUND\0") and name:
        if name.startswith(TOO_MUCH):
            return Verdict(Outcome.UNSCANNED, f"clamd did not look at all of it: {name}")
        return Verdict(Outcome.INFECTED, name)
    if answer == b"INSTREAM size limit exceeded. ERROR\0":
        return Verdict(Outcome.UNSCANNED, "it is larger than clamd takes: see its StreamMaxLength")
    raise ScanFailed(f"clamd answered: {told(answer) or 'nothing'}")
