"""`capture.on_redaction: keep`: what came emptied is asked for as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import aiohttp
import orjson
import pytest

from archiver.capture.policy import CapturePolicy
from archiver.errors import FetchFailed
from archiver.keep.originals import LOCK, Originals
from archiver.matrix.history import History
from tests.support.fetching import until
from tests.support.homeserver import BOT, TOKEN, Homeserver, error, plain
from tests.support.redacting import (
    EVERYTHING,
    ROOM,
    Event,
    emptied,
    hinted,
    image,
    media_row,
    push,
    redact,
    redaction,
)

if TYPE_CHECKING:
    from archiver.db.pool import Pool

A, R = image("$a"), redaction("$r", "$a")


def admin_api(
    homeserver: Homeserver, originals: Mapping[str, Event | None], *, admin: bool = True
) -> None:
    """Makes our bot an administrator, or not, of a homeserver that still has these events."""
    path = f"/_synapse/admin/v1/users/{BOT}/admin"
    homeserver.give(path, plain(200, orjson.dumps({"admin": admin}), "application/json"))
    for name, event in originals.items():
        path = f"/_synapse/admin/v1/fetch_event/${name}"
        known = plain(200, orjson.dumps({"event": event}), "application/json")
        homeserver.give(path, known if event else error(404, "M_NOT_FOUND"))


@pytest.fixture
def asking(pool: Pool, homeserver: Homeserver, http: aiohttp.ClientSession) -> Originals:
    """What runs under `keep`."""
    return Originals(pool, History(http, homeserver.url, TOKEN, BOT), EVERYTHING)


async def originals(pool: Pool) -> dict[str, str | None]:
    """What is said of each event's original."""
    rows = await pool.fetch(
        "SELECT event_id, original FROM event WHERE type <> 'm.room.redaction'"
    )
    return {row["event_id"]: row["original"] for row in rows}


async def test_originals_are_asked_for(
    pool: Pool, homeserver: Homeserver, asking: Originals
) -> None:
    """What carried media is kept, with its media redacted; what was ordinary text is forgotten;
    what the homeserver lost, or has emptied itself by now, is lost."""
    text = {**image("$text"), "content": {"msgtype": "m.text", "body": "hello"}}
    poll = {**image("$poll"), "type": "m.poll.start", "content": {"m.poll": {"a": 1}}}
    events = {"a": A, "text": text, "poll": poll, "gone": image("$gone"), "old": image("$old")}
    told: dict[str, Event | None] = {
        **events,
        "gone": None,
        "old": {**events["old"], "content": {}},
    }
    for name, event in events.items():
        by = redaction(f"$r-{name}", f"${name}")
        await push(pool, emptied(event, by), by)
        if found := told[name]:  # Synapse names the redaction beside the original, too
            told[name] = {**found, "unsigned": {"redacted_by": by["event_id"]}}
    await redact(pool)
    admin_api(homeserver, told)
    await asking.ask_for_all()
    assert await originals(pool) == {
        "$a": None,
        "$poll": None,
        "$gone": "lost",
        "$old": "lost",
    }
    assert await hinted(pool) == set()
    await redact(pool)
    assert await hinted(pool) == {"cat"}
    assert (await media_row(pool, "cat"))["state"] == "pending"
    content = await pool.fetchval("SELECT content FROM event WHERE event_id = '$poll'")
    assert orjson.loads(content) == poll["content"]


async def test_without_power_nothing_is_asked(
    pool: Pool, homeserver: Homeserver, asking: Originals
) -> None:
    """The event stays wanted, until somebody makes the bot an administrator."""
    await push(pool, emptied(A, R))
    admin_api(homeserver, {"a": A}, admin=False)
    await asking.ask_for_all()
    assert await originals(pool) == {"$a": "wanted"}
    assert [seen.path for seen in homeserver.seen] == [f"/_synapse/admin/v1/users/{BOT}/admin"]


async def test_another_event_is_no_original(
    pool: Pool, homeserver: Homeserver, asking: Originals
) -> None:
    """What the homeserver tells must be about the event that was asked for."""
    await push(pool, emptied(A, R))
    admin_api(homeserver, {"a": image("$b")})
    await asking.ask_for_all()
    assert await originals(pool) == {"$a": "lost"}


async def test_a_left_out_room_stays_left_out(
    pool: Pool, homeserver: Homeserver, http: aiohttp.ClientSession
) -> None:
    """An original from a room that is excluded by now is kept as one that is pushed: wordless."""
    await push(pool, emptied(A, R))
    admin_api(homeserver, {"a": A})
    policy = CapturePolicy("remote.example", excluded=frozenset({ROOM}))
    history = History(http, homeserver.url, TOKEN, BOT)
    await Originals(pool, history, policy).ask_for_all()
    assert (await media_row(pool, "cat"))["state"] == "excluded"


async def test_an_outage_of_the_homeserver_loses_no_original(
    pool: Pool, homeserver: Homeserver, asking: Originals
) -> None:
    """It is asked for when the homeserver is back."""
    await push(pool, emptied(A, R))
    admin_api(homeserver, {"a": A})
    await homeserver.stop()
    running = asyncio.create_task(asking.run())
    await homeserver.start()

    async def is_kept() -> bool:
        return await originals(pool) == {"$a": None}

    try:
        await asking.ask_for_all()
        await until(is_kept, "the original is kept")
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_one_that_fails_stops_no_other(
    pool: Pool, homeserver: Homeserver, asking: Originals
) -> None:
    """What the homeserver cannot tell now is asked for again, after the others."""
    b = image("$b")
    await push(pool, emptied(A, R), emptied(b, redaction("$r2", "$b")))
    admin_api(homeserver, {"b": b})
    homeserver.give("/_synapse/admin/v1/fetch_event/$a", error(500, "M_UNKNOWN"))
    with pytest.raises(FetchFailed):
        await asking.ask_for_all()
    assert await originals(pool) == {"$a": "wanted", "$b": None}
    admin_api(homeserver, {"a": A})
    await asking.ask_for_all()
    assert await originals(pool) == {"$a": None, "$b": None}


async def test_one_process_asks(pool: Pool, homeserver: Homeserver, asking: Originals) -> None:
    """While another one is at it, this one leaves it alone."""
    await push(pool, emptied(A, R))
    admin_api(homeserver, {"a": A})
    async with pool.acquire() as conn:
        await conn.execute("SELECT pg_advisory_lock($1)", LOCK)
        await asking.ask_for_all()
        assert await originals(pool) == {"$a": "wanted"}
        await conn.execute("SELECT pg_advisory_unlock($1)", LOCK)
    await asking.ask_for_all()
    assert await originals(pool) == {"$a": None}
