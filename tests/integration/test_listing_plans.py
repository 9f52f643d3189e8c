"""Lists read by index what they show, however large the archive is, and stop where they say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from archiver.catalogue import listing, wanted
from archiver.catalogue.wanted import Filter
from archiver.db.pool import Pool, open_pool
from tests.integration.test_query_plans import assert_lean, nodes, plan
from tests.support.postgres import PostgresServer

# As many events that name no media as such that do. Some words, servers and states are rare, and
# all of these are old.
FILL = """
INSERT INTO blob (sha256, size, place, mimetype)
SELECT sha256(n::text::bytea), 0, 'inline', 'image/png' FROM generate_series(1, 10000) AS n;
INSERT INTO event (event_id, room_id, sender, type, content, source, sent_at, has_media)
SELECT '$' || n, '!' || n % 6, '@' || n % 4, 'm.room.message', '{}', 'push',
       '2025-01-01'::timestamptz + n * interval '1 s', n % 2 = 0
FROM generate_series(1, 60000) AS n;
INSERT INTO media (server_name, media_id, state, reason, due_at, blob_sha256)
SELECT CASE WHEN n < 200 THEN 'rare' ELSE 'common' END, n::text,
       CASE WHEN n < 100 THEN 'failed' WHEN n < 200 THEN 'pending' ELSE 'ready' END, 'x: y', now(),
       sha256((n % 10000 + 1)::text::bytea) FROM generate_series(2, 60000, 2) AS n;
INSERT INTO reference (event_id, server_name, media_id, role, filename, words)
SELECT '$' || n, CASE WHEN n < 200 THEN 'rare' ELSE 'common' END, n::text, 'content',
       CASE WHEN n < 200 THEN 'rare.jpg' ELSE 'common.jpg' END,
       CASE WHEN n < 200 THEN 'jpg rare' ELSE 'common jpg' END::tsvector
FROM generate_series(2, 60000, 2) AS n;
"""
ASKED: dict[str, tuple[Filter, str]] = {
    "all": (Filter(), "event_media"),
    "room": (Filter(room_id="!2"), "event_room"),
    "sender": (Filter(sender="@2"), "event_media_sender"),
    "both": (Filter(room_id="!2", sender="@2"), "event_media_sender"),
    "state": (Filter(state="ready"), "event_media"),
    "kind": (Filter(kind="image"), "event_media"),
    "mimetype": (Filter(family="image/"), "event_media"),
    "server": (Filter(server_name="common"), "event_media"),
    "text": (Filter(words="'common':*"), "event_media"),
    "event": (Filter(event_id="$8"), "event_pkey"),
}
PLACES = {
    "words": (wanted.OF_WORDS, "'rare':*", "reference_words"),
    "server": (wanted.OF_SERVER, "rare", "reference_media"),
    "ended": (wanted.OF_ENDED, "failed", "media_ended"),
    "pending": (wanted.OF_PENDING, "pending", "media_due"),
    "bytes": (wanted.OF_SHA256, b"x" * 32, "media_blob"),
}


@pytest.fixture(params=[(FILL, "ANALYZE"), (FILL,)], ids=["analyzed", "not analyzed"])
async def full(
    postgres_server: PostgresServer, request: pytest.FixtureRequest
) -> AsyncIterator[Pool]:
    """Many events, both known to the planner and just come."""
    url = await postgres_server.create_migrated(*request.param)
    async with open_pool(url, 10) as pool:
        yield pool
    await postgres_server.drop(url)


async def looked_at(
    pool: Pool, asked: Filter, statements: dict[listing._Lead, str]
) -> list[dict[str, Any]]:
    """The plan's nodes, after it ran for a page of ten."""
    async with pool.acquire() as conn:
        walk = listing._Walk(conn, asked, hides=True)
        text = await conn.fetchval(
            "EXPLAIN (ANALYZE, FORMAT JSON) " + statements[walk._lead],
            *walk._asked(None, 10, listing.FEW),
        )
    return list(nodes(orjson.loads(text)[0]["Plan"]))


@pytest.mark.parametrize("case", ASKED)
@pytest.mark.parametrize("statements", [listing.PAGES, listing.COUNTS], ids=["page", "count"])
async def test_a_list_reads_what_it_shows(
    full: Pool, case: str, statements: dict[listing._Lead, str]
) -> None:
    """From its own index, in order, and no further: not even all events are sorted."""
    asked, index = ASKED[case]
    found = await looked_at(full, asked, statements)
    assert_lean(found)
    if await known(full):
        assert index in {node.get("Index Name") for node in found}
        assert most_read(found) <= 100


async def test_a_list_of_what_is_nowhere_stops(full: Pool) -> None:
    """After so many events, and each of these is looked at by key."""
    found = await looked_at(full, Filter(kind="video"), listing.PAGES)
    assert_lean(found)
    assert most_read(found) <= listing.FEW if await known(full) else 30_000


@pytest.mark.parametrize("case", PLACES)
async def test_places_are_told_by_an_index(full: Pool, case: str) -> None:
    """The rare is found without a look at the rest."""
    statement, value, index = PLACES[case]
    found = await plan(full, statement, value, 100)
    if case != "words" or await known(full):
        assert_lean(found)
        assert index in str(found)


def most_read(found: list[dict[str, Any]]) -> int:
    """Rows of an index at most."""
    return max(
        int(node["Actual Rows"] * node["Actual Loops"]) for node in found if "Index Name" in node
    )


async def known(pool: Pool) -> bool:
    """Whether the planner knows the tables."""
    return bool(await pool.fetchval("SELECT reltuples > 0 FROM pg_class WHERE relname = 'event'"))


async def test_some_events_are_found_by_key(full: Pool) -> None:
    """Those that an index told, and not by a walk through all; as long as they are few in it."""
    async with full.acquire() as conn:
        walk = listing._Walk(conn, Filter(), hides=False).through([f"${n}" for n in range(300)])
        asked = walk._asked(None, 10, listing.AT_ONCE)
    found = await plan(full, listing.PAGES[walk._lead], *asked)
    if await known(full):
        assert_lean(found)
        assert "event_pkey" in {node.get("Index Name") for node in found}
    assert not {"event_media", "event_room"} & {node.get("Index Name") for node in found}


@pytest.mark.parametrize("lead", listing.UNWALKEDS)
async def test_the_end_of_a_walk_is_found_by_its_index(full: Pool, lead: listing._Lead) -> None:
    """In order, without the events themselves."""
    value: tuple[Any, ...] = {"room_id": ("!2",), "sender": ("@2",)}.get(lead.key, ())
    if lead == listing._THESE:
        value = (["$8"],)
    assert_lean(await plan(full, listing.UNWALKEDS[lead], None, None, None, 10, *value))
