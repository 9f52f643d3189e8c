"""Which rooms are active: gathered from pushes, written in batches."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from archiver.capture.policy import CapturePolicy
from archiver.db.migrate import migrate
from archiver.db.pool import Pool, open_pool
from archiver.intake.activity import Activity, rooms_of
from archiver.intake.transactions import Intake
from tests.support.postgres import PostgresProcess

EVERY = timedelta(minutes=10)
ROOMS = "SELECT room_id FROM room ORDER BY room_id"


def text(room_id: Any) -> dict[str, Any]:
    content = {"msgtype": "m.text", "body": "hello"}
    return {"room_id": room_id, "type": "m.room.message", "content": content}


async def known(pool: Pool) -> list[str]:
    return [row["room_id"] for row in await pool.fetch(ROOMS)]


@pytest.mark.parametrize(
    "hostile",
    [
        None, 7, [], "", "room", "!" + "a" * 255, "!" + "\u00fc" * 128, "!\0", "!\ud800", "!a\n",
    ],
)  # fmt: skip
def test_what_is_no_room_id_is_left_out(hostile: Any) -> None:
    """One event's odd room keeps no other room from being noted."""
    assert rooms_of([text(hostile), "no event", None, text("!ours")]) == {"!ours"}


async def test_every_event_of_a_push_is_noted(pool: Pool) -> None:
    """Text messages, too, of which nothing else is kept; and that something was pushed at all."""
    activity = Activity(pool, EVERY)
    intake = Intake(
        pool, "secret", "@bot:b", "!archive", CapturePolicy("b"), pushed=activity.pushed
    ).application()
    async with TestClient(TestServer(intake)) as client:
        body = json.dumps({"events": [text("!a"), text("!b"), text("!a")]})
        headers = {"Authorization": "Bearer secret"}
        url = "/_matrix/app/v1/transactions/1"
        async with client.put(url, data=body, headers=headers) as answer:
            assert answer.status == 200
    assert await known(pool) == []
    await activity.flush()
    assert await known(pool) == ["!a", "!b"]
    assert await pool.fetchval("SELECT at FROM moment WHERE name = 'push'")
    assert await pool.fetchval("SELECT count(*) FROM event") == 0


async def test_without_pushes_nothing_is_written(pool: Pool) -> None:
    """An idle archive leaves the database alone."""
    await Activity(pool, EVERY).flush()
    assert await pool.fetchval("SELECT count(*) FROM moment") == 0


async def test_a_room_that_wakes_up_is_compared_soon(pool: Pool) -> None:
    """One that was active all along keeps its turn, and one that cannot be read its rest."""
    await pool.execute(
        "INSERT INTO room (room_id, active_at, due_at, reason) VALUES "
        "('!silent', now() - interval '3 days', now() + interval '1 day', NULL), "
        "('!active', now() - interval '1 minute', now() + interval '5 minutes', NULL), "
        "('!unreadable', NULL, now() + interval '1 day', 'the bot may not read it')"
    )
    activity = Activity(pool, EVERY)
    activity.pushed(["!silent", "!active", "!unreadable", "!new"])
    await activity.flush()
    rows = await pool.fetch(
        "SELECT room_id, round(extract(epoch FROM due_at - now()) / 60)::int, "
        "active_at > now() - interval '30 s' FROM room ORDER BY room_id"
    )
    assert list(map(tuple, rows)) == [
        ("!active", 5, True),
        ("!new", 0, True),
        ("!silent", 10, True),
        ("!unreadable", 24 * 60, True),
    ]


async def test_after_an_outage_the_rooms_are_still_noted(own_postgres: PostgresProcess) -> None:
    """What cannot be written waits for the next time."""
    async with open_pool(own_postgres.url, 2) as pool:
        async with pool.acquire() as conn:
            await migrate(conn)
        activity = Activity(pool, None)
        activity.pushed(["!a"])
        await asyncio.to_thread(own_postgres.stop)
        await activity.flush()
        activity.pushed(["!b"])
        await asyncio.to_thread(own_postgres.start)
        await activity.flush()
        assert await known(pool) == ["!a", "!b"]
