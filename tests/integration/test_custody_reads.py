"""Custody anchors what persons read, without telling of them when that expired."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import asyncpg
import pytest

from archiver.catalogue import readers
from archiver.catalogue.anchors import BEFORE
from archiver.catalogue.readers import Read, Reads
from archiver.control.reply import plain
from archiver.keep.sealing import GATHERED, Sealer
from archiver.model import Mxc
from tests.integration.test_query_plans import plan
from tests.support.custody import Desk, check, gather, seal, tamper
from tests.support.keeping import custody

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

NOW = datetime.now(UTC)
DAY, KEEP = timedelta(days=1), timedelta(days=90)


async def note(conn: Connection, *ages: timedelta) -> None:
    """A read for each, each of another media, so long ago."""
    await readers.add(
        conn,
        {
            Read("user:@bob:a.test", None, Mxc("a.test", f"m{n}")): Reads(
                2, NOW - age - timedelta(seconds=5), NOW - age
            )
            for n, age in enumerate(ages)
        },
    )


async def read(pool: Pool, *ages: timedelta) -> None:
    async with pool.acquire() as conn:
        await note(conn, *ages)


async def expire(pool: Pool, keep: timedelta = KEEP, limit: int = 100) -> int:
    """What tidying deletes."""
    async with pool.acquire() as conn:
        return await readers.delete_old(conn, keep, limit)


async def told(pool: Pool, action: str) -> list[dict[str, Any]]:
    """What the lines with this action tell."""
    found = await custody(pool)
    assert not [line for line in found if line[0] != "archiver"]
    return [line[4] for line in found if line[2] == action]


async def wrong(pool: Pool) -> list[str]:
    """What verifying finds, once all is sealed."""
    await seal(pool)
    return (await check(pool)).wrong


@pytest.fixture
async def anchored(pool: Pool) -> Pool:
    """Four reads in one sealed line, the last two of today."""
    await read(pool, 100 * DAY, 95 * DAY, DAY / 2, DAY / 3)
    await gather(pool)
    await seal(pool)
    return pool


async def test_reads_are_anchored(anchored: Pool) -> None:
    """A line tells their ids, their number and a hash, and nothing of who read what."""
    [line] = await told(anchored, "read")
    assert {key: line[key] for key in ("first", "last", "count")} == {
        "first": 1, "last": 4, "count": 4,
    }  # fmt: skip
    assert datetime.fromisoformat(line["newest"]) == NOW - DAY / 3
    assert set(line) == {"first", "last", "count", "newest", "sha256"}
    found = await check(anchored)
    assert (found.rows, found.reads, found.waiting, found.wrong) == (1, 4, 0, [])
    await gather(anchored)
    assert len(await told(anchored, "read")) == 1
    await read(anchored, DAY)
    assert (await check(anchored)).waiting == 1
    await gather(anchored)
    assert [(one["first"], one["last"]) for one in await told(anchored, "read")] == [
        (1, 4),
        (5, 5),
    ]
    assert await wrong(anchored) == []


async def test_the_time_zone_changes_nothing(anchored: Pool) -> None:
    """Nor does any other setting of a session."""
    for setting in ("TIME ZONE 'Asia/Kathmandu'", "DateStyle TO 'German'"):
        async with anchored.acquire() as conn:
            await conn.execute(f"SET {setting}")
        assert (await check(anchored)).wrong == []


async def test_batches_are_bounded(pool: Pool) -> None:
    """And follow one another."""
    await read(pool, *[DAY] * (GATHERED + 1))
    assert await Sealer(pool).gather()
    assert not await Sealer(pool).gather()
    lines = await told(pool, "read")
    assert [(one["first"], one["count"]) for one in lines] == [(1, GATHERED), (GATHERED + 1, 1)]
    assert await wrong(pool) == []


async def test_what_commits_late_is_waited_for(pool: Pool) -> None:
    """While somebody adds reads, whose ids are lower, none are anchored."""
    async with pool.acquire() as slow:
        lost, late = slow.transaction(), slow.transaction()
        await lost.start()
        await note(slow, DAY)
        await lost.rollback()
        await late.start()
        await note(slow, DAY, DAY)
        await read(pool, DAY)
        await gather(pool)
        assert await told(pool, "read") == []
        await late.commit()
    await gather(pool)
    [line] = await told(pool, "read")
    assert (line["first"], line["last"], line["count"]) == (1, 4, 3)
    assert await wrong(pool) == []


async def test_one_anchors_at_a_time(pool: Pool) -> None:
    """No two anchor the same read, and reading goes on meanwhile."""
    for _ in range(5):
        await asyncio.gather(read(pool, DAY, DAY), *(Sealer(pool).gather() for _ in range(3)))
    await gather(pool)
    assert sum(line["count"] for line in await told(pool, "read")) == 10
    assert await wrong(pool) == []


async def test_what_expires_is_no_difference(anchored: Pool) -> None:
    """Custody tells how many there were and how old; the rest is compared as before."""
    assert await expire(anchored, limit=1) == 1
    assert await wrong(anchored) == []
    assert await expire(anchored) == 1
    assert await expire(anchored) == 0
    first, second = await told(anchored, "reads expired")
    assert (first["count"], second["count"]) == (1, 1)
    assert datetime.fromisoformat(first["oldest"]) == NOW - 100 * DAY
    assert NOW - KEEP <= datetime.fromisoformat(second["before"]) < NOW - KEEP + DAY
    assert await wrong(anchored) == []
    assert (await check(anchored)).reads == 2
    await tamper(anchored, "UPDATE reading SET times = 1 WHERE id = 4")
    assert await wrong(anchored) == ["read 4 was changed"]


async def test_digests_go_with_the_reads(anchored: Pool) -> None:
    """When the newest of a batch has expired, nothing is left of it but its line."""
    await read(anchored, DAY / 4)
    await gather(anchored)
    assert await expire(anchored, DAY / 3.5) == 4
    assert await anchored.fetchval("SELECT array_agg(last_id) FROM reading_anchor") == [5]
    assert await wrong(anchored) == []


async def test_what_expired_before_it_was_anchored_is_not_missed(pool: Pool) -> None:
    """As after an upgrade; and what is anchored while it waits to be deleted goes as well."""
    await read(pool, *[100 * DAY] * 3)
    assert await expire(pool, limit=2) == 2
    await gather(pool)
    assert await expire(pool) == 1
    await gather(pool)
    await read(pool, DAY)
    await gather(pool)
    lines = await told(pool, "read")
    assert [(one["first"], one["last"], one["count"]) for one in lines] == [(1, 3, 1), (4, 4, 1)]
    assert await wrong(pool) == []


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE reading SET reader = 'user:@eve:a.test' WHERE id = 2", ["read 2 was changed"]),
        ("UPDATE reading SET via = '' WHERE id = 2", ["read 2 was changed"]),
        ("UPDATE reading SET media_id = 'other' WHERE id = 3", ["read 3 was changed"]),
        ("UPDATE reading SET first_at = first_at - interval '1 microsecond' WHERE id = 4",
         ["read 4 was changed"]),
        ("UPDATE reading SET last_at = last_at - interval '200 days' WHERE id = 4",
         ["read 4 was changed"]),
        ("DELETE FROM reading WHERE id >= 3",
         ["read 3, of {3}, is gone", "read 4, of {4}, is gone"]),
        ("DELETE FROM reading", ["read 1, of {1}, is gone", "read 2, of {2}, is gone",
                                 "read 3, of {3}, is gone", "read 4, of {4}, is gone"]),
        ("INSERT INTO reading (id, reader, server_name, media_id, times, first_at, last_at)"
         " OVERRIDING SYSTEM VALUE VALUES (-7, 'r', 's', 'm', 1, now(), now())",
         ["read -7 was added by hand"]),
        ("DELETE FROM reading_anchor", ["the digests of reads 1 to 4 are gone"]),
        ("UPDATE reading_anchor SET entries = set_byte(entries, 20, 255 - get_byte(entries, 20))",
         ["the digests of reads 1 to 4 were changed"]),
        ("INSERT INTO custody (actor, place, action, detail) VALUES ('archiver', 'worker', 'read',"
         " '{\"last\": \"much\"}')", ["row 2 tells of reads, and not as the archive does"]),
        ("INSERT INTO custody (actor, place, action, detail) VALUES ('archiver', 'worker', 'read',"
         " '[1]')", ["row 2 tells of reads, and not as the archive does"]),
        # That nothing is missed which is deleted later, for a thousand years.
        ("WITH gone AS (DELETE FROM reading WHERE id = 4) INSERT INTO custody"
         " (actor, place, action, detail) VALUES ('archiver', 'serve', 'reads expired',"
         " '{\"count\": 1, \"newest\": \"2026-01-01T00:00:00Z\","
         " \"before\": \"2999-01-01T00:00:00Z\"}')",
         ["row 2 tells of reads, and not as the archive does"]),
    ],
)  # fmt: skip
async def test_what_was_changed_is_named(
    anchored: Pool, statement: str, expected: list[str]
) -> None:
    """The very reads, and no others."""
    rows = await anchored.fetch("SELECT id, last_at FROM reading")
    times = {row["id"]: f"{row['last_at']:%Y-%m-%d %H:%M}" for row in rows}
    await tamper(anchored, statement)
    assert await wrong(anchored) == [_filled(one, times) for one in expected]


async def test_what_is_gone_is_told_though_older_ones_expired(anchored: Pool) -> None:
    """Expiry excuses only what was old enough."""
    await expire(anchored)
    await tamper(anchored, "DELETE FROM reading WHERE id = 3")
    [sentence] = await wrong(anchored)
    assert sentence.startswith("read 3, of ")


async def test_what_is_slipped_into_a_batch_is_told(pool: Pool) -> None:
    """Under an id that was free, whether the others of the batch are still there or expired."""
    async with pool.acquire() as conn:
        lost = conn.transaction()
        await lost.start()
        await note(conn, DAY)
        await lost.rollback()
    await read(pool, DAY, DAY)
    await gather(pool)
    await tamper(
        pool,
        "INSERT INTO reading (id, reader, server_name, media_id, times, first_at, last_at)"
        " OVERRIDING SYSTEM VALUE VALUES (1, 'r', 's', 'm', 1, now(), now())",
    )
    assert await wrong(pool) == ["read 1 was added afterwards"]
    assert await expire(pool, DAY / 2) == 2
    assert await wrong(pool) == ["read 1 was added afterwards"]


@pytest.mark.parametrize("statement", ["UPDATE reading SET times = 1", "TRUNCATE reading"])
async def test_nobody_changes_reads(anchored: Pool, statement: str) -> None:
    """Not even one."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="never changed"):
        await anchored.execute(statement)


@pytest.mark.parametrize("keep", [None, "", "80 days", "-1 day"])
async def test_nobody_deletes_what_is_not_old(anchored: Pool, keep: str | None) -> None:
    """Nor anything without saying how long reads are kept; and that is in custody."""
    async with anchored.acquire() as conn, conn.transaction():
        if keep is not None:
            await conn.execute("SELECT set_config('archiver.keep_reads', $1, true)", keep)
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only when it is older"):
            async with conn.transaction():
                await conn.execute("DELETE FROM reading WHERE id <= 3")
        if keep == "80 days":
            await conn.execute("DELETE FROM reading WHERE id <= 2")
    lines = await told(anchored, "reads expired")
    assert [line["count"] for line in lines] == ([2] if keep == "80 days" else [])


async def test_the_command_tells_of_reads(anchored: Pool, http: aiohttp.ClientSession) -> None:
    """How many were compared, and how many wait."""
    await read(anchored, DAY)
    reply = await Desk(anchored, http).give("custody", "verify")
    assert plain(reply).startswith(
        "All is as it was: 1 line in 1 seal, with 4 reads; 0 not sealed yet, 1 capture or read"
        " on its way."
    )
    assert (reply.data["reads"], reply.data["waiting"]) == (4, 1)


async def test_the_last_that_expired_is_found_by_an_index(anchored: Pool) -> None:
    """However many there were, because every batch is compared with it."""
    await expire(anchored)
    nodes = await plan(anchored, BEFORE)
    assert "custody_expired" in {node.get("Index Name") for node in nodes}
    assert "Sort" not in {node["Node Type"] for node in nodes}


@pytest.mark.parametrize("kept", ["80 d", None])
async def test_an_auditor_is_told_what_expired(
    anchored: Pool, http: aiohttp.ClientSession, kept: str | None
) -> None:
    """How many and how young the youngest was; and if that is younger than it should have become,
    which line tells of it. It is no difference: custody itself tells so."""
    desk = Desk(anchored, http, {"serve": {"keep_reads": kept}})
    await gather(anchored)
    assert (await desk.give("custody", "verify")).data["expired"] is None
    await expire(anchored)
    await seal(anchored)
    reply = await desk.give("custody", "verify")
    sentence = "2 reads were deleted as expired, the youngest 95 d old"
    if kept:
        assert f"{sentence}.\n" in plain(reply)
    else:
        assert f"{sentence} (row 2), while serve.keep_reads keeps them for ever" in plain(reply)
    await expire(anchored, timedelta(hours=9))
    await expire(anchored, timedelta(0))
    await seal(anchored)
    reply = await desk.give("custody", "verify")
    assert not reply.failed
    shown = "is 80 d" if kept else "keeps them for ever"
    assert (
        f"4 reads were deleted as expired, the youngest 8 h old (row 4), while serve.keep_reads"
        f" {shown}: it was shorter then, or somebody deleted them who may run SQL." in plain(reply)
    )
    assert (reply.data["expired"]["reads"], reply.data["expired"]["line"]) == (4, 4)


def _filled(sentence: str, times: dict[int, str]) -> str:
    for number, at in times.items():
        sentence = sentence.replace(f"{{{number}}}", at)
    return sentence
