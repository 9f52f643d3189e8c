"""What readers ask reads what it is about, however large the archive is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from archiver.catalogue import coverage, events, knowledge, media, people
from tests.integration.test_query_plans import assert_lean, nodes

if TYPE_CHECKING:
    from archiver.db.pool import Pool

# Rooms of 20 events of two references each, some that name nothing, and some people.
FILL = """
INSERT INTO blob (sha256, size, place) VALUES (sha256(''), 0, 'inline');
INSERT INTO room (room_id, active_at) SELECT '!' || n, now() FROM generate_series(1, 1500) AS n;
INSERT INTO event (event_id, room_id, sender, type, content, source, replaces)
SELECT '$' || n, '!' || n % 1500 + 1, '@' || n % 100, 'm.room.message', '{}', 'push',
       CASE WHEN n % 10 = 0 THEN '$' || n - 1 END
FROM generate_series(1, 30000) AS n;
INSERT INTO event (event_id, room_id, sender, type, state_key, content, source, sent_at)
SELECT '$m' || n, '!' || n % 1500 + 1, '@' || n % 100, 'm.room.member', '@' || n % 100,
       '{"membership": "join", "displayname": "somebody"}', 'push', now() - n * interval '1 s'
FROM generate_series(1, 30000) AS n;
INSERT INTO media (server_name, media_id, state, reason, due_at, blob_sha256)
SELECT 'a', n::text, CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'ready' END, 'x: y', now(),
       sha256('') FROM generate_series(1, 60000) AS n;
INSERT INTO reference (event_id, server_name, media_id, role)
SELECT '$' || (n % 30000) + 1, 'a', n::text, 'content' FROM generate_series(1, 60000) AS n;
ANALYZE;
"""
SMALL = ("room", "moment", "backfill")
ASKED: dict[str, tuple[Any, ...]] = {
    coverage.OF_ROOMS: (["!7"],),
    knowledge.STATE: (["!7", "!8"],),
    knowledge.MEMBERS: (["!7", "!8"], 4),
    knowledge.HISTORY: ("!7", "m.room.name", "name", 1000),
    knowledge.PACKS: ("!7", 100),
    people.FACES: ("@7", False, 1),
    events.EVENT: ("$7",),
    events.EDITS: ("$9", 100),
    events.REFERENCES: (["$7", "$8"],),
    media.REFERENCES: ("a", "7", 100, False),
}


@pytest.fixture
async def full(pool: Pool) -> Pool:
    """Many rooms."""
    await pool.execute(FILL)
    return pool


async def test_a_question_reads_by_index_what_it_is_about(full: Pool) -> None:
    """No large table as a whole, and few rows of each."""
    for statement, arguments in ASKED.items():
        text = await full.fetchval("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, *arguments)
        found = list(nodes(orjson.loads(text)[0]["Plan"]))
        assert_lean([node for node in found if node.get("Relation Name") not in SMALL])
        read = [n["Actual Rows"] * n["Actual Loops"] for n in found if "Index Name" in n]
        assert max(read) <= 300, statement
