"""A client that costs little: answers are read into one buffer and thrown away.

As a process of its own (`python -m bench.http`) it takes the order as JSON on standard input and
gives its findings as JSON on standard output. The same client asks everybody.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any, cast

import uvloop

from tests.support.process import LOOPBACK

BUFFER = 1024 * 1024
LONGEST_SECONDS = 300
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class BadAnswer(Exception):
    """Not a 200, or one without a Content-Length."""


class Connection(asyncio.BufferedProtocol):
    """Asks for one thing after the other, until there is no more to ask for."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.answers = self.received = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._buffer = memoryview(bytearray(BUFFER))
        self._head = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class
        self._ask()

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Always the same: nobody looks at it for long."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Counts down to the end of the answer."""
        self.received += nbytes
        if self._left == 0:
            nbytes = self._after_head(nbytes)
        self._left -= nbytes
        if self._left == 0 and not self._head:
            self.answers += 1
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """Too early unless everything was asked and answered."""
        if not self.done.done():
            self.done.set_exception(exc or BadAnswer("the server closed the connection"))

    def _ask(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self.done.set_result(None)
            self._transport.close()
        else:
            self._transport.write(request)

    def _after_head(self, nbytes: int) -> int:
        """Takes the head off; returns how many bytes of the body came along."""
        self._head += bytes(self._buffer[:nbytes])
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return 0
        head, body = self._head[: end + 2], len(self._head) - end - 4
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200") or length is None:
            self.done.set_exception(BadAnswer(self._head[:500].decode("utf-8", "replace")))
            self._transport.abort()
            return 0
        self._head = b""
        self._left = int(length[1])
        return body


def get_request(port: int, path: str, token: str, *headers: str) -> bytes:
    """A GET, ready to be sent; without a token where it is empty."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {LOOPBACK}:{port}", *headers]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode()


def until(deadline: float, made: Sequence[bytes]) -> Iterator[bytes]:
    """Round and round, until the deadline."""
    for one in cycle(made):
        if time.perf_counter() >= deadline:
            return
        yield one


async def get(
    port: int, paths: Sequence[str], token: str, connections: int, seconds: float | None
) -> dict[str, float]:
    """Each path once, or all again and again for some `seconds`. Raises BadAnswer, OSError."""
    made = [get_request(port, path, token) for path in paths]
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    source = iter(made) if seconds is None else until(started + seconds, made)
    opened = [
        (await loop.create_connection(lambda: Connection(source), LOOPBACK, port))[1]
        for _ in range(connections)
    ]
    async with asyncio.timeout(LONGEST_SECONDS):
        await asyncio.gather(*(connection.done for connection in opened))
    return {
        "answers": sum(connection.answers for connection in opened),
        "bytes": sum(connection.received for connection in opened),
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    """Carries out the order on standard input."""
    order: dict[str, Any] = json.load(sys.stdin)
    print(json.dumps(uvloop.run(get(**order))))


if __name__ == "__main__":
    main()
