"""Holds over bytes and over a span of time, beside those over media, events, people and rooms."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from archiver.catalogue import deletion, holds
from archiver.catalogue.deletion import DUE, WORDY
from archiver.catalogue.holds import Span, kind_of, span_of
from archiver.errors import ConfigError, OperationError
from archiver.fetch.archive import Parts
from archiver.keep.erasure import Erasure
from tests.support.fetching import INLINE_LIMIT
from tests.support.homeserver import Homeserver
from tests.support.keeping import ADMIN, OF_ROOM, archive, blob_of, states
from tests.support.redacting import image, mxc, push

if TYPE_CHECKING:
    from archiver.db.pool import Pool

SMALL, OTHER = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT)
EXPLAIN = "EXPLAIN (FORMAT JSON) "
MAY = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.fixture
async def ours(ours: Parts, homeserver: Homeserver) -> Parts:
    """A cat of May and a dog of June; a copy of the cat that says it is of 1970. All of them came
    long ago."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"), image("$c", "copy"))
    await archive(ours, homeserver, cat=SMALL, dog=OTHER, copy=SMALL)
    await ours.pool.execute(
        "UPDATE event SET source = 'backfill', received_at = '2024-12-01', sent_at ="
        " CASE event_id WHEN '$a' THEN '2024-05-31T23:59:59Z'::timestamptz"
        " WHEN '$b' THEN '2024-06-01T00:00:00Z' ELSE '1970-01-01' END"
    )
    return ours


async def place(pool: Pool, target: str) -> None:
    async with pool.acquire() as conn:
        await holds.place(conn, target, "a case", "shell:root")


async def erase_room(pool: Pool) -> set[str]:
    """Deletes all that may be deleted; what is left."""
    async for _ in Erasure(pool, OF_ROOM, ADMIN).run():
        pass
    return {name for name, state in (await states(pool)).items() if state != "deleted"}


async def test_bytes_are_held_whoever_posted_them(ours: Parts) -> None:
    """All media that have them stay, and the words with them."""
    name = "sha256:" + (await blob_of(ours.pool, "cat")).sha256.hex()
    await place(ours.pool, name)
    assert await erase_room(ours.pool) == {"cat", "copy"}
    left = await ours.pool.fetch("SELECT event_id FROM event WHERE content <> '{}' ORDER BY 1")
    assert [row[0] for row in left] == ["$a", "$c"]
    async with ours.pool.acquire() as conn:
        [hold] = await holds.on_media(conn, mxc("copy"), 10)
        assert (hold["kind"], hold["target"]) == ("hash", name)
        assert await holds.on_media(conn, mxc("dog"), 10) == []
        await holds.release(conn, name)
    assert await erase_room(ours.pool) == set()


@pytest.mark.parametrize(
    ("span", "left"),
    [
        ("2024-05-01..2024-05-31", {"cat"}),
        ("2024-05-31..2024-05-31", {"cat"}),
        ("2024-05-31T23:59:59+00:00..2024-06-01T00:00:00+00:00", {"cat"}),
        ("2024-06-01..2024-06-02", {"dog"}),
        ("2024-05-31T23:59:59..2024-06-01T00:00:01", {"cat", "dog"}),
        ("2024-01-01..2024-05-30", set()),
    ],
)
async def test_all_that_was_posted_in_a_span_is_held(
    ours: Parts, span: str, left: set[str]
) -> None:
    """Its first moment is in it, and of a day the last."""
    await place(ours.pool, span)
    assert await erase_room(ours.pool) == left
    async with ours.pool.acquire() as conn:
        for name in ("cat", "dog", "copy"):
            found = [hold["target"] for hold in await holds.on_media(conn, mxc(name), 10)]
            assert found == ([span] if name in left else [])


async def test_a_sender_who_lies_about_the_time_escapes_no_hold(ours: Parts) -> None:
    """What was pushed in the span was posted in it."""
    await ours.pool.execute(
        "UPDATE event SET source = 'push', received_at = '2024-06-15' WHERE event_id = '$c'"
    )
    await place(ours.pool, "2024-06-10..2024-06-20")
    assert await erase_room(ours.pool) == {"copy"}


async def test_redactions_delete_nothing_that_is_held(ours: Parts) -> None:
    """By a span or by its bytes."""
    await ours.pool.execute("UPDATE media SET redacted_at = '2024-12-02'")
    await ours.pool.execute("UPDATE event SET redacted_by = '$r', redacted_at = '2024-12-02'")
    await place(ours.pool, "2024-06-01..2024-06-30")
    await place(ours.pool, "sha256:" + (await blob_of(ours.pool, "cat")).sha256.hex())
    async with ours.pool.acquire() as conn:
        assert await deletion.due(conn, timedelta(0), 10) == []
        assert not await deletion.delete_media(conn, mxc("dog"), timedelta(0))


async def test_a_hold_is_placed_once_and_released(pool: Pool) -> None:
    """As every other."""
    await place(pool, "2024-05-01..2024-05-31")
    with pytest.raises(OperationError, match="held already"):
        await place(pool, "2024-05-01..2024-05-31")
    async with pool.acquire() as conn:
        assert [row["kind"] for row in await holds.live(conn)] == ["span"]
        await holds.release(conn, "2024-05-01..2024-05-31")
        assert await holds.live(conn) == []


def test_what_a_span_is() -> None:
    """Two days or times, the first before the second."""
    assert span_of("2024-05-01..2024-05-01") == Span(MAY, MAY + timedelta(days=1))
    assert span_of("2024-05-01T02:00+02:00..2024-05-01T01:00") == Span(
        MAY, MAY + timedelta(hours=1)
    )
    no_spans = ["", "..", "a..b", "2024-05-01", "2024-05-01..", "..2024-05-01"]
    no_spans += ["2024-05-02..2024-05-01", "9999-12-31..9999-12-31"]
    for text in (*no_spans, "2024-05-01T00:00..2024-05-01T00:00"):
        assert span_of(text) is None


def test_kinds() -> None:
    """And what is none of them."""
    assert kind_of("sha256:" + "0f" * 32) == "hash"
    assert kind_of("2024-05-01..2024-05-31") == "span"
    for text in ("sha256:" + "0f" * 31, "sha256:" + "0G" * 32, "0f" * 32, "2024-05-01"):
        with pytest.raises(ConfigError, match="nothing that can be held"):
            kind_of(text)


@pytest.mark.parametrize("statement", [DUE, WORDY], ids=["media", "words"])
async def test_judging_reads_no_table_whole(pool: Pool, statement: str) -> None:
    """However many holds, events and media there are."""
    await pool.execute(
        "INSERT INTO event (event_id, content, source, redacted_at, redacted_by)"
        " SELECT '$' || n, '{\"a\": 1}', 'push', CASE WHEN n < 50 THEN now() END, '$r'"
        " FROM generate_series(1, 20000) AS n;"
        "INSERT INTO media (server_name, media_id, state, due_at, redacted_at)"
        " SELECT 'a.org', n::text, 'pending', now(), CASE WHEN n < 50 THEN now() END"
        " FROM generate_series(1, 20000) AS n;"
        "INSERT INTO reference (event_id, server_name, media_id, role)"
        " SELECT '$' || n, 'a.org', n::text, 'content' FROM generate_series(1, 20000) AS n;"
        "INSERT INTO hold (kind, target, reason, holder, begins_at, ends_at)"
        " SELECT 'span', n::text, 'x', 'x', now(), now() FROM generate_series(1, 20) AS n;"
        "ANALYZE"
    )
    plan = orjson.loads(await pool.fetchval(EXPLAIN + statement, timedelta(0), 10))
    whole = [node for node in _nodes(plan[0]["Plan"]) if node["Node Type"] == "Seq Scan"]
    assert {node["Relation Name"] for node in whole} <= {"hold"}


def _nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(found for inner in node.get("Plans", ()) for found in _nodes(inner))]
