"""Any program as a scanner: it is given the bytes, and its exit status tells."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import timedelta

from archiver.scan.base import Outcome, ScanFailed, ScannerAway, Verdict, told

CLEAN, INFECTED = 0, 1
READ = 64 * 1024
KEPT = 4096  # bytes of what a program prints, its last ones


class Command:
    """`command` is a program and its arguments. It reads the bytes from its standard input; it
    ends with 0 where they are clean, and with 1 where they are infected, the name of what was
    found on its last line. All else counts as not scanned."""

    def __init__(self, command: Sequence[str], timeout: timedelta) -> None:
        """`timeout` is for a whole scan, after which the program and its children are killed."""
        self._command = list(command)
        self._name = command[0]
        self._seconds = timeout.total_seconds()

    async def scan(self, chunks: AsyncIterator[bytes]) -> Verdict:
        """See `Scanner.scan`."""
        process = await self._start()
        try:
            async with asyncio.timeout(self._seconds):
                last, status = await _converse(process, chunks)
        except TimeoutError:
            raise ScanFailed(f"{self._name} has not ended in {self._seconds:g} s") from None
        finally:
            # Also what it left behind; what runs as another user ends when nobody feeds it.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        return self._verdict(status, last)

    async def version(self) -> str:
        """Which program it is. See `Scanner.version`."""
        path = await asyncio.to_thread(shutil.which, self._name)
        if path is None:
            raise ScannerAway(f"{self._name} is no program here: check scan.command")
        return path

    async def _start(self) -> Process:
        """In a session of its own, so that it ends with its children."""
        try:
            return await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise ScannerAway(
                f"{self._name} cannot be started ({error.strerror}): check scan.command"
            ) from None

    def _verdict(self, status: int, last: str) -> Verdict:
        if status == CLEAN:
            return Verdict(Outcome.CLEAN)
        if status == INFECTED and last:  # a program that breaks ends so too, without a name
            return Verdict(Outcome.INFECTED, last)
        ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise ScanFailed(f"{self._name} {ended}" + (f": {last}" if last else ""))


async def _converse(process: Process, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
    """The last line that it prints, and its exit status. It need not read everything."""
    assert process.stdin is not None  # noqa: S101 -- we asked for pipes
    assert process.stdout is not None  # noqa: S101
    sending = asyncio.ensure_future(_feed(process.stdin, chunks))
    printed = asyncio.ensure_future(_printed(process.stdout))
    ending = asyncio.ensure_future(process.wait())
    try:
        # Its end, not that of what it prints: it may have closed that, and still be reading.
        await asyncio.wait({sending, ending}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            await sending
        return await printed, await ending
    finally:
        for task in (sending, printed, ending):
            task.cancel()
        await asyncio.gather(sending, printed, ending, return_exceptions=True)


async def _feed(program: StreamWriter, chunks: AsyncIterator[bytes]) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):
        async for chunk in chunks:
            program.write(chunk)
            await program.drain()
    program.close()


async def _printed(output: StreamReader) -> str:
    end = b""
    while piece := await output.read(READ):
        end = (end + piece)[-KEPT:]
    lines = end.rstrip().splitlines()
    return told(lines[-1]) if lines else ""
