"""Readers on slow lines: each takes a little now and then, and the kernel keeps little for them.

    python -m bench.slow_readers

takes its order as JSON in the first line on standard input. It prints `reading` when every reader
has the beginning of an answer, and, when standard input ends, what the slowest and the fastest of
them got a second.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.http import BadAnswer, get_request
from tests.support.process import LOOPBACK

RECEIVE_BUFFER = 16 * 1024  # bytes; the kernel doubles it for its own needs
A_TIME = 16 * 1024
FIRST_WITHIN = 45


async def read(
    port: int, paths: Sequence[str], token: str, readers: int, bytes_a_second: int
) -> None:
    """Until standard input ends. Raises BadAnswer, OSError, TimeoutError."""
    made = [get_request(port, path, token) for path in paths]
    over, loop = asyncio.Event(), asyncio.get_running_loop()
    opened = [await _open(port) for _ in range(readers)]
    pause = A_TIME / bytes_a_second
    async with asyncio.timeout(FIRST_WITHIN):
        await asyncio.gather(
            *(_begin(one, made[number % len(made)]) for number, one in enumerate(opened))
        )
    print("reading", flush=True)
    ending = loop.run_in_executor(None, sys.stdin.read)
    started = time.perf_counter()
    tasks = [
        asyncio.create_task(_go_on(one, pause, number / readers, over))
        for number, one in enumerate(opened)
    ]
    await ending
    over.set()
    received = await asyncio.gather(*tasks)
    seconds = time.perf_counter() - started
    print(json.dumps({"slowest": min(received) / seconds, "fastest": max(received) / seconds}))


async def _open(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (LOOPBACK, port))
    return connection


async def _begin(connection: socket.socket, request: bytes) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, request)
    answer = await loop.sock_recv(connection, A_TIME)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise BadAnswer(answer[:500].decode("utf-8", "replace"))


async def _go_on(
    connection: socket.socket, pause: float, phase: float, over: asyncio.Event
) -> int:
    """How many bytes came."""
    loop, received = asyncio.get_running_loop(), 0
    turn = loop.time() + pause * phase
    while not over.is_set():
        await asyncio.sleep(turn - loop.time())
        count = len(await loop.sock_recv(connection, A_TIME))
        if not count:
            raise BadAnswer("the server closed the connection")
        received += count
        turn = max(turn + pause, loop.time())
    connection.close()
    return received


def main() -> None:
    """Carries out the order on standard input."""
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(read(**order))


if __name__ == "__main__":
    main()
