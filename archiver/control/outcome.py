"""How a command ended, whatever it did."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiohttp
import structlog
from mautrix.errors import MatrixError

from archiver.control.reply import Reply
from archiver.db.pool import DATABASE_AWAY
from archiver.errors import ArchiverError

FAULT = "This is a fault of the archive; its log tells more."
STOP_SECONDS = 5.0

T = TypeVar("T")

log = structlog.get_logger(__name__)


async def outcome(work: Coroutine[Any, Any, T]) -> T | Reply:
    """What it replied, or the sentence of its error. Raises DATABASE_AWAY: it may be done again.

    Cancelled, it is gone when this returns.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=STOP_SECONDS)
    error = task.exception() if not task.cancelled() else asyncio.CancelledError()
    if error is None:
        return task.result()
    if isinstance(error, ArchiverError):
        return failed(str(error))
    if isinstance(error, MatrixError | aiohttp.ClientError):
        return failed(f"the homeserver did not do it: {error}")
    if isinstance(error, DATABASE_AWAY):
        raise error
    log.error("a command died", exc_info=error)
    return failed(FAULT)


def failed(sentence: str) -> Reply:
    """A reply that tells why it did not work."""
    return Reply((sentence,), failed=True)
