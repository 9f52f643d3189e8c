"""LISTEN goes on, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import asyncpg
import pytest

from archiver.db.listen import Listener
from tests.support.postgres import PostgresProcess

if TYPE_CHECKING:
    from archiver.db.pool import Pool

LISTENERS = (
    "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN %' AND datname = current_database()"
)


@asynccontextmanager
async def running(listener: Listener) -> AsyncIterator[None]:
    task = asyncio.create_task(listener.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(true: Callable[[], bool]) -> None:
    """Returns once it is so; fails after twenty seconds."""
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_notification_calls_back(pool: Pool, database_url: str) -> None:
    """Every callback of a channel is called, once on connection and once a NOTIFY, no others."""
    listener = Listener(database_url)
    calls: list[str] = []
    listener.on("one", lambda: calls.append("one"))
    listener.on("one", lambda: calls.append("one too"))
    listener.on("two", lambda: calls.append("two"))
    async with running(listener):
        await until(lambda: len(calls) == 3)
        await pool.execute("SELECT pg_notify('one', '')")
        await until(lambda: len(calls) == 5)
        await pool.execute("SELECT pg_notify('three', ''), pg_notify('two', 'x')")
        await until(lambda: len(calls) == 6)
    assert calls == ["one", "one too", "two", "one", "one too", "two"]


async def test_a_callback_may_take_what_was_sent(pool: Pool, database_url: str) -> None:
    """It gets None once it is connected, then each payload; before and after, nobody listens."""
    listener = Listener(database_url)
    calls: list[str | None] = []
    listener.on_payload("one", calls.append)
    assert not listener.connected
    async with running(listener):
        await until(lambda: listener.connected)
        await pool.execute("SELECT pg_notify('one', ''), pg_notify('one', 'x/y')")
        await until(lambda: len(calls) == 3)
        assert await pool.fetchval(
            "SELECT pg_terminate_backend($1)", await pool.fetchval(LISTENERS)
        )
        await until(lambda: not listener.connected)
    assert not listener.connected
    assert calls == [None, "", "x/y"]


async def test_a_cut_connection_is_made_anew(pool: Pool, database_url: str) -> None:
    """After an administrator's kill the listener returns, and calls back for what it missed."""
    listener = Listener(database_url)
    calls: list[None] = []
    listener.on("one", lambda: calls.append(None))
    async with running(listener):
        await until(lambda: len(calls) == 1)
        pid = await pool.fetchval(LISTENERS)
        assert await pool.fetchval("SELECT pg_terminate_backend($1)", pid)
        await until(lambda: len(calls) == 2)
        await pool.execute("SELECT pg_notify('one', '')")
        await until(lambda: len(calls) == 3)


async def test_a_database_that_comes_later_is_waited_for(own_postgres: PostgresProcess) -> None:
    """No server at the start is no reason to end."""
    await asyncio.to_thread(own_postgres.stop)
    with pytest.raises(OSError):  # noqa: PT011 -- any of the ways in which nobody is there
        await asyncpg.connect(own_postgres.url)
    called = asyncio.Event()
    listener = Listener(own_postgres.url)
    listener.on("one", called.set)
    async with running(listener):
        await asyncio.to_thread(own_postgres.start)
        await asyncio.wait_for(called.wait(), 20)


async def test_when_it_is_cancelled_the_connection_is_gone(pool: Pool, database_url: str) -> None:
    """Nothing is left behind on the server."""
    connected = asyncio.Event()
    listener = Listener(database_url)
    listener.on("one", connected.set)
    async with running(listener):
        await asyncio.wait_for(connected.wait(), 20)
    async with asyncio.timeout(20):
        while await pool.fetchval(LISTENERS) is not None:  # noqa: ASYNC110 -- only asking tells
            await asyncio.sleep(0.01)
