"""Who supervises the embedded PostgreSQL, and for how long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import structlog

from archiver.db.embedded.binaries import choose_binaries
from archiver.db.embedded.folder import DataFolder, Lock
from archiver.db.embedded.server import Server, accepts
from archiver.errors import OperationError

log = structlog.get_logger(__name__)

JOIN_SECONDS = 120
_POLL_SECONDS = 0.1
_WATCH_SECONDS = 1
_RETRY_SECONDS = 10


class EmbeddedPostgres:
    """A PostgreSQL with the database `archiver`, from enter to exit.

    Of all processes that use one `data_dir`, one supervises the server: it started it, starts it
    again should it fail, and stops it on exit. The others are guests. When the supervisor goes, a
    guest takes its place within seconds; the DSN stays the same, open connections break.
    However the supervisor dies, the server does not outlive it.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> str:
        """Returns a DSN that works. Raises OperationError with a sentence for the operator.

        Enter in the main thread: the kernel ends the server with the thread that started it.
        """
        async with AsyncExitStack() as stack:
            with _plainly(self._data_dir):
                folder = await asyncio.to_thread(DataFolder, self._data_dir)
                member = _Member(folder)
                stack.push_async_callback(member.leave)
                await member.join()
                dsn = folder.dsn()
            stack.push_async_callback(_cancel, asyncio.create_task(member.watch()))
            self._stack = stack.pop_all()
        return dsn

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops the server if this process supervises it: its data is on disk then."""
        await self._stack.aclose()


class _Member:
    """This process among those that use the folder: a guest, until it holds the lock."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._lock = Lock(folder)
        self._server: Server | None = None

    async def join(self) -> None:
        """Returns when the database takes connections, ours or the other's that has the lock."""
        deadline = time.monotonic() + JOIN_SECONDS
        while not self._lock.acquire():
            # The lock goes before the server does, so a server that is being left is no good.
            if await accepts(self._folder.dsn()) and not self._lock.acquire():
                return
            if time.monotonic() > deadline:
                raise OperationError(
                    f"another archiver keeps the embedded PostgreSQL in {self._folder.path}, but"
                    f" it takes no connections in {JOIN_SECONDS} s: look into server.log there"
                )
            await asyncio.sleep(_POLL_SECONDS)
        await self._supervise()

    async def leave(self) -> None:
        """Stops the server if it is ours, and only then lets go of the lock."""
        try:
            if self._server:
                await self._server.stop()
        finally:
            self._lock.close()

    async def watch(self) -> None:
        """Keeps the database there until cancelled, whoever else comes and goes."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                with _plainly(self._folder.path):
                    await self._look_after()
            except OperationError as error:
                log.error("the embedded PostgreSQL is down", reason=str(error))
                await asyncio.sleep(_RETRY_SECONDS)

    async def _look_after(self) -> None:
        if self._server is None:
            if self._lock.acquire():
                log.warning("the archiver that kept the embedded PostgreSQL is gone: taking over")
                await self._supervise()
        elif self._server.running:
            self._server.bound_log()
        else:
            log.error("the embedded PostgreSQL ended by itself: starting it again")
            await self._server.start()

    async def _supervise(self) -> None:
        self._server = await asyncio.to_thread(self._prepare)
        await self._server.start()

    def _prepare(self) -> Server:
        self._folder.take_over()
        self._folder.make_password()
        self._folder.make_socket_folder()
        return Server(choose_binaries(self._folder), self._folder)


@contextmanager
def _plainly(data_dir: Path) -> Iterator[None]:
    """Turns what the system refuses into a sentence for the operator."""
    try:
        yield
    except OSError as error:
        raise OperationError(
            f"the embedded PostgreSQL cannot use its folder {data_dir} ({error}): that folder must"
            " belong to the user who runs the archiver, on a disk that is writable and not full"
        ) from error


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
