"""PostgreSQL's processes as the system sees them: waited for, found and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from archiver.errors import OperationError

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.02
# Fast, then immediate, and the seconds each is given. After the second, PostgreSQL itself kills
# what is left within 5 s: https://www.postgresql.org/docs/current/server-shutdown.html
SHUTDOWNS = ((signal.SIGINT, 60), (signal.SIGQUIT, 20))


def _servers_in(data: Path) -> list[int]:
    """The ids of PostgreSQL's processes at work in `data`; a reused id is never among them."""
    return [int(p.name) for p in Path("/proc").glob("[1-9]*") if _works_in(p, data)]


def _works_in(process: Path, data: Path) -> bool:
    try:
        if (process / "comm").read_text("utf-8", "replace").strip() != "postgres":
            return False
        if os.fsencode(f"\0-D\0{data}\0") in (process / "cmdline").read_bytes():
            return True  # not so far yet as to have entered its folder
        return (process / "cwd").samefile(data)
    except OSError:
        return False


async def end_leftovers(data: Path) -> None:
    """Ends what a killed archiver left, and clears a stale postmaster.pid.

    PostgreSQL itself would not start while any process of ours has the id which is noted there.
    """
    noted = data / "postmaster.pid"
    if _servers_in(data):
        log.warning("ending a PostgreSQL that an earlier archiver left", folder=str(data))
        for shutdown, seconds in SHUTDOWNS:
            _signal_server(_servers_in(data), noted, shutdown)
            if await until(lambda: not _servers_in(data), seconds):
                break
        else:
            raise OperationError(
                f"processes of an earlier PostgreSQL still work in {data} and do not end: "
                f"{_servers_in(data)}"
            )
    noted.unlink(missing_ok=True)


def _signal_server(processes: list[int], noted: Path, shutdown: signal.Signals) -> None:
    """Asks the postmaster; where it is gone, its orphans, as a postmaster's crash would."""
    try:
        postmaster = int(noted.read_text("utf-8").split(maxsplit=1)[0])
    except (FileNotFoundError, ValueError, IndexError):
        postmaster = 0
    if postmaster in processes:
        processes = [postmaster]
    else:
        shutdown = signal.SIGQUIT
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, shutdown)


async def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits for a condition. False when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True
