"""A body becomes events, each with its bytes, whatever else is in the body."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.capture.batch import Batch, NotJSON
from archiver.capture.references import find_references

GOOD = b'{"event_id": "$good", "content": {"url": "mxc://example.com/a"}}'

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
# Rich in what a reader of brackets could stumble over.
TEXTS = st.text() | st.text('[]{}",:\\ \n\0\ud800aé😀', max_size=12) | st.just('"events": [')
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
WHITESPACE = st.text(" \t\r\n", max_size=2)


def body(*events: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    return b"{" + before + b'"events":[' + b",".join(events) + b"]" + after + b"}"


def deep(levels: int) -> bytes:
    return (
        b'{"content": {"a": ' + b"[" * levels + b'"mxc://example.com/deep"' + b"]" * levels + b"}}"
    )


@st.composite
def texts_of_json(draw: st.DrawFn) -> bytes:
    """Any value, with escapes or without, and with whitespace where JSON allows it."""
    comma, colon = (draw(WHITESPACE) + separator + draw(WHITESPACE) for separator in (",", ":"))
    text = json.dumps(
        draw(VALUES),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 0, 1])),
        separators=(comma, colon),
    )
    return text.encode("utf-8", "surrogatepass")


@settings(deadline=None)
@given(
    st.lists(texts_of_json(), max_size=4),
    st.lists(texts_of_json(), min_size=1, max_size=2),
    st.tuples(*[WHITESPACE.map(str.encode)] * 3),
)
def test_every_event_is_there_with_its_own_bytes(
    events: list[bytes], beside: list[bytes], spaces: tuple[bytes, bytes, bytes]
) -> None:
    """Whatever events and neighbours hold, and however they are spaced, `raw` is exact."""
    others = b"".join(b'"x": %s,' % value for value in beside)
    spaced = [spaces[0] + event + spaces[1] for event in events]
    batch = Batch(body(*spaced, before=others, after=b', "y": %s' % beside[0] + spaces[2]))
    assert [batch.raw(index) for index in range(len(batch.events))] == events


def test_plain_events_are_exact() -> None:
    """What orjson reads whole is exact, and no bytes are looked for."""
    batch = Batch(body(GOOD, b"5"))
    assert batch.exact
    assert batch.events == [orjson.loads(GOOD), 5]


@pytest.mark.parametrize(
    "odd",
    [
        rb'{"event_id": "$odd", "content": {"body": "\ud800"}}',
        rb'{"event_id": "$odd", "content": {"\udfff": 1}}',
        b'{"event_id": "$odd", "content": {"n": NaN}}',
        b'{"event_id": "$odd", "content": {"n": -Infinity}}',
        b'{"event_id": "$odd", "content": {"n": 1e999}}',
        b'{"event_id": "$odd", "content": {"n": ' + b"9" * 400 + b"}}",
        b'{"event_id": "$odd", "content": {"n": -' + b"9" * 60_000 + b"}}",
    ],
)
def test_an_odd_value_stops_nothing(odd: bytes) -> None:
    """JSON that orjson refuses is read all the same, and the bytes are within reach."""
    batch = Batch(body(odd, GOOD))
    assert not batch.exact
    assert batch.events[0]["event_id"] == "$odd"
    assert batch.events[1] == orjson.loads(GOOD)
    assert [batch.raw(0), batch.raw(1)] == [odd, GOOD]


@pytest.mark.parametrize("levels", [300, 900, 1_100, 100_000])
def test_deep_nesting_stops_nothing(levels: int) -> None:
    """However deep an event is, its neighbours are read and its media are found."""
    batch = Batch(body(GOOD, deep(levels), rb'{"event_id": "$\ud800"}', GOOD))
    assert len(batch.events) == 4
    assert batch.events[0] == batch.events[3] == orjson.loads(GOOD)
    assert batch.raw(1) == deep(levels)
    assert [str(r.mxc) for r in find_references(batch.events[1]).references] == [
        "mxc://example.com/deep"
    ]


def test_deep_nesting_beside_the_events_stops_nothing() -> None:
    """What comes before and after the events may be as deep as it likes."""
    nest = b'"x": ' + b"[" * 100_000 + b"]" * 100_000
    batch = Batch(body(GOOD, GOOD, before=nest + b",", after=b"," + nest))
    assert batch.events == [orjson.loads(GOOD)] * 2


def test_an_event_that_nobody_can_read_is_its_text() -> None:
    """Its own bytes stand for it, so that nothing of it is lost."""
    raw = b"[" * 100_000 + b"]" * 100_000
    assert Batch(body(raw)).events == [raw.decode()]


@pytest.mark.parametrize("odd", [b"", rb',"x":"\ud800"', b',"x":' + b"[" * 9_999 + b"]" * 9_999])
def test_of_a_key_given_twice_the_last_counts(odd: bytes) -> None:
    """As every parser has it, and `raw` agrees."""
    batch = Batch(b'{"events": [1, 2, 3], "events": [{"a": [4]}]' + odd + b"}")
    assert batch.events == [{"a": [4]}]
    assert batch.raw(0) == b'{"a": [4]}'


def test_a_key_further_in_is_not_ours() -> None:
    """Only the top level's list is meant, and never a text that looks like it."""
    batch = Batch(
        rb'{"x": {"events": [1]}, "y": "\"events\": [2]", "z": ["events", [3]], "events": [4]}'
    )
    assert batch.events == [4]
    assert batch.raw(0) == b"4"


@pytest.mark.parametrize("empty", [b"{}", b'{"events": []}', b'{"events": [ ]}', b'{"x": [1]}'])
def test_no_events_are_none(empty: bytes) -> None:
    """A transaction without events is an empty one."""
    assert Batch(empty).events == []


def test_another_key_may_hold_the_events() -> None:
    """History answers under `chunk`."""
    batch = Batch(b'{"events": [1], "chunk": [2, "x"]}', "chunk")
    assert batch.events == [2, "x"]
    assert batch.raw(1) == b'"x"'


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"hello",
        b"[]",
        b"null",
        b'"events"',
        b"\xff\xfe\x00",
        b'{"events": 5}',
        b'{"events": {}}',
        b'{"events": null}',
        b'{"events": [1], "events": 5}',
        b'{"events": [1',
        b'{"events": [1]',
        b'{"events": ["\xff"]}',
        b'{"events": [{"a": ' + b"[" * 5_000,
        b"[" * 5_000 + b"]" * 5_000,
    ],
)
def test_what_is_no_transaction_is_refused(wrong: bytes) -> None:
    """No JSON object, no list of events, or a body cut short: NotJSON, never less than sent."""
    with pytest.raises(NotJSON):
        Batch(wrong)


def test_bytes_that_cannot_be_told_are_refused() -> None:
    """A key written with escapes is read, but who asks for the bytes gets an error, not others."""
    batch = Batch(rb'{"\u0065vents": [1]}')
    assert batch.events == [1]
    with pytest.raises(NotJSON, match="no homeserver uses"):
        batch.raw(0)


@pytest.mark.parametrize(
    "event",
    [GOOD, b'{"a": "\\ud800"}', b"[" * 3000 + b"]" * 3000, b'{"start": "not this one"}'],
    ids=["plain", "half a surrogate", "deep", "alike"],
)
@pytest.mark.parametrize("number", [0, 1, 3])
def test_what_is_beside_the_events_can_be_read(event: bytes, number: int) -> None:
    """A page of history says where it starts and ends, however hostile the events in it are."""
    chunk = b", ".join([event] * number)
    page = Batch(b'{"start": "t1", "chunk": [' + chunk + b'], "end": "t2"}', key="chunk")
    assert len(page.events) == number
    assert (page.fields["start"], page.fields["end"]) == ("t1", "t2")


def test_what_nobody_can_read_beside_the_events_is_told() -> None:
    """Nesting beyond every parser leaves the events readable, and no tokens."""
    deep = b"[" * 3000 + b"]" * 3000
    page = Batch(b'{"chunk": [' + GOOD + b'], "start": ' + deep + b"}", key="chunk")
    assert len(page.events) == 1
    with pytest.raises(NotJSON):
        page.fields["start"]
