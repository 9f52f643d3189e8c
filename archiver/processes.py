"""Several processes that answer readers at one address, as `serve.processes` has it.

The first one does everything. Each of the others is `archiver run --only serve` with the same
configuration, started and watched by the first, and ends with it however that ends. They share
nothing but the address, the database, the stores, and a folder in which all of them count, so
that each can tell the metrics of all (https://prometheus.github.io/client_python/multiprocess/).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import structlog
from prometheus_client.multiprocess import mark_process_dead

from archiver.config import Address, Config
from archiver.errors import ConfigError
from archiver.imaging.sandbox import prctl
from archiver.metrics import SHARED_FOLDER
from archiver.serve.listening import Sharing

MOST_EMBEDDED = 8  # the embedded PostgreSQL takes so many connections, with some to spare
MOST_DOWNLOADS = 3  # a process takes connections by this number, see base.open_base
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
STEADY_SECONDS = 120.0  # who lived so long does not die of how it starts
CHILD_OF = "ARCHIVER_CHILD_OF"
COUNTS_FOR = "ARCHIVER_COUNTS_FOR"
_PR_SET_PDEATHSIG = 1  # prctl(2)

log = structlog.get_logger(__name__)


def is_child() -> bool:
    """Whether another process of the archiver started this one to serve beside it."""
    return CHILD_OF in os.environ


def door(config: Config) -> tuple[Address, Sharing]:
    """Where this process answers readers, and whether others do so, too."""
    sharing = Sharing.ALONE
    if config.serve.processes > 1:
        sharing = Sharing.FURTHER if is_child() else Sharing.FIRST
    return config.serve.listen, sharing


@contextlib.contextmanager
def counting_together(config: Config) -> Iterator[None]:
    """To be entered before anything is counted, where several processes serve.

    May start this program anew, with the same process id: libraries look at their environment
    when they are imported. Raises ConfigError.
    """
    if is_child():
        _end_with_parent()
    else:
        _check(config)
        if os.environ.get(COUNTS_FOR) != str(os.getpid()):
            os.environ[COUNTS_FOR] = str(os.getpid())
            os.environ[SHARED_FOLDER] = tempfile.mkdtemp(prefix="archiver-metrics-")
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 -- ourselves
    try:
        yield
    finally:
        # The first one tidies up; if it was killed, whoever outlived it.
        if not is_child() or not _parent_lives():
            shutil.rmtree(os.environ[SHARED_FOLDER], ignore_errors=True)


class Children:
    """The other serving processes, all there until cancelled."""

    def __init__(
        self, number: int, environment: Mapping[str, str], stop_within: timedelta
    ) -> None:
        """`environment` is theirs beside our own: nothing secret is in a command line."""
        self._number = number
        self._environment = {**os.environ, **environment, CHILD_OF: str(os.getpid())}
        self._stop_seconds = stop_within.total_seconds()

    async def run(self) -> None:
        """Starts each again that ends. Cancelled, it returns when none is left."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._number):
                group.create_task(self._keep_one())

    async def _keep_one(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            reason = await self._one_life()
            if time.monotonic() - began > STEADY_SECONDS:
                pause = FIRST_PAUSE
            log.error(
                "a serving process ended: another takes its place", reason=reason, in_s=pause
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _one_life(self) -> str:
        """Why it ended, or did not begin."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *sys.orig_argv[1:],
                "--only",  # the last one counts
                "serve",
                stdin=DEVNULL,
                env=self._environment,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end it in order
            )
        except OSError as error:
            return f"it cannot be started: {error.strerror}"
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            await self._end(process)
            raise
        finally:
            mark_process_dead(process.pid)  # type: ignore[no-untyped-call]  # has no types
        ended = f"signal {-status} ended it" if status < 0 else f"its exit status is {status}"
        return f"{ended} (process {process.pid})"

    async def _end(self, process: Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                async with asyncio.timeout(self._stop_seconds):
                    await process.wait()
            except TimeoutError:
                log.warning("a serving process does not end: it is killed", pid=process.pid)
                process.kill()
        await process.wait()


def children(config: Config, dsn: str) -> Children:
    """The processes that serve beside this one, maybe none. `dsn` is of the database that is up.

    Helpers for pictures, and downloads of what is read before it was archived, are divided among
    them: at least one for each.
    """
    processes = config.serve.processes
    downloads = config.worker.concurrency // processes
    environment = {
        "ARCHIVER_DATABASE__URL": dsn,
        "ARCHIVER_THUMBNAILS__HELPERS": str(max(1, config.thumbnails.helpers // processes)),
        "ARCHIVER_WORKER__CONCURRENCY": str(max(1, min(downloads, MOST_DOWNLOADS))),
    }
    number = 0 if is_child() else processes - 1
    return Children(number, environment, config.worker.stop_within)


def _check(config: Config) -> None:
    if config.database.url == "embedded" and config.serve.processes > MOST_EMBEDDED:
        raise ConfigError(
            f"serve.processes: with database.url embedded there may be {MOST_EMBEDDED}"
            f" (it is {config.serve.processes}): a PostgreSQL of your own takes more connections"
        )


def _end_with_parent() -> None:
    """The kernel sends us SIGTERM when the parent is gone, and we end in good order."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if not _parent_lives():  # it went before we asked to be told
        os._exit(1)


def _parent_lives() -> bool:
    """It may be our parent a little longer than it lives, until the last of its threads ended."""
    parent = os.environ[CHILD_OF]
    if parent != str(os.getppid()):
        return False
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{parent}/stat").read_bytes().rpartition(b")")[2].split()[0]
        return state not in {b"Z", b"X"}
    return False
