"""A poll's votes are counted as MSC3381 has it, in both schemas and in any order of arrival."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.capture.polls import (
    Answer,
    End,
    Event,
    Poll,
    Tally,
    accepted_edits,
    find_end,
    parse_response,
    parse_start,
    tally,
)
from archiver.capture.powers import Powers
from archiver.capture.references import find_references
from archiver.model import Mxc, Role

ALICE, BOB, CAROL = "@alice:example.com", "@bob:example.com", "@carol:example.com"
ROOM = "!room"
UNSTABLE = "org.matrix.msc3381.poll"
TEXT = "org.matrix.msc1767.text"


def stable(**block: Any) -> dict[str, Any]:
    """A start in the stable schema; `block` replaces fields of m.poll."""
    answers = [{"m.id": name, "m.text": [{"body": name.upper()}]} for name in ("a", "b", "c")]
    question = {"m.text": [{"body": "Which?"}]}
    poll = {"kind": "m.disclosed", "max_selections": 2, "question": question, "answers": answers}
    return {"m.text": [{"body": "Which? a, b, c"}], "m.poll": {**poll, **block}}


def unstable(**block: Any) -> dict[str, Any]:
    """The same in the unstable schema."""
    poll = {
        "kind": f"{UNSTABLE}.disclosed",
        "max_selections": 2,
        "question": {TEXT: "Which?"},
        "answers": [{"id": name, TEXT: name.upper()} for name in ("a", "b", "c")],
    }
    return {TEXT: "Which? a, b, c", f"{UNSTABLE}.start": {**poll, **block}}


def relation(to: Any = "$poll", rel_type: Any = "m.reference") -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": rel_type, "event_id": to}}


def selecting(*selected: Any) -> dict[str, Any]:
    return {"m.selections": list(selected), **relation()}


def selecting_unstably(*selected: Any) -> dict[str, Any]:
    return {f"{UNSTABLE}.response": {"answers": list(selected)}, **relation()}


def event(ts: int, sender: str | None, content: Any, event_id: str = "", **fields: Any) -> Event:
    made = Event(event_id or f"${ts}", ROOM, sender, "m.poll.response", ts, content)
    return made._replace(**fields)


ANSWERS = (Answer("a", "A"), Answer("b", "B"), Answer("c", "C"))
POLL = Poll("Which?", disclosed=True, max_selections=2, answers=ANSWERS)
START = Event("$poll", ROOM, ALICE, "m.poll.start", 1000, stable())


@pytest.mark.parametrize("content", [stable(), unstable()], ids=["stable", "unstable"])
def test_a_poll_is_read_in_both_schemas(content: dict[str, Any]) -> None:
    """Question, kind, how many may be chosen, and the answers in their order."""
    assert parse_start(content) == POLL


@pytest.mark.parametrize(
    ("given_value", "meant"),
    [(1, 1), (5, 5), (0, 1), (-1, 1), (None, 1), ("3", 1), (2.5, 1), (True, 1), ([], 1)],
)
def test_what_is_no_number_of_selections_means_one(given_value: Any, meant: int) -> None:
    """It is an integer from 1 on, and 1 by default."""
    poll = parse_start(stable(max_selections=given_value))
    assert poll
    assert poll.max_selections == meant


def test_the_number_of_selections_may_be_missing() -> None:
    """It is 1 then."""
    content = stable()
    del content["m.poll"]["max_selections"]
    poll = parse_start(content)
    assert poll
    assert poll.max_selections == 1


@pytest.mark.parametrize(
    ("kind", "disclosed"),
    [
        ("m.disclosed", True),
        ("org.matrix.msc3381.poll.disclosed", True),
        ("m.undisclosed", False),
        ("org.matrix.msc3381.poll.undisclosed", False),
        ("com.example.secret", False),
        (None, False),
        ({"m": 1}, False),
    ],
)
def test_a_kind_that_nobody_knows_is_undisclosed(kind: Any, disclosed: bool) -> None:
    """Only the two names of disclosed mean it."""
    poll = parse_start(stable(kind=kind))
    assert poll
    assert poll.disclosed is disclosed


def test_answers_beyond_twenty_are_cut() -> None:
    """And with them the votes for them are unknown."""
    poll = parse_start(unstable(answers=[{"id": str(n), TEXT: str(n)} for n in range(30)]))
    assert poll
    assert [answer.id for answer in poll.answers] == [str(n) for n in range(20)]


def test_answers_that_are_none_are_left_out() -> None:
    """No object, no id, an id that is no string; of two with one id the first stays."""
    answers = [
        "a",
        {"m.text": [{"body": "no id"}]},
        {"m.id": 5},
        {"m.id": "a", "m.text": [{"body": "first"}]},
        {"m.id": "a", "m.text": [{"body": "second"}]},
        {"m.id": "wordless"},
    ]
    poll = parse_start(stable(answers=answers))
    assert poll
    assert poll.answers == (Answer("a", "first"), Answer("wordless", None))


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"m.text": [{"body": "plain"}]}, "plain"),
        ({"m.text": [{"mimetype": "text/html", "body": "<b>"}, {"body": "plain"}]}, "plain"),
        ({"m.text": [{"mimetype": "text/html", "body": "<b>only</b>"}]}, "<b>only</b>"),
        ({"m.text": [7, {"body": 7}, {"mimetype": "text/plain", "body": "third"}]}, "third"),
        ({"m.text": "a mere string"}, "a mere string"),
        ({TEXT: "unstable"}, "unstable"),
        ({"body": "a message, too"}, "a message, too"),
        ({"m.text": []}, None),
        ({"m.text": 5}, None),
        ({}, None),
        ("no block", None),
        ({TEXT: "half \ud83d"}, "half ?"),
    ],
)  # fmt: skip
def test_a_question_is_read_as_its_plain_text(block: Any, text: str | None) -> None:
    """MSC1767's representations: plain text first, any other rather than none."""
    poll = parse_start(stable(question=block))
    assert poll
    assert poll.question == text


@pytest.mark.parametrize("content", [{}, None, [], "poll", {"m.poll": []}, {"m.poll": "x"}])
def test_what_holds_no_poll_is_none(content: Any) -> None:
    """A redaction leaves nothing, and anybody may send anything."""
    assert parse_start(content) is None


@pytest.mark.parametrize(
    ("content", "selected"),
    [
        (selecting("a", "b"), ["a", "b"]),
        (selecting_unstably("a"), ["a"]),
        (selecting(), []),
        ({"m.selections": "a"}, None),
        ({"m.selections": ["a", 1]}, None),
        ({"m.selections": None}, None),
        ({f"{UNSTABLE}.response": ["a"]}, None),
        ({f"{UNSTABLE}.response": {}}, None),
        ({}, None),
        ("a", None),
    ],
)
def test_a_response_is_a_list_of_ids(content: Any, selected: list[str] | None) -> None:
    """Whatever else it holds is malformed."""
    assert parse_response(content) == selected


OPEN = None
CLOSED = event(2000, ALICE, relation(), "$end", type="m.poll.end")

VOTES: dict[str, tuple[list[Event], Event | None, dict[str, list[str]], int, int]] = {
    "nobody voted": ([], OPEN, {}, 0, 0),
    "one vote": ([event(1100, BOB, selecting("a"))], OPEN, {"a": [BOB]}, 1, 0),
    "the poll's sender votes": ([event(1100, ALICE, selecting("a"))], OPEN, {"a": [ALICE]}, 1, 0),
    "several choices": (
        [event(1100, BOB, selecting("c", "a"))], OPEN, {"a": [BOB], "c": [BOB]}, 1, 0,
    ),
    "the last vote counts": (
        [event(1100, BOB, selecting("a")), event(1200, BOB, selecting("b"))],
        OPEN, {"b": [BOB]}, 1, 0,
    ),
    "of two at once the greater event_id counts": (
        [event(1100, BOB, selecting("a"), "$y"), event(1100, BOB, selecting("b"), "$x")],
        OPEN, {"a": [BOB]}, 1, 0,
    ),
    "each sender votes alone": (
        [event(1100, BOB, selecting("a")), event(1100, CAROL, selecting("a"), "$c")],
        OPEN, {"a": [BOB, CAROL]}, 2, 0,
    ),
    "too many choices are cut to the first": (
        [event(1100, BOB, selecting("c", "b", "a"))], OPEN, {"c": [BOB], "b": [BOB]}, 1, 0,
    ),
    "a choice given twice counts once": (
        [event(1100, BOB, selecting("a", "a"))], OPEN, {"a": [BOB]}, 1, 0,
    ),
    "and takes the place of another": (
        [event(1100, BOB, selecting("a", "a", "b"))], OPEN, {"a": [BOB]}, 1, 0,
    ),
    "an unknown id spoils": ([event(1100, BOB, selecting("a", "x"))], OPEN, {}, 0, 1),
    "an unknown id spoils beyond the cut, too": (
        [event(1100, BOB, selecting("a", "b", "x"))], OPEN, {}, 0, 1,
    ),
    "a spoiled vote takes back the one before": (
        [event(1100, BOB, selecting("a")), event(1200, BOB, selecting("x"))], OPEN, {}, 0, 1,
    ),
    "a malformed vote, too": (
        [event(1100, BOB, selecting("a")), event(1200, BOB, relation())], OPEN, {}, 0, 1,
    ),
    "an id that is no string is malformed": (
        [event(1100, BOB, selecting("a", 7))], OPEN, {}, 0, 1,
    ),
    "a good vote after a spoiled one counts": (
        [event(1100, BOB, selecting("x")), event(1200, BOB, selecting("a"))],
        OPEN, {"a": [BOB]}, 1, 0,
    ),
    "an empty vote is no choice": ([event(1100, BOB, selecting())], OPEN, {}, 0, 0),
    "an empty vote takes back the one before": (
        [event(1100, BOB, selecting("a")), event(1200, BOB, selecting())], OPEN, {}, 0, 0,
    ),
    "a vote after the end is as if it had never been": (
        [event(1100, BOB, selecting("a")), event(2001, BOB, selecting("b"))],
        CLOSED, {"a": [BOB]}, 1, 0,
    ),
    "nor does a spoiled one after the end spoil": (
        [event(1100, BOB, selecting("a")), event(2001, BOB, selecting("x"))],
        CLOSED, {"a": [BOB]}, 1, 0,
    ),
    "a vote at the end's very time counts": (
        [event(2000, BOB, selecting("b"))], CLOSED, {"b": [BOB]}, 1, 0,
    ),
    "a vote from before the start counts": (
        [event(1, BOB, selecting("a"))], CLOSED, {"a": [BOB]}, 1, 0,
    ),
    "a redacted vote reverts to the one before": (
        [event(1100, BOB, selecting("a")), event(1200, BOB, selecting("b"), redacted=True)],
        OPEN, {"a": [BOB]}, 1, 0,
    ),
    "a vote that came emptied is none": (
        [event(1100, BOB, selecting("a")), event(1200, BOB, {})], OPEN, {"a": [BOB]}, 1, 0,
    ),
    "votes of the other schema count": (
        [event(1100, BOB, selecting_unstably("a"), type=f"{UNSTABLE}.response"),
         event(1100, CAROL, selecting("b"), "$c")],
        OPEN, {"a": [BOB], "b": [CAROL]}, 2, 0,
    ),
    "a vote in another room is none": (
        [event(1100, BOB, selecting("a"), room_id="!other")], OPEN, {}, 0, 0,
    ),
    "a vote for another poll is none": (
        [event(1100, BOB, selecting("a") | relation("$other"))], OPEN, {}, 0, 0,
    ),
    "a vote is a reference and nothing else": (
        [event(1100, BOB, selecting("a") | relation(rel_type="m.thread")),
         event(1100, CAROL, selecting("a") | relation(rel_type=None), "$c")],
        OPEN, {}, 0, 0,
    ),
    "a vote of nobody is none": ([event(1100, None, selecting("a"))], OPEN, {}, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", VOTES)
def test_votes_are_counted(case: str) -> None:
    """Every rule of MSC3381 on votes; how they came makes no difference."""
    responses, end, votes, voters, spoiled = VOTES[case]
    expected = Tally({"a": [], "b": [], "c": [], **votes}, voters, spoiled)
    assert tally(POLL, START, responses, end) == expected
    assert tally(POLL, START, reversed(responses), end) == expected


def test_one_choice_is_the_default() -> None:
    """Of more, the first stays."""
    poll = POLL._replace(max_selections=1)
    found = tally(poll, START, [event(1100, BOB, selecting("b", "a"))], None)
    assert found.votes == {"a": [], "b": [BOB], "c": []}


def test_votes_come_in_any_order() -> None:
    """A thousand responses of ten people count alike however they are shuffled."""
    dice = random.Random(3381)  # noqa: S311  # any order will do
    responses = []
    for n in range(1000):
        vote = selecting(*dice.choices("abcx", k=n % 4))
        responses.append(event(1000 + n // 3, f"@{n % 10}:example.com", vote, f"${n}"))
    expected = tally(POLL, START, responses, None)
    for _ in range(5):
        dice.shuffle(responses)
        assert tally(POLL, START, responses, None) == expected
    assert expected.voters + expected.spoiled <= 10


BY_LEVELS = Powers({"users": {BOB: 50}}, {"creator": ALICE}, ALICE)

POWERS: dict[str, tuple[Powers, str, bool]] = {
    "nothing is known": (Powers(), BOB, False),
    "50 is enough by default": (BY_LEVELS, BOB, True),
    "others have nothing": (BY_LEVELS, CAROL, False),
    "unless the room says so": (Powers({"users_default": 50}), CAROL, True),
    "redacting may take more": (Powers({"users": {BOB: 50}, "redact": 51}), BOB, False),
    "or nothing": (Powers({"redact": 0}), CAROL, True),
    "or less than nothing": (Powers({"redact": -1, "users": {BOB: -2}}), BOB, False),
    "a creator is nobody special beside levels": (Powers({}, {}, ALICE), ALICE, False),
    "without levels the creator has 100": (Powers(None, {"creator": ALICE}, BOB), ALICE, True),
    "and others 0": (Powers(None, {"creator": ALICE}, BOB), BOB, False),
    "in room version 11 it is the sender": (
        Powers(None, {"room_version": "11", "creator": CAROL}, BOB), BOB, True,
    ),
    "and not who is named": (
        Powers(None, {"room_version": "11", "creator": CAROL}, BOB), CAROL, False,
    ),
    "in room version 12 creators may everything": (
        Powers({"redact": 1000, "users": {}}, {"room_version": "12"}, BOB), BOB, True,
    ),
    "additional ones, too": (
        Powers({"redact": 1000}, {"room_version": "12", "additional_creators": [CAROL]}, BOB),
        CAROL, True,
    ),
    "but not before": (
        Powers({"redact": 1000}, {"room_version": "11", "additional_creators": [CAROL]}, BOB),
        CAROL, False,
    ),
    "old rooms write text": (Powers({"users": {BOB: " 100 "}, "redact": "60"}), BOB, True),
    "what is no number is as good as absent": (
        Powers({"users": {BOB: "many"}, "redact": [], "users_default": True}), BOB, False,
    ),
    "a version that is no number is an old one": (
        Powers(None, {"room_version": {}, "creator": ALICE}, BOB), ALICE, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", POWERS)
def test_who_may_redact_may_close(case: str) -> None:
    """By the power levels in force, or the defaults of the room's version."""
    powers, user_id, may = POWERS[case]
    end = End(event(2000, user_id, relation(), type="m.poll.end"), powers)
    start = START._replace(sender="@somebody:example.com")
    assert find_end(start, [end]) == (end.event if may else None)


def ending(ts: int, sender: str | None = ALICE, content: Any = None, **fields: Any) -> End:
    """An end by someone who may do nothing but what everybody may."""
    content = relation() if content is None else content
    return End(event(ts, sender, content, type="m.poll.end", **fields), BY_LEVELS)


ENDS: dict[str, tuple[list[End], int | None]] = {
    "no end": ([], None),
    "by the poll's sender": ([ending(2000)], 2000),
    "by a moderator": ([ending(2000, BOB)], 2000),
    "by somebody else": ([ending(2000, CAROL)], None),
    "somebody else's comes first": ([ending(1500, CAROL), ending(2000)], 2000),
    "the first one counts": ([ending(2500, BOB), ending(2000), ending(3000)], 2000),
    "a redacted one does not": ([ending(2000, redacted=True), ending(3000)], 3000),
    "one that came emptied does not": ([ending(2000, content={})], None),
    "in another room": ([ending(2000, room_id="!other")], None),
    "of another poll": ([ending(2000, content=relation("$other"))], None),
    "not as a reference": ([ending(2000, content=relation(rel_type="m.replace"))], None),
    "before the start": ([ending(500)], 500),
    "in the unstable schema": (
        [ending(2000, content={f"{UNSTABLE}.end": {}, TEXT: "It is over", **relation()})], 2000,
    ),
    "with results, which are not believed": (
        [ending(2000, content={"m.poll.results": {"a": 99}, **relation()})], 2000,
    ),
    "of nobody": ([ending(2000, None)], None),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_the_first_valid_end_closes_a_poll(case: str) -> None:
    """Every rule of MSC3381 on ends."""
    ends, ts = ENDS[case]
    for order in (ends, ends[::-1]):
        end = find_end(START, order)
        assert (end.ts if end else None) == ts


def test_a_poll_of_nobody_is_closed_by_nobody() -> None:
    """That neither has a sender makes them no kin."""
    assert find_end(START._replace(sender=None), [ending(2000, None)]) is None


def edit(ts: int, into: Any, **fields: Any) -> Event:
    whole = {"m.new_content": into, **relation(rel_type="m.replace")}
    return event(ts, ALICE, whole, type="m.poll.start")._replace(**fields)


EDITS: dict[str, tuple[list[Event], list[int]]] = {
    "in order": ([edit(1200, unstable()), edit(1100, stable())], [1100, 1200]),
    "by another": ([edit(1100, stable(), sender=BOB)], []),
    "in another room": ([edit(1100, stable(), room_id="!other")], []),
    "of another type": ([edit(1100, stable(), type=f"{UNSTABLE}.start")], []),
    "redacted": ([edit(1100, stable(), redacted=True)], []),
    "of another event": ([edit(1100, stable(), content=relation("$x", "m.replace"))], []),
    "no edit": ([edit(1100, stable(), content=relation() | {"m.new_content": stable()})], []),
    "into no poll": ([edit(1100, {"msgtype": "m.text"}), edit(1200, None)], []),
    "without new content": ([edit(1100, None, content=relation(rel_type="m.replace"))], []),
}


@pytest.mark.parametrize("case", EDITS)
def test_an_edit_counts_by_the_rules_of_replacements(case: str) -> None:
    """Its sender, room and type are the poll's, and what it holds is a poll."""
    edits, accepted = EDITS[case]
    found = accepted_edits(START, edits)
    assert [one.ts for one in found] == accepted
    assert all(parse_start(one.content) for one in found)


KEYS = st.sampled_from(
    ["m.poll", f"{UNSTABLE}.start", f"{UNSTABLE}.response", "m.selections", "m.relates_to",
     "rel_type", "event_id", "m.new_content", "answers", "question", "kind", "max_selections",
     "m.id", "id", "m.text", TEXT, "body", "mimetype", "users", "users_default", "redact",
     "room_version", "additional_creators", "creator", ALICE]
)  # fmt: skip
WORDS = st.sampled_from(["a", "$poll", "m.reference", "m.replace", ALICE, "12", "50", "\ud800"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
NAMES = st.none() | st.sampled_from([ALICE, BOB])


@given(JSON, JSON, JSON, JSON, NAMES)
def test_nothing_that_is_json_raises(
    content: Any, said: Any, levels: Any, create: Any, sender: str | None
) -> None:
    """Whatever a poll, what refers to it, and the room's state hold."""
    for held in (content, {"m.poll": content}, {**stable(), "m.poll": {"answers": content}}):
        poll = parse_start(held) or POLL
        for reply in (
            said,
            {"m.selections": said, **relation()},
            {**relation(), "m.new_content": said},
        ):
            response = event(1100, sender, reply)
            end = find_end(START, [End(response, Powers(levels, create, sender))])
            result = tally(poll, START, [response], end)
            assert result.voters + result.spoiled <= 1
            accepted_edits(START, [response._replace(type="m.poll.start")])


def test_media_in_answers_is_found() -> None:
    """Blocks of extensible events, encrypted or not, and a plain mxc in an answer's text."""
    picture = {"m.file": {"url": "mxc://example.com/image", "mimetype": "image/png"}}
    secret = {"m.file": {"url": "mxc://example.com/secret", "key": {"k": "x"}, "iv": "i",
                         "hashes": {"sha256": "h"}, "v": "v2"}}  # fmt: skip
    answers = [
        {"m.id": "a", "m.image": {"width": 1}, **picture},
        {"m.id": "b", "m.text": [{"body": "this: mxc://example.com/plain"}], **secret},
        {"m.id": "c", "m.image": "mxc://example.com/bare"},
    ]
    for kind, content in (
        ("m.poll.start", stable(answers=answers)),
        (f"{UNSTABLE}.start", unstable(answers=answers)),
    ):
        found = find_references({"type": kind, "content": content}).references
        assert {reference.mxc for reference in found} == {
            Mxc("example.com", name) for name in ("image", "secret", "plain", "bare")
        }
        assert {reference.role for reference in found} == {Role.OTHER}
        by_id = {reference.mxc.media_id: reference for reference in found}
        encryption = by_id["secret"].encryption
        assert encryption
        assert encryption["hashes"] == {"sha256": "h"}
