"""The statements that run all day use their indexes, however large the tables are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from archiver.capture.record import RECORD
from archiver.catalogue.queue import CLAIM_NEWEST, CLAIM_OLDEST, COUNTS

if TYPE_CHECKING:
    from archiver.db.pool import Pool

FILL = """
INSERT INTO event (event_id, content, source)
SELECT '$' || n, '{}', 'push' FROM generate_series(1, 20000) AS n;
INSERT INTO media (server_name, media_id, state, due_at, reason)
SELECT 'example.com', n::text,
       (array['pending', 'failed', 'excluded', 'pending'])[n % 4 + 1],
       now() - n * interval '1 s', CASE WHEN n % 4 IN (1, 2) THEN 'x' END
FROM generate_series(1, 20000) AS n;
INSERT INTO reference (event_id, server_name, media_id, role)
SELECT '$' || n, 'example.com', n::text, 'content' FROM generate_series(1, 20000) AS n;
"""
READY = """
INSERT INTO blob (sha256, size, place) VALUES (sha256(''), 0, 'inline');
INSERT INTO media (server_name, media_id, state, due_at, reason, blob_sha256)
SELECT 'example.com', n::text,
       CASE n % 200 WHEN 1 THEN 'pending' WHEN 2 THEN 'failed' ELSE 'ready' END,
       now(), 'x', sha256('')
FROM generate_series(1, 20000) AS n;
ANALYZE;
"""
REFERENCES = "SELECT event_id FROM reference WHERE server_name = $1 AND media_id = $2"
SHARERS = "SELECT count(*) FROM media WHERE blob_sha256 = $1"


@pytest.fixture(params=["analyzed", "not analyzed"])
async def full(pool: Pool, request: pytest.FixtureRequest) -> Pool:
    """20,000 of everything, both known to the planner and just come."""
    await pool.execute(FILL)
    if request.param == "analyzed":
        await pool.execute("ANALYZE")
    return pool


async def plan(pool: Pool, statement: str, *arguments: Any) -> list[dict[str, Any]]:
    """Every node of the plan."""
    text = await pool.fetchval("EXPLAIN (FORMAT JSON) " + statement, *arguments)
    return list(nodes(orjson.loads(text)[0]["Plan"]))


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


def assert_lean(found: list[dict[str, Any]]) -> None:
    """No table is read as a whole."""
    assert [node for node in found if node["Node Type"] == "Seq Scan"] == []


@pytest.mark.parametrize("statement", [CLAIM_NEWEST, CLAIM_OLDEST], ids=["newest", "oldest"])
async def test_a_claim_reads_the_queue_in_its_order(full: Pool, statement: str) -> None:
    """The due media come out of the index in order: nothing is sorted, no table is read whole."""
    found = await plan(full, statement, 8, timedelta(seconds=30))
    assert_lean(found)
    locked = next(node for node in found if node["Node Type"] == "LockRows")
    inner = list(nodes(locked))
    assert [node.get("Index Name") for node in inner] == [None, "media_due"]
    backward = "Backward" if statement is CLAIM_NEWEST else "Forward"
    assert inner[1]["Scan Direction"] == backward
    assert "reference_media" in {node.get("Index Name") for node in found}


async def test_the_events_of_a_media_are_found_by_index(full: Pool) -> None:
    """Whatever asks for the references of one media."""
    found = await plan(full, REFERENCES, "example.com", "5")
    assert_lean(found)
    assert "reference_media" in {node.get("Index Name") for node in found}


async def test_who_shares_a_blob_is_found_by_index(full: Pool) -> None:
    """Deleting a blob asks this of every one."""
    found = await plan(full, SHARERS, b"x" * 32)
    assert_lean(found)
    assert "media_blob" in {node.get("Index Name") for node in found}


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_recording_reads_no_table_whole(full: Pool, mode: str) -> None:
    """A push looks up just the media that it names, by key."""
    found = await plan_of_recording(full, mode)
    assert_lean(found)
    assert "media_pkey" in {node.get("Index Name") for node in found}


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_plan_made_before_there_was_anything_serves_for_long(
    pool: Pool, mode: str
) -> None:
    """A connection keeps the plan of its first pushes, so it must not read whole tables even
    where they are empty."""
    assert_lean(await plan_of_recording(pool, mode))


async def plan_of_recording(pool: Pool, mode: str) -> list[dict[str, Any]]:
    """Every node of the plan of a push of a hundred events."""
    arrays = [["x"]] * 5 + [[1], ["{}"], [None], ["x"], ["x"], [None], "push"]
    arrays += [["a"], ["b"], [1], [None], [False], "paced"]
    arrays += [["x"], ["a"], ["b"], ["other"], [0], ["x"], ["x"], ["x"], [1], ["{}"], ["x"]]
    hundred = [value * 100 if isinstance(value, list) else value for value in arrays]
    async with pool.acquire() as conn:
        await conn.execute(f"SET plan_cache_mode = {mode}")
        text = await conn.fetchval("EXPLAIN (FORMAT JSON) " + RECORD, *hundred)
    return list(nodes(orjson.loads(text)[0]["Plan"]))


async def test_counting_what_is_missing_reads_nothing_that_is_ready(pool: Pool) -> None:
    """`/metrics` costs as much as waits or failed, not as much as is archived."""
    await pool.execute(READY)
    assert_lean(await plan(pool, COUNTS))
