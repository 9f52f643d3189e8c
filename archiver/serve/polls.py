"""Polls and their results as JSON, worked out from what is archived each time anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from aiohttp import web

from archiver.capture.batch import Batch, NotJSON
from archiver.capture.polls import (
    End,
    Event,
    Poll,
    accepted_edits,
    find_end,
    parse_start,
    tally,
)
from archiver.capture.powers import Powers
from archiver.catalogue import polls
from archiver.catalogue.knowledge import Place
from archiver.catalogue.polls import Filter
from archiver.db.pool import Pool
from archiver.errors import InvalidParam, NotFound
from archiver.model import Scope
from archiver.serve.answers import redaction, reply
from archiver.serve.auth import SCOPE
from archiver.serve.database import connection
from archiver.serve.paging import after, cursor, is_text, limit, named, time

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

_NO_POLL = Poll(None, disclosed=False, max_selections=1, answers=())


class _Asked(NamedTuple):
    """A poll as last edited (None where it cannot be read), and what became of it."""

    row: Row
    start: Event
    poll: Poll | None
    edits: list[Row]
    end: Row | None


class Polls:
    """Answers with polls, and with their results to those who may see them yet.

    The results of an open poll that is undisclosed are for administrators, and so are the words
    of a redacted poll where it `hides_redacted`.
    """

    def __init__(self, pool: Pool, *, hides_redacted: bool) -> None:
        self._pool = pool
        self._hides_redacted = hides_redacted

    async def get(self, request: web.Request) -> web.Response:
        """One poll by the `event_id` that began it, with the votes as they stand."""
        event_id = named(request, "event_id")
        async with connection(self._pool) as conn:
            row = await polls.poll(conn, event_id)
            if row is None:
                raise NotFound("no poll in the archive begins with this event")
            [asked] = await _gather(conn, [row])
            responses = await polls.responses(conn, event_id)
        shown = self._visible(asked, request[SCOPE])
        return reply(_counted(asked, responses, shown, request[SCOPE]))

    async def page(self, request: web.Request) -> web.Response:
        """Polls, newest first: `room_id`, `since`, `until`, `limit`, and `from` for more."""
        query = request.query
        wanted = Filter(_room_id(query), time(query, "since"), time(query, "until"))
        most, place = limit(query), after(query)
        async with connection(self._pool) as conn:
            rows = await polls.polls(conn, wanted, place, most + 1)
            asked_for = await _gather(conn, rows[:most])
            responded = await polls.responded(conn, [row["event_id"] for row in rows[:most]])
        found = []
        for asked in asked_for:
            shown = self._visible(asked, request[SCOPE])
            answers = [answer._asdict() for answer in (shown.answers if shown else ())]
            count = responded.get((asked.row["event_id"], asked.row["room_id"]), 0)
            counts = {"answers": answers, "responded": count}
            found.append(_described(asked, shown) | counts)
        places = [Place(row["sent_at"], row["event_id"]) for row in rows[:most]]
        return reply({"polls": found, "next": cursor(places[-1]) if rows[most:] else None})

    def _visible(self, asked: _Asked, scope: Scope) -> Poll | None:
        """The poll's words, where they can be read and may be."""
        hidden = asked.start.redacted and self._hides_redacted and scope is not Scope.ADMIN
        return None if hidden else asked.poll


async def polled(conn: Connection, event_id: str) -> dict[str, Any] | None:
    """What `Polls.get` tells an administrator of a poll; None where there is none."""
    row = await polls.poll(conn, event_id)
    if row is None:
        return None
    [asked] = await _gather(conn, [row])
    responses = await polls.responses(conn, event_id)
    return _counted(asked, responses, asked.poll, Scope.ADMIN)


def _counted(
    asked: _Asked, responses: list[Row], shown: Poll | None, scope: Scope
) -> dict[str, Any]:
    """The poll and its votes, as far as who has this scope may see them."""
    end = _event(asked.end) if asked.end else None
    result = tally(asked.poll or _NO_POLL, asked.start, map(_event, responses), end)
    known = end or scope is Scope.ADMIN or (shown and shown.disclosed)
    answers = [
        {
            **answer._asdict(),
            "votes": len(result.votes[answer.id]) if known else None,
            "voters": result.votes[answer.id] if known else None,
        }
        for answer in (shown.answers if shown else ())
    ]
    counts = {"answers": answers, "voters": result.voters, "spoiled": result.spoiled}
    return _described(asked, shown) | counts


def _described(asked: _Asked, shown: Poll | None) -> dict[str, Any]:
    """All but the answers and their votes."""
    row, kind = asked.row, None
    if shown:
        kind = "disclosed" if shown.disclosed else "undisclosed"
    return {
        **{key: row[key] for key in ("event_id", "room_id", "sender", "sent_at")},
        "readable": shown is not None,
        "question": shown and shown.question,
        "kind": kind,
        "max_selections": shown and shown.max_selections,
        "ended": asked.end and _said(asked.end),
        "redacted": redaction(row, emptied=asked.start.redacted),
        "edits": [_said(edit) for edit in asked.edits],
    }


def _said(row: Row) -> dict[str, Any]:
    return {"event_id": row["event_id"], "by": row["sender"], "at": row["sent_at"]}


async def _gather(conn: Connection, rows: list[Row]) -> list[_Asked]:
    """The polls that these events began, in their order."""
    ids = [row["event_id"] for row in rows]
    edits, ends = defaultdict(list), defaultdict(list)
    for edit in await polls.edits(conn, ids):
        edits[edit["replaces"]].append(edit)
    for end in await polls.ends(conn, ids):
        ends[end["poll"]].append(end)
    return [_asked(row, edits[row["event_id"]], ends[row["event_id"]]) for row in rows]


def _asked(row: Row, edits: list[Row], ends: list[Row]) -> _Asked:
    start = _event(row)
    accepted = accepted_edits(start, map(_event, edits))
    end = find_end(start, [End(_event(end), _powers(end)) for end in ends])
    by_id = {said["event_id"]: said for said in (*edits, *ends)}
    return _Asked(
        row,
        start,
        parse_start((accepted or [start])[-1].content),
        [by_id[edit.event_id] for edit in accepted],
        by_id[end.event_id] if end else None,
    )


def _event(row: Row) -> Event:
    return Event(
        row["event_id"],
        row["room_id"],
        row["sender"],
        row["type"],
        row["ts"],
        _content(row),
        row["redacted"],
    )


def _content(row: Row) -> Any:
    """What the event holds; from its own bytes where jsonb could not hold it."""
    if row["raw"] is None:
        return orjson.loads(row["content"])
    try:
        [event] = Batch(b'{"events":[' + row["raw"] + b"]}").events
    except (NotJSON, ValueError):
        return None
    return event.get("content") if isinstance(event, dict) else None


def _powers(row: Row) -> Powers:
    levels, create = (text and orjson.loads(text) for text in (row["levels"], row["create"]))
    return Powers(levels, create, row["creator"])


def _room_id(query: Mapping[str, str]) -> str | None:
    room_id = query.get("room_id")
    if room_id is not None and not is_text(room_id):
        raise InvalidParam("room_id is no room id")
    return room_id
