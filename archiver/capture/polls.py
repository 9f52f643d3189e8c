"""Polls (MSC3381) in both schemas, and how their votes are counted.

Everything is computed from the events at hand, so in which order they came makes no difference.
Pure and total: a content may be any JSON value.

https://github.com/matrix-org/matrix-spec-proposals/blob/main/proposals/3381-polls.md
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from archiver.capture.powers import Powers

MOST_ANSWERS = 20

# The stable name first. Which of them an event has does not hang on its type: votes in one schema
# count for a poll in the other, because the ids of the answers are the same.
_POLL = ("m.poll", "org.matrix.msc3381.poll.start")
_ANSWER_ID = ("m.id", "id")
_DISCLOSED = ("m.disclosed", "org.matrix.msc3381.poll.disclosed")
_TEXT = ("m.text", "org.matrix.msc1767.text", "body")


class Answer(NamedTuple):
    """What can be voted for. `text` is None where there is none in plain sight."""

    id: str
    text: str | None


class Poll(NamedTuple):
    """A poll as it is asked. A kind nobody knows is undisclosed."""

    question: str | None
    disclosed: bool
    max_selections: int
    answers: tuple[Answer, ...]


class Event(NamedTuple):
    """What a poll needs of an event. `ts` is its origin_server_ts in milliseconds."""

    event_id: str
    room_id: str | None
    sender: str | None
    type: str | None
    ts: int
    content: Any
    redacted: bool = False


class End(NamedTuple):
    """An event that would close a poll, and who had which power when it was sent."""

    event: Event
    powers: Powers


class Tally(NamedTuple):
    """The senders behind each answer, how many of them chose at all, and how many in vain."""

    votes: dict[str, list[str]]
    voters: int
    spoiled: int


def parse_start(content: Any) -> Poll | None:
    """The poll in a start's content, read as kindly as can be; None where there is none.

    Answers beyond MOST_ANSWERS, without an id, or with the id of an earlier one are left out.
    """
    block = _first(content, _POLL)
    if not isinstance(block, dict):
        return None
    found: dict[str, Answer] = {}
    offered = block.get("answers")
    for answer in offered[:MOST_ANSWERS] if isinstance(offered, list) else ():
        answer_id = _first(answer, _ANSWER_ID)
        if isinstance(answer_id, str):
            name = _clean(answer_id)
            found.setdefault(name, Answer(name, _text(answer)))
    most = block.get("max_selections")
    return Poll(
        _text(block.get("question")),
        block.get("kind") in _DISCLOSED,
        most if type(most) is int and most >= 1 else 1,  # type(), because a bool is an int
        tuple(found.values()),
    )


def parse_response(content: Any) -> list[str] | None:
    """The ids that a response selects, maybe none; None where it is malformed."""
    selected = _first(content, ("m.selections",))
    if selected is None:
        selected = _first(_first(content, ("org.matrix.msc3381.poll.response",)), ("answers",))
    if not isinstance(selected, list):
        return None
    ids = [_clean(selection) for selection in selected if isinstance(selection, str)]
    return ids if len(ids) == len(selected) else None


def accepted_edits(start: Event, edits: Iterable[Event]) -> list[Event]:
    """The edits that count, oldest first: each `content` is what it puts in the poll's place.

    Ties go to the greater event_id, here and where votes are counted.
    https://spec.matrix.org/v1.16/client-server-api/#validity-of-replacement-events
    """
    found = [
        edit._replace(content=_first(edit.content, ("m.new_content",)))
        for edit in edits
        if not edit.redacted
        and _related(edit.content, "m.replace") == start.event_id
        and edit[1:4] == start[1:4]  # room, sender, type
        and start.sender is not None
    ]
    return sorted((e for e in found if parse_start(e.content)), key=_age)


def find_end(start: Event, ends: Iterable[End]) -> Event | None:
    """The first event that closes the poll; None while it is open.

    Only its sender may, or who had the power to redact when they did.
    """
    valid = (
        end.event
        for end in ends
        if _belongs(end.event, start)
        and (end.event.sender == start.sender or end.powers.may_redact(end.event.sender))
    )
    return min(valid, key=_age, default=None)


def tally(poll: Poll, start: Event, responses: Iterable[Event], end: Event | None) -> Tally:
    """Counts the last response of each sender up to the end, at its very millisecond included.

    It counts even if it is spoiled: then it takes the vote back, and so does an empty one. An id
    that the poll does not have spoils it wherever it stands; what exceeds `max_selections` is cut
    off afterwards. A redacted response is as if it had never been.
    """
    last: dict[str, Event] = {}
    for response in responses:
        if not _belongs(response, start) or (end is not None and response.ts > end.ts):
            continue
        before = last.setdefault(response.sender or "", response)
        if _age(response) > _age(before):
            last[response.sender or ""] = response
    votes: dict[str, list[str]] = {answer.id: [] for answer in poll.answers}
    voters = spoiled = 0
    for sender in sorted(last):
        selected = parse_response(last[sender].content)
        if selected is None or not votes.keys() >= set(selected):
            spoiled += 1
            continue
        voters += bool(selected)
        for answer in dict.fromkeys(selected[: poll.max_selections]):
            votes[answer].append(sender)
    return Tally(votes, voters, spoiled)


def _belongs(event: Event, start: Event) -> bool:
    """True for what somebody said about this poll, in its room, and did not take back."""
    return (
        not event.redacted
        and event.sender is not None
        and event.room_id == start.room_id
        and _related(event.content, "m.reference") == start.event_id
    )


def _age(event: Event) -> tuple[int, str]:
    return event.ts, event.event_id


def _related(content: Any, rel_type: str) -> Any:
    """What the content relates to in this way; None where it does not."""
    relation = _first(content, ("m.relates_to",))
    return _first(relation, ("event_id",)) if _first(relation, ("rel_type",)) == rel_type else None


def _first(value: Any, keys: Iterable[str]) -> Any:
    """The first of these that an object has; None where it has none, or is no object."""
    if not isinstance(value, dict):
        return None
    return next((value[key] for key in keys if key in value), None)


def _text(block: Any) -> str | None:
    """The words of a question or an answer: plain text, or else the first there is (MSC1767)."""
    text = _first(block, _TEXT)
    if isinstance(text, list):
        bodies = [part for part in text if isinstance(_first(part, ("body",)), str)]
        plain = (part for part in bodies if part.get("mimetype", "text/plain") == "text/plain")
        text = _first(next(plain, bodies[0] if bodies else None), ("body",))
    return _clean(text) if isinstance(text, str) else None


def _clean(text: str) -> str:
    """Without lone surrogates, which JSON may hold and UTF-8 may not."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
