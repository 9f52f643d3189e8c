"""One helper process, seen from our side: started, asked, ended. It is never trusted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from typing import Any, NamedTuple

from archiver.errors import OperationError
from archiver.imaging import wire

COMMAND = (sys.executable, "-I", "-X", "utf8", "-m", "archiver.imaging.helper")
_START_SECONDS = 30.0
_CHUNK = 256 * 1024
_ENVIRONMENT = {
    "VIPS_CONCURRENCY": "1",
    # Pictures that do not fit must fail: there is no disk to spill to.
    "VIPS_DISC_THRESHOLD": "100g",
    # Each further arena reserves 64 MiB of the address space that is limited.
    "MALLOC_ARENA_MAX": "1",
}


class HelperLost(Exception):
    """The helper died, or said something that is no answer."""


class Answer(NamedTuple):
    """What a helper said, unchecked, and the bytes behind it."""

    head: dict[str, Any]
    data: bytes


class Helper:
    """A running helper. After anything but a good answer, `kill` it."""

    def __init__(self, process: Process, channel: socket.socket) -> None:
        self.jobs = 0
        self.walls: list[str] = []
        self.works: list[str] = []
        self._process = process
        self._channel = channel
        self._buffer = bytearray()

    @classmethod
    async def spawn(cls, command: Sequence[str] = COMMAND) -> Helper:
        """A new process, which did not say anything yet: `greet` it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with contextlib.ExitStack() as on_failure, theirs:
            on_failure.callback(ours.close)
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=theirs.fileno(),
                stdout=DEVNULL,
                stderr=DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
            on_failure.pop_all()
        return cls(process, ours)

    async def greet(self) -> None:
        """Waits for its hello. Raises OperationError where it does not come."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                hello = await self._line()
        except (TimeoutError, OSError, HelperLost, wire.Malformed) as error:
            hello = {"error": f"it did not say hello: {error}"}
        if problem := hello.get("error"):
            raise OperationError(
                f"no helper for pictures can be started ({problem}): see that the package pyvips"
                " with its binary wheel is installed, and that there is memory left"
            )
        self.walls = [str(name) for name in hello.get("walls", [])]
        self.works = [str(name) for name in hello.get("works", [])]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """False once its end was noticed."""
        return self._process.returncode is None

    async def ask(self, request: dict[str, Any], fd: int) -> Answer:
        """Its answer about the source open as `fd`. Raises HelperLost."""
        self.jobs += 1
        try:
            # Nothing else is on its way to the helper, so this short line never has to wait.
            socket.send_fds(self._channel, [wire.line(request)], [fd])
            head = await self._line()
            return Answer(head, await self._exactly(wire.length_of(head)))
        except (OSError, wire.Malformed) as error:
            raise HelperLost(str(error)) from None

    def kill(self) -> None:
        """Ends it and whatever it started, at once. `ended` waits until it is gone."""
        self._channel.close()
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def ended(self) -> None:
        """Returns when the process is gone."""
        await self._process.wait()

    async def _line(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > wire.LINE:
                raise wire.Malformed("an endless line")
            await self._receive()
        data = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return wire.parse(data)

    async def _exactly(self, length: int) -> bytes:
        while len(self._buffer) < length:
            await self._receive()
        if len(self._buffer) > length:
            raise wire.Malformed("more than was announced")
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def _receive(self) -> None:
        chunk = await asyncio.get_running_loop().sock_recv(self._channel, _CHUNK)
        if not chunk:
            raise HelperLost("it died")
        self._buffer += chunk
