"""Readers who ask for one thing after the other, and how long each of them waits.

As a process of its own (`python -m bench.latency`) it takes the order as JSON on standard input
and prints the seconds that each answer took, as a list in JSON.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from bench.http import BadAnswer, get_request
from tests.support.process import LOOPBACK

BUFFER = 1024 * 1024
TIMEOUT = 60
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def ask(
    port: int,
    paths: Sequence[str],
    token: str,
    connections: int = 1,
    seconds: float | None = None,
    a_second: float | None = None,
) -> list[float]:
    """Each path once, or all again and again for some `seconds`; as fast as it can, or so often
    `a_second` over each connection. Raises BadAnswer, OSError."""
    made = [get_request(port, path, token) for path in paths]
    deadline = None if seconds is None else time.perf_counter() + seconds

    def some(reader: int) -> list[float]:
        return list(_read(port, made[reader::connections], deadline, a_second))

    with ThreadPoolExecutor(connections) as threads:
        return list(chain.from_iterable(threads.map(some, range(connections))))


def _read(
    port: int, requests: Sequence[bytes], deadline: float | None, a_second: float | None
) -> Iterator[float]:
    buffer = memoryview(bytearray(BUFFER))
    turn = time.perf_counter()
    with socket.create_connection((LOOPBACK, port), TIMEOUT) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            for request in requests:
                if deadline is not None and time.perf_counter() >= deadline:
                    return
                if a_second is not None:
                    time.sleep(max(0.0, turn - time.perf_counter()))
                    turn = max(turn + 1 / a_second, time.perf_counter())
                started = time.perf_counter()
                connection.sendall(request)
                _take(connection, buffer)
                yield time.perf_counter() - started
            if deadline is None:
                return


def _take(connection: socket.socket, buffer: memoryview) -> None:
    """One whole answer, which must be a 200."""
    head = b""
    while (end := head.find(b"\r\n\r\n")) < 0:
        head += _some(connection, buffer)
    length = _LENGTH.search(head[: end + 2])
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise BadAnswer(head[:500].decode("utf-8", "replace"))
    left = int(length[1]) - (len(head) - end - 4)
    while left > 0:
        left -= len(_some(connection, buffer))


def _some(connection: socket.socket, buffer: memoryview) -> memoryview:
    count = connection.recv_into(buffer)
    if not count:
        raise BadAnswer("the server closed the connection")
    return buffer[:count]


def main() -> None:
    """Carries out the order on standard input."""
    order: dict[str, Any] = json.load(sys.stdin)
    print(json.dumps(ask(**order)))


if __name__ == "__main__":
    main()
