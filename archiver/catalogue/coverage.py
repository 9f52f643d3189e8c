"""How much of what was posted is here, what is not, and why.

A reference counts once, whatever it shares its media with. What our own policy leaves out, and
what was deleted by it, could not be had, and is counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from archiver.catalogue.counting import PATIENCE
from archiver.catalogue.rooms import IS_OPEN
from archiver.model import State

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# A room's rows are found by its own events. How, is the planner's to choose: for some large rooms
# it is cheaper to read the keys of all media than those of each.
OF_ROOMS = """
WITH counted AS (
    SELECT room_id,
           count(*) FILTER (WHERE type = 'm.room.encrypted') AS encrypted,
           count(*) FILTER (WHERE original = 'wanted') AS wanted,
           count(*) FILTER (WHERE original = 'lost') AS lost,
           count(*) FILTER (WHERE source = 'reconcile') AS filled
    FROM event WHERE room_id = ANY($1::text[]) GROUP BY room_id
), by_state AS (
    SELECT e.room_id, m.state, left(split_part(m.reason, ':', 1), 100) AS head,
           count(*) AS number
    FROM event AS e JOIN reference AS n USING (event_id)
    JOIN media AS m USING (server_name, media_id)
    WHERE e.room_id = ANY($1::text[]) GROUP BY 1, 2, 3
), named AS (
    SELECT room_id, jsonb_agg(jsonb_build_array(state, head, number)) AS references
    FROM by_state GROUP BY room_id
)
SELECT asked.room_id, named.references, coalesce(c.encrypted, 0) AS encrypted,
       coalesce(c.wanted, 0) AS wanted, coalesce(c.lost, 0) AS lost,
       coalesce(c.filled, 0) AS filled, r.reason,
       CASE WHEN isfinite(r.complete_from) THEN r.complete_from END AS complete_from,
       coalesce(r.complete_from = '-infinity', false) AS from_beginning, r.complete_until,
       coalesce({is_open}, false) AS open,
       b.state AS backfill, b.events AS backfill_events, b.reason AS backfill_reason,
       CASE WHEN isfinite(b.reached_at) THEN b.reached_at END AS backfill_reached_at
FROM unnest($1::text[]) AS asked(room_id)
LEFT JOIN room AS r ON r.room_id = asked.room_id
LEFT JOIN backfill AS b ON b.room_id = asked.room_id
LEFT JOIN counted AS c ON c.room_id = asked.room_id
LEFT JOIN named ON named.room_id = asked.room_id
""".replace("{is_open}", IS_OPEN)
# What is ready is not looked at one by one: it is all that is nothing else.
REFERENCES = """
WITH unready AS MATERIALIZED (
    SELECT m.state, left(split_part(m.reason, ':', 1), 100) AS head, count(*) AS number
    FROM media AS m JOIN reference USING (server_name, media_id)
    WHERE m.state <> 'ready' GROUP BY 1, 2
)
SELECT state, head, number FROM unready
UNION ALL
SELECT 'ready', NULL, (SELECT count(*) FROM reference)
                      - (SELECT coalesce(sum(number), 0) FROM unready)
"""
ROOMS = """
SELECT CASE WHEN reason IS NOT NULL THEN 'unreadable'
            WHEN complete_from IS NULL OR complete_until IS NULL THEN 'unknown'
            WHEN complete_from = '-infinity' THEN 'complete'
            ELSE 'partial' END AS history,
       count(*) AS rooms,
       count(*) FILTER (WHERE {is_open}) AS open
FROM room GROUP BY 1
""".replace("{is_open}", IS_OPEN)
# All of the archive is read for this.
LEAST = """
SELECT e.room_id, count(*) FILTER (WHERE m.state = 'ready') AS ready, count(*) AS due
FROM reference AS n JOIN media AS m USING (server_name, media_id) JOIN event AS e USING (event_id)
WHERE m.state NOT IN ('excluded', 'deleted')
GROUP BY e.room_id HAVING count(*) FILTER (WHERE m.state = 'ready') < count(*)
ORDER BY count(*) FILTER (WHERE m.state = 'ready')::float8 / count(*), count(*) DESC, e.room_id
LIMIT $1
"""

HISTORY = ("complete", "partial", "unknown", "unreadable")


async def of_rooms(conn: Connection, room_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The coverage of each of the rooms, exact, in one statement."""
    return {row["room_id"]: _of_room(row) for row in await conn.fetch(OF_ROOMS, room_ids)}


async def of_all(conn: Connection, events: Mapping[str, int]) -> dict[str, Any]:
    """The coverage of the archive as a whole; `events` are counted already, by what is the matter
    with them. Reads whole tables."""
    references = await conn.fetch(REFERENCES, timeout=PATIENCE)
    rooms = {row["history"]: row for row in await conn.fetch(ROOMS)}
    return {
        **_of_references(map(tuple, references)),
        **_of_events(events),
        "gaps": {
            "filled": events["filled"],
            "rooms_open": sum(row["open"] for row in rooms.values()),
        },
        "rooms": {name: rooms[name]["rooms"] if name in rooms else 0 for name in HISTORY},
    }


async def least_complete(conn: Connection, limit: int) -> list[Row]:
    """The rooms that lack most: `ready` of `due` references. Reads whole tables."""
    return await conn.fetch(LEAST, limit, timeout=PATIENCE)


def percent(ready: int, due: int) -> float:
    """In hundredths, rounded down: 100 only where all is there, or there was nothing to have."""
    return (10_000 * ready // due if due else 10_000) / 100


def _of_room(row: Row) -> dict[str, Any]:
    return {
        **_of_references(orjson.loads(row["references"] or "[]")),
        **_of_events(row),
        "gaps": {"filled": row["filled"], "open": row["open"]},
        "history": {
            "complete_from": "beginning" if row["from_beginning"] else row["complete_from"],
            "complete_until": row["complete_until"],
            "backfill": row["backfill"]
            and {
                "state": row["backfill"],
                "reached_at": row["backfill_reached_at"],
                "events": row["backfill_events"],
                "reason": row["backfill_reason"],
            },
            "reason": row["reason"],
        },
    }


def _of_references(rows: Iterable[Sequence[Any]]) -> dict[str, Any]:
    """From rows of state, head of the reason and number."""
    states: Counter[str] = Counter()
    reasons: dict[str, dict[str, int]] = {State.EXCLUDED: {}, State.FAILED: {}}
    for state, head, number in rows:
        states[state] += int(number)
        if state in reasons:
            reasons[state][head or ""] = int(number)
    due = states.total() - states[State.EXCLUDED] - states[State.DELETED]
    return {
        "percent": percent(states[State.READY], due),
        "references": {str(state): states[state] for state in State},
        **{str(state): heads for state, heads in reasons.items()},
    }


def _of_events(row: Row | Mapping[str, int]) -> dict[str, Any]:
    return {
        "encrypted_events": row["encrypted"],
        "emptied_events": {"wanted": row["wanted"], "lost": row["lost"]},
    }
