"""What was posted, newest first: one row a reference.

An index gives the events in order, and whatever else is asked is a filter on their references.
So that nothing rare is looked for all through the archive, only so many events are walked for a
page: first a few, which is enough for anything common; then, if an index tells all places where
what is asked can be, and they are few, just these; else many more, and whoever asks goes on from
there. So no question takes longer for the size of the archive.
"""

from __future__ import annotations

from copy import copy
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from archiver.catalogue.people import SENDER_NAME
from archiver.catalogue.wanted import Filter, places

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

FEW = 1_000  # events walked first
SPARSE = 10  # found among these, or more: no index is asked, which may know half the archive
MORE = 4_000  # events walked for a page at most, after these: some 40 ms
MANY = 50_000  # and for a count
AT_ONCE = 2_000  # places that an index tells, looked at together
COUNTED = 10_000

_WITHIN = """
    FROM LEAD
    WHERE has_media
      AND (KEY sent_at, event_id) >= (VALUE coalesce($1::timestamptz, '-infinity'), '')
      AND (KEY sent_at, event_id) <= (VALUE coalesce($2::timestamptz, 'infinity'), $3::text)
    ORDER BY ORDERED sent_at DESC, event_id DESC
"""
# Of an encrypted file its sender alone knows the type: the bytes look like anything.
TYPE = """
lower(btrim(split_part(
    CASE WHEN r.encryption IS NOT NULL THEN r.declared_type
         ELSE coalesce(b.mimetype, nullif(m.declared_type, 'application/octet-stream'),
                       r.declared_type) END, ';', 1)))
"""
# The rule of catalogue/events.py: an edit goes with the event that it edits.
_IS_REDACTED = """
(e.redacted_by IS NOT NULL OR e.replaces IS NOT NULL AND EXISTS (
    SELECT FROM event AS o
    WHERE o.event_id = e.replaces AND o.room_id = e.room_id AND o.sender = e.sender
      AND o.type = e.type AND o.replaces IS NULL AND o.state_key IS NULL AND e.state_key IS NULL
      AND o.redacted_by IS NOT NULL))
"""
# OFFSET 0 keeps the planner from turning the walk, which may stop at any event, into a join of
# whole tables, and from asking an index for all that a filter lets pass, once an event.
_FOUND = (
    """
FROM (SELECT event_id, room_id, sender, sent_at, type, state_key, replaces, redacted_by,
             redacted_at
      WITHIN LIMIT $19) AS e
CROSS JOIN LATERAL (
    SELECT r.server_name, r.media_id, r.role, r.item, r.filename, r.caption, r.declared_type,
           r.declared_size, r.encryption IS NOT NULL AS encrypted, m.state, m.reason,
           encode(b.sha256, 'hex') AS sha256, b.size, b.mimetype, b.width, b.height,
           b.duration_ms, b.place, kinds.kind
    FROM (SELECT * FROM reference WHERE event_id = e.event_id OFFSET 0) AS r
    CROSS JOIN LATERAL (SELECT * FROM media WHERE server_name = r.server_name
                        AND media_id = r.media_id OFFSET 0) AS m
    LEFT JOIN LATERAL (SELECT * FROM blob WHERE sha256 = m.blob_sha256 OFFSET 0) AS b ON true
    CROSS JOIN LATERAL (SELECT TYPE AS type OFFSET 0) AS types
    CROSS JOIN LATERAL (SELECT CASE
        WHEN r.role <> 'content' THEN r.role
        WHEN split_part(types.type, '/', 1) = ANY('{image,video,audio}')
        THEN split_part(types.type, '/', 1) ELSE 'file' END AS kind) AS kinds
    WHERE ($10::text IS NULL OR kinds.kind = $10) AND ($11::text IS NULL OR r.role = $11)
      AND ($12::text IS NULL OR m.state = $12) AND ($13::text IS NULL OR types.type = $13)
      AND ($14::text IS NULL OR starts_with(types.type, $14))
      AND ($15::text IS NULL OR r.server_name = $15)
      AND ($16::bytea IS NULL OR m.blob_sha256 = $16)
      AND ($17::tsquery IS NULL OR r.words @@ $17)
      AND (e.event_id = $3 AND (r.item, r.role, r.server_name, r.media_id)
           <= ($4::smallint, $5::text, $6::text, $7::text)) IS NOT TRUE
    OFFSET 0
) AS f
WHERE ($8::text IS NULL OR e.room_id = $8) AND ($9::text IS NULL OR e.sender = $9)
  AND NOT ($18 AND IS_REDACTED)
""".replace("WITHIN", _WITHIN)
    .replace("TYPE AS", TYPE + " AS")
    .replace("IS_REDACTED", _IS_REDACTED)
)
PAGE = (
    "SELECT e.*, "
    + SENDER_NAME
    + """ AS sender_name, d.sender AS redactor,
       CASE WHEN jsonb_typeof(d.content -> 'reason') = 'string'
            THEN left(d.content ->> 'reason', 4096) END AS redaction_reason
FROM (SELECT e.*, f.* FOUND
      ORDER BY ORDERED e.sent_at DESC, e.event_id DESC, f.item, f.role, f.server_name, f.media_id
      LIMIT $20) AS e
LEFT JOIN event AS d ON d.event_id = e.redacted_by
ORDER BY e.sent_at DESC, e.event_id DESC, e.item, e.role, e.server_name, e.media_id
""".replace("FOUND", _FOUND)
)
COUNT = "SELECT count(*) FROM (SELECT FOUND LIMIT $20) AS found".replace("FOUND", _FOUND)
# The first event behind the walked ones.
UNWALKED = "SELECT sent_at, event_id" + _WITHIN + "OFFSET $4 LIMIT 1"


class _Lead(NamedTuple):
    """What is walked, by an index that begins with `key`."""

    events: str = "event"
    key: str = ""

    def put(self, statement: str, number: str) -> str:
        """The statement, with what leads as its parameter `number`."""
        return (
            statement.replace("LEAD", self.events.replace("IT", number))
            .replace("KEY", self.key and self.key + ",")
            .replace("VALUE", self.key and number + "::text,")
            .replace("ORDERED", self.key and self.key + " DESC,")
        )


# A room or a person leads by the bounds of the walk alone: from an equation the planner would
# gather that another index is in order, too, and look there for somebody who has long been silent.
_ALL, _OF_ROOM, _OF_SENDER = _Lead(), _Lead(key="room_id"), _Lead(key="sender")
# Some events, which OFFSET 0 keeps from being looked for among all.
_THESE = _Lead("(SELECT * FROM event WHERE event_id = ANY(IT::text[]) OFFSET 0) AS event")
_LEADS = (_ALL, _OF_ROOM, _OF_SENDER, _THESE)
PAGES = {lead: lead.put(PAGE, "$21") for lead in _LEADS}
COUNTS = {lead: lead.put(COUNT, "$21") for lead in _LEADS}
UNWALKEDS = {lead: lead.put(UNWALKED, "$5") for lead in _LEADS}


class Spot(NamedTuple):
    """A reference's place in the list; without an `item`, the one just before its event."""

    sent_at: datetime
    event_id: str
    item: int | None = None
    role: str | None = None
    server_name: str | None = None
    media_id: str | None = None


class Page(NamedTuple):
    """Some references, and behind which spot there may be more; None: there are no more."""

    rows: list[Row]
    behind: Spot | None


class Count(NamedTuple):
    """How many there are; unless `exact`, at least so many."""

    matches: int
    exact: bool


async def page(
    conn: Connection, wanted: Filter, behind: Spot | None, limit: int, *, hides: bool
) -> Page:
    """Up to `limit` references. `hides`: without those of redacted events.

    There may be fewer, or even none, and more behind them.
    """
    walk = _Walk(conn, wanted, hides)
    rows = await walk.page(behind, limit + 1, FEW)
    rest = None if len(rows) > limit else await walk.unwalked(behind, FEW)
    if rest:
        events = await places(conn, wanted, AT_ONCE) if len(rows) < SPARSE else None
        if events is None:
            rows += await walk.page(rest, limit + 1 - len(rows), MORE)
            rest = None if len(rows) > limit else await walk.unwalked(rest, MORE)
        else:
            rows, rest = await walk.through(events).page(behind, limit + 1, AT_ONCE), None
    return Page(rows[:limit], _spot(rows[limit - 1]) if rows[limit:] else rest)


async def count(conn: Connection, wanted: Filter, *, hides: bool) -> Count:
    """How many references there are, as far as COUNTED."""
    walk = _Walk(conn, wanted, hides)
    number = await walk.count(FEW, FEW)
    rest = await walk.unwalked(None, FEW)
    if rest:
        events = await places(conn, wanted, AT_ONCE) if number < SPARSE else None
        if events is None:
            number = await walk.count(COUNTED + 1, MANY)
            rest = await walk.unwalked(None, MANY)
        else:
            number, rest = await walk.through(events).count(COUNTED + 1, AT_ONCE), None
    return Count(min(number, COUNTED), number <= COUNTED and rest is None)


class _Walk:
    """One way through the events, and what is wanted on it."""

    def __init__(self, conn: Connection, wanted: Filter, hides: bool) -> None:
        self._conn = conn
        self._hides = hides
        self._since, self._until, *self._filters, _ = wanted
        self._lead, self._value = _lead(wanted)

    def through(self, events: list[str]) -> _Walk:
        """The same through some events only."""
        walk = copy(self)
        walk._lead, walk._value = _THESE, (events,)
        return walk

    async def page(self, behind: Spot | None, limit: int, most: int) -> list[Row]:
        return await self._conn.fetch(PAGES[self._lead], *self._asked(behind, limit, most))

    async def count(self, limit: int, most: int) -> int:
        return int(await self._conn.fetchval(COUNTS[self._lead], *self._asked(None, limit, most)))

    async def unwalked(self, behind: Spot | None, walked: int) -> Spot | None:
        """Where a walk over so many events ended, unless there are no more."""
        at, event_id, *_ = self._from(behind)
        row = await self._conn.fetchrow(
            UNWALKEDS[self._lead], self._since, at, event_id, walked, *self._value
        )
        return Spot(*row) if row else None

    def _asked(self, behind: Spot | None, limit: int, most: int) -> tuple[Any, ...]:
        spot = self._from(behind)
        return self._since, *spot, *self._filters, self._hides, most, limit, *self._value

    def _from(self, behind: Spot | None) -> tuple[Any, ...]:
        if behind is None or (self._until and self._until <= behind.sent_at):
            return self._until, "", None, None, None, None
        return behind


def _lead(wanted: Filter) -> tuple[_Lead, tuple[Any, ...]]:
    if wanted.event_id is not None:
        return _THESE, ([wanted.event_id],)
    if wanted.sender is not None:
        return _OF_SENDER, (wanted.sender,)
    if wanted.room_id is not None:
        return _OF_ROOM, (wanted.room_id,)
    return _ALL, ()


def _spot(row: Row) -> Spot:
    return Spot(*(row[key] for key in Spot._fields))
