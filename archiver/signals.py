"""The end of a process that was asked to stop: SIGINT or SIGTERM, once in good order."""

from __future__ import annotations

import asyncio
import os
import signal

import structlog

# Whoever signals a process and its group (timeout(1) does) means it once.
ONE_REQUEST_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Stopped(Exception):
    """A signal asked us to end."""


async def until_signalled() -> None:
    """Raises Stopped at the first signal; a later one ends the process on the spot."""
    loop = asyncio.get_running_loop()
    asked_at = loop.create_future()

    def asked() -> None:
        if not asked_at.done():
            asked_at.set_result(loop.time())
        elif loop.time() - asked_at.result() > ONE_REQUEST_SECONDS:
            os._exit(1)

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, asked)
    await asked_at
    log.info("stopping; once more to stop at once")
    raise Stopped
