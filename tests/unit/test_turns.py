"""Turns of work, which may fail with the database."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from structlog.testing import capture_logs

from archiver.db.turns import outliving, woken
from archiver.errors import HomeserverUnavailable, StoreUnavailable

REFUSED = asyncpg.UniqueViolationError("duplicate key")


def turn(error: BaseException) -> None:
    """One that fails."""
    with outliving("mending", StoreUnavailable):
        raise error


@pytest.mark.parametrize(
    ("error", "level", "event"),
    [
        (OSError("gone"), "warning", "mending waits"),
        (asyncpg.CannotConnectNowError("starting"), "warning", "mending waits"),
        (StoreUnavailable("away"), "warning", "mending waits"),
        (REFUSED, "error", "mending failed, and is tried again"),
    ],
)
def test_a_turn_that_fails_is_told_and_outlived(error: Exception, level: str, event: str) -> None:
    """What is away is waited for; what PostgreSQL refuses is an error, with its traceback."""
    with capture_logs() as logs:
        turn(error)
    [line] = logs
    assert (line["log_level"], line["event"]) == (level, event)
    assert str(error) in line["reason"] if level == "warning" else line["exc_info"] is error


def test_other_errors_go_through() -> None:
    """So do outages that were not named, and nothing is said of them."""
    for error in (ValueError(), HomeserverUnavailable("away"), asyncio.CancelledError()):
        with capture_logs() as logs, pytest.raises(type(error)):
            turn(error)
        assert logs == []


async def test_who_waits_is_woken_or_has_waited_long_enough() -> None:
    """A wake that was before counts; without one it ends by itself; a cancel is no wake."""
    wake = asyncio.Event()
    await woken(wake, 0.01)
    assert not wake.is_set()
    waiting = asyncio.create_task(woken(wake, 3600))
    wake.set()
    await waiting
    await woken(wake, 3600)
    wake.clear()
    waiting = asyncio.create_task(woken(wake, 3600))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
