"""How much of what was posted is here, and why the rest is not: of each room, and of all."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import orjson
import pytest

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import coverage
from archiver.model import Source
from tests.support.serving import DEADLINE_SECONDS, POLICY, Archive, Reader, serving

if TYPE_CHECKING:
    from archiver.db.pool import Pool

ROOM, OTHER = "!room:a", "!other:a"
NOW = datetime(2025, 6, 1, tzinfo=UTC)
NOTHING = dict.fromkeys(("pending", "ready", "failed", "excluded", "quarantined", "deleted"), 0)


def image(event_id: str, media_id: str, room_id: str = ROOM, **fields: Any) -> dict[str, Any]:
    content = {"msgtype": "m.image", "body": "a.png", "url": f"mxc://archive.test/{media_id}"}
    return {
        "event_id": event_id,
        "room_id": room_id,
        "sender": "@alice:archive.test",
        "type": "m.room.message",
        "origin_server_ts": 1_735_689_600_000,
        "content": content,
        **fields,
    }


async def settle(archive: Archive, media_id: str, state: str, reason: str | None = None) -> None:
    """Lets a media have ended so."""
    await archive.pool.execute(
        "INSERT INTO blob (sha256, size, place) VALUES (sha256(''), 0, 'inline')"
        " ON CONFLICT DO NOTHING"
    )
    await archive.pool.execute(
        "UPDATE media SET state = $2, reason = $3, blob_sha256 = sha256('') WHERE media_id = $1",
        media_id,
        state,
        reason,
    )


async def of_room(reader: Reader, room_id: str = ROOM) -> dict[str, Any]:
    room = await reader.json(f"/api/v1/rooms/{quote(room_id)}")
    found: dict[str, Any] = room["coverage"]
    return found


async def of_all(reader: Reader) -> dict[str, Any]:
    found: dict[str, Any] = (await reader.json("/api/v1/stats"))["coverage"]
    return found


async def test_references_are_counted_by_state_and_reason(
    archive: Archive, reader: Reader
) -> None:
    """What is left out on purpose is as visible as what failed; a media named twice counts twice,
    and another room's does not count."""
    states = ("ready", "ready", "pending", "failed", "failed", "quarantined", "deleted")
    names = [f"{state}{n}" for n, state in enumerate(states)]
    await archive.record(*(image(f"${name}", name) for name in names))
    await archive.record(image("$again", "ready0"), image("$elsewhere", "other", OTHER))
    for name, state in zip(names, states, strict=True):
        reason = {"failed3": "the homeserver lost it: 404", "failed4": "broken"}.get(name)
        await settle(archive, name, state, reason)
    locals_only = CapturePolicy(POLICY.server_name, remote_media=False)
    remote = {"msgtype": "m.image", "url": "mxc://remote.example/r"}
    await archive.record(image("$remote", "", content=remote), policy=locals_only)
    await archive.record(image("$big", "big"))
    await settle(archive, "big", "excluded", "capture.max_size: it has 3 MiB")
    found = await of_room(reader)
    assert found["references"] == {
        "pending": 1,
        "ready": 3,
        "failed": 2,
        "excluded": 2,
        "quarantined": 1,
        "deleted": 1,
    }
    assert found["excluded"] == {"capture.remote_media": 1, "capture.max_size": 1}
    assert found["failed"] == {"the homeserver lost it": 1, "broken": 1}
    assert found["percent"] == 42.85
    total = await of_all(reader)
    assert total["references"] == found["references"] | {"pending": 2}
    assert (total["excluded"], total["failed"]) == (found["excluded"], found["failed"])
    assert total["percent"] == 37.5


@pytest.mark.parametrize(
    ("ready", "due", "expected"),
    [(0, 0, 100), (1, 1, 100), (0, 5, 0), (2, 3, 66.66), (10**6 - 1, 10**6, 99.99),
     (10**12 - 1, 10**12, 99.99), (29, 100, 29), (57, 100, 57), (1, 10**6, 0)],
)  # fmt: skip
def test_a_hundred_percent_is_all_of_it(ready: int, due: int, expected: float) -> None:
    """Rounded down to hundredths, and nothing to have is all of it."""
    assert coverage.percent(ready, due) == expected


async def test_what_cannot_be_opened_and_what_came_emptied_is_counted(
    archive: Archive, reader: Reader
) -> None:
    """Encrypted events, events whose words a redaction took, and what was never pushed."""
    nothing: dict[str, Any] = {"content": {}}
    emptied: dict[str, Any] = {
        "content": {},
        "unsigned": {"redacted_because": {"type": "m.room.redaction"}},
    }
    await archive.record(
        image("$1", "", type="m.room.encrypted", **nothing),
        image("$2", "", type="m.room.encrypted", **nothing),
        image("$3", "", **emptied),
        image("$4", "", **emptied),
        image("$5", "", OTHER, type="m.room.encrypted", **nothing),
    )
    await archive.pool.execute("UPDATE event SET original = 'lost' WHERE event_id = '$4'")
    await archive.record(image("$6", "gap"), source=Source.RECONCILE)
    found, total = await of_room(reader), await of_all(reader)
    assert (found["encrypted_events"], total["encrypted_events"]) == (2, 3)
    for counted in (found, total):
        assert counted["emptied_events"] == {"wanted": 1, "lost": 1}
        assert counted["gaps"]["filled"] == 1
    assert found["references"] == NOTHING | {"pending": 1}


async def room(pool: Pool, room_id: str = ROOM, **columns: Any) -> None:
    """A row of `room`."""
    await pool.execute(
        "INSERT INTO room SELECT r.* FROM jsonb_populate_record(NULL::room, $1) AS r",
        orjson.dumps(
            {"room_id": room_id, "seen_at": NOW, "due_at": NOW, "attempts": 0, **columns}
        ).decode(),
    )


@pytest.mark.parametrize(
    ("columns", "shown", "is_open", "history"),
    [
        ({}, (None, None, None), True, "unknown"),
        (
            {"complete_from": "-infinity", "complete_until": NOW},
            ("beginning", NOW.isoformat(), None),
            False,
            "complete",
        ),
        (
            {"complete_from": NOW - timedelta(days=9), "complete_until": NOW - timedelta(days=2)},
            ((NOW - timedelta(days=9)).isoformat(), (NOW - timedelta(days=2)).isoformat(), None),
            True,
            "partial",
        ),
        (
            {"complete_from": "-infinity", "complete_until": NOW, "reason": "not in it"},
            ("beginning", NOW.isoformat(), "not in it"),
            False,
            "unreadable",
        ),
    ],
    ids=["unknown", "complete", "partial", "unreadable"],
)
async def test_the_history_of_a_room_is_known_or_not(
    archive: Archive,
    reader: Reader,
    columns: dict[str, Any],
    shown: tuple[str | None, str | None, str | None],
    is_open: bool,
    history: str,
) -> None:
    """From when, until when, why not, and whether something may be missing since."""
    doubt = NOW - timedelta(days=1)
    await archive.pool.execute("INSERT INTO moment VALUES ('doubt', $1)", doubt)
    await room(archive.pool, **columns)
    found, total = await of_room(reader), await of_all(reader)
    said = found["history"]
    assert (said["complete_from"], said["complete_until"], said["reason"]) == shown
    assert said["backfill"] is None
    assert found["gaps"] == {"filled": 0, "open": is_open}
    assert total["gaps"] == {"filled": 0, "rooms_open": int(is_open)}
    assert total["rooms"] == dict.fromkeys(coverage.HISTORY, 0) | {history: 1}
    assert (found["percent"], found["references"]) == (100, NOTHING)


async def test_without_a_doubt_what_was_compared_is_whole(
    archive: Archive, reader: Reader
) -> None:
    """Nothing has happened that could have lost a push."""
    await room(archive.pool, complete_until=NOW)
    assert not (await of_room(reader))["gaps"]["open"]


async def test_a_backfill_is_shown_with_how_far_it_is(archive: Archive, reader: Reader) -> None:
    """Also where nothing is known of the room yet, and where it ended."""
    await room(archive.pool)
    await archive.pool.execute(
        "INSERT INTO backfill (room_id, state, reason, reached_at, events)"
        " VALUES ($1, 'failed', 'forbidden', $2, 1234)",
        ROOM,
        NOW,
    )
    assert (await of_room(reader))["history"]["backfill"] == {
        "state": "failed",
        "reached_at": NOW.isoformat(),
        "events": 1234,
        "reason": "forbidden",
    }
    await archive.pool.execute("UPDATE backfill SET state = 'pending', reached_at = '-infinity'")
    assert (await of_room(reader))["history"]["backfill"]["reached_at"] is None


async def test_a_list_of_rooms_has_the_coverage_of_each(archive: Archive, reader: Reader) -> None:
    """The same that each has alone."""
    await archive.record(image("$1", "a"), image("$2", "b"), image("$3", "c", OTHER))
    for media_id in "ac":
        await settle(archive, media_id, "ready")
    for room_id in (ROOM, OTHER, "!empty:a"):
        await room(archive.pool, room_id, active_at=NOW)
    listed = (await reader.json("/api/v1/rooms"))["rooms"]
    percents = {found["room_id"]: found["coverage"]["percent"] for found in listed}
    assert percents == {ROOM: 50, OTHER: 100, "!empty:a": 100}
    for found in listed:
        assert found["coverage"] == await of_room(reader, found["room_id"])


async def test_a_dashboard_shows_the_coverage(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """Counted when the server starts, without anybody asking for it."""
    await archive.record(
        image("$1", "a"),
        image("$2", "", type="m.room.encrypted", content={}),
        image("$3", "", content={}, unsigned={"redacted_because": {"a": 1}}),
    )
    await room(archive.pool)
    expected = {
        'archiver_covered_references{state="pending"} 1.0',
        'archiver_covered_references{state="ready"} 0.0',
        "archiver_encrypted_events 1.0",
        'archiver_emptied_events{original="wanted"} 1.0',
        'archiver_emptied_events{original="lost"} 0.0',
        'archiver_rooms{history="unknown"} 1.0',
        'archiver_rooms{history="complete"} 0.0',
        "archiver_rooms_with_open_gaps 1.0",
    }
    async with serving(archive, database_url) as server, asyncio.timeout(DEADLINE_SECONDS):
        reader, lines = Reader(http, server, await archive.token()), set[str]()
        while not expected <= lines:
            async with reader.ask("/metrics") as answer:
                lines = set((await answer.text()).splitlines())


async def test_the_least_complete_rooms_come_first(archive: Archive) -> None:
    """Those that lack nothing do not come at all, nor does what could not be had count."""
    await archive.record(
        *(image(f"$a{n}", f"a{n}", "!half") for n in range(2)),
        *(image(f"$b{n}", f"b{n}", "!third") for n in range(3)),
        image("$c", "c", "!whole"),
        image("$d", "d", "!whole"),
    )
    for media_id in ("a0", "b0", "c"):
        await settle(archive, media_id, "ready")
    await settle(archive, "d", "excluded", "capture.max_size: large")
    async with archive.pool.acquire() as conn:
        rows = await coverage.least_complete(conn, 5)
    assert [(row["room_id"], row["ready"], row["due"]) for row in rows] == [
        ("!third", 1, 3),
        ("!half", 1, 2),
    ]
