"""What is kept of an event: the rule for what, and the row for how."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.capture.batch import Batch
from archiver.capture.policy import CapturePolicy
from archiver.capture.references import find_references
from archiver.capture.rows import KEPT_STATE, KEPT_TYPES, Kept, bare, keep_one, storable_json
from archiver.model import Mxc, Role

ALL = CapturePolicy("example.com")
CAT = "mxc://example.com/cat"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.just(CAT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def image(**fields: Any) -> dict[str, Any]:
    return {
        "event_id": "$image",
        "room_id": "!room",
        "sender": "@alice:example.com",
        "type": "m.room.message",
        "origin_server_ts": 1_700_000_000_000,
        "content": {"msgtype": "m.image", "body": "cat.jpg", "url": CAT},
        **fields,
    }


def kept(event: Any, policy: CapturePolicy = ALL) -> Kept | None:
    return keep_one(Batch(orjson.dumps({"events": [event]})), 0, policy)


def row(event: Any) -> Any:
    found = kept(event)
    assert found is not None
    return found.row


def test_an_image_is_kept_with_its_fields() -> None:
    """Each field has its column, and no copy of the bytes is needed."""
    found = row(image())
    assert found == (
        "$image", "!room", "@alice:example.com", "m.room.message", None, 1_700_000_000_000,
        '{"msgtype":"m.image","body":"cat.jpg","url":"mxc://example.com/cat"}',
        None, None, None, None,
    )  # fmt: skip


@pytest.mark.parametrize("kind", sorted(KEPT_TYPES))
def test_some_types_are_kept_without_media(kind: str) -> None:
    """Polls of both names, redactions, and what cannot be opened."""
    found = kept({"event_id": "$x", "type": kind, "content": {"a": 1}})
    assert found is not None
    assert (found.row.type, found.row.content, found.references) == (kind, '{"a":1}', [])


@pytest.mark.parametrize("kind", sorted(KEPT_STATE))
def test_what_lists_are_read_by_is_kept_as_state(kind: str) -> None:
    """A room's name is a name only as state; anybody can send the same type as a message."""
    named = {"event_id": "$x", "type": kind, "content": {"name": "The garden"}}
    assert kept(named) is None
    assert kept({**named, "state_key": ""}) is not None


@pytest.mark.parametrize(
    ("event", "original"),
    [
        (image(content={}, unsigned={"redacted_because": {"event_id": "$r"}}), "wanted"),
        (image(content={}, unsigned={"redacted_by": "$r"}), "wanted"),
        (image(unsigned={"redacted_by": "$r"}), None),
        (image(type="m.room.redaction", content={}, unsigned={"redacted_by": "$r"}), None),
        (image(type="m.room.encrypted", content={}, unsigned={"redacted_by": "$r"}), "wanted"),
    ],
)
def test_what_came_emptied_is_missed(event: Any, original: str | None) -> None:
    """An event that a redaction emptied before it came is kept, because nobody knows what it was;
    one that still has its media lacks nothing."""
    assert row(event).original == original


@pytest.mark.parametrize("unsigned", [{}, {"redacted_because": None}, [], "redacted_by", None])
def test_what_is_merely_empty_is_not_missed(unsigned: Any) -> None:
    """Only the homeserver's word makes an event without content a redacted one."""
    assert kept(image(content={}, unsigned=unsigned)) is None


@pytest.mark.parametrize(
    "event",
    [
        {"event_id": "$x", "type": "m.room.message", "content": {"body": "hello"}},
        {"event_id": "$x", "type": "m.reaction", "content": {}},
        {"event_id": "$x", "type": ["m.room.encrypted"]},
        {"type": 5},
        {},
        [],
        None,
        5,
        "text",
    ],
)
def test_ordinary_words_are_not_kept(event: Any) -> None:
    """What carries no media and is of none of those types is nobody's business."""
    assert kept(event) is None


@pytest.mark.parametrize("field", ["event_id", "room_id", "sender", "type", "state_key"])
@pytest.mark.parametrize("value", [5, True, None, [], {"a": 1}, "a\0b", "x" * 256, "é" * 128])
def test_an_odd_identifier_is_left_empty(field: str, value: Any) -> None:
    """A field that Matrix would not allow is NULL; without an id the bytes name the event."""
    event = image(**{field: value})
    found = row(event)
    raw = orjson.dumps(event)
    if field == "event_id":
        assert found.event_id == "sha256:" + hashlib.sha256(raw).hexdigest()
        assert found.raw == raw
    else:
        assert (getattr(found, field), found.raw) == (None, None)


def test_identifiers_have_their_length_in_bytes() -> None:
    """255 bytes are the limit; an empty state_key is one, any other empty id is none."""
    found = row(image(room_id="!" + "x" * 254, sender="é" * 127, type="", state_key=""))
    assert (found.room_id, found.sender) == ("!" + "x" * 254, "é" * 127)
    assert (found.type, found.state_key) == (None, "")


@pytest.mark.parametrize("ts", [-1, True, "1700000000000", 1.7e12, None, 2**63, 10**300, []])
def test_a_hostile_time_is_none(ts: Any) -> None:
    """What is no time between 1970 and 9999 is NULL."""
    text = orjson.dumps(image()).replace(b"1700000000000", str(ts).encode())
    body = text if ts == 10**300 else orjson.dumps(image(origin_server_ts=ts))
    found = keep_one(Batch(b'{"events": [%s]}' % body), 0, ALL)
    assert found is not None
    assert found.row.origin_server_ts is None


@pytest.mark.parametrize(
    "odd",
    [
        rb'"\u0000"', rb'"\ud800"', rb'{"\u0000": 1}', b"1e999", b"NaN",
        b"9" * 5_000, b"[" * 400 + b"]" * 400, b"[" * 2_000 + b"]" * 2_000,
    ],
    ids=["NUL", "surrogate", "NUL key", "infinite", "NaN", "digits", "deep", "deeper"],
)  # fmt: skip
def test_what_jsonb_cannot_hold_is_kept_raw(odd: bytes) -> None:
    """The content is emptied or rounded, the bytes are kept, the media is found."""
    text = b'{"event_id": "$x", "content": {"url": "%s", "odd": %s}}' % (CAT.encode(), odd)
    found = keep_one(Batch(b'{"events": [%s]}' % text), 0, ALL)
    assert found is not None
    assert found.row.raw == text
    assert [reference.mxc for reference in found.references] == [Mxc("example.com", "cat")]
    assert b"\0" not in found.row.content.encode()


@pytest.mark.parametrize("content", [None, [], "x", 5, True])
def test_a_content_of_another_kind_is_kept_raw(content: Any) -> None:
    """No object, no content: it is empty and the bytes say what was there."""
    event = {"event_id": "$x", "type": "m.room.encrypted", "content": content}
    assert (row(event).content, row(event).raw) == ("{}", orjson.dumps(event))


def test_what_jsonb_cannot_hold_still_says_what_it_relates_to() -> None:
    """A vote with a NUL in it is found by its poll; a relation with one is not kept as words."""
    relation = {"rel_type": "m.reference", "event_id": "$poll"}
    vote = image(type="m.poll.response", content={"m.relates_to": relation, "x": "a\0"})
    assert orjson.loads(row(vote).content) == {"m.relates_to": relation}
    vote = image(type="m.poll.response", content={"m.relates_to": {"event_id": "$\0"}})
    assert row(vote).content == "{}"


def test_an_edit_names_what_it_replaces() -> None:
    """Only a relation of the type m.replace does."""
    relation = {"rel_type": "m.replace", "event_id": "$old"}
    content = image()["content"]
    assert row(image(content={**content, "m.relates_to": relation})).replaces == "$old"
    others: list[Any] = [
        {**relation, "rel_type": "m.thread"},
        {**relation, "event_id": 5},
        [],
        "x",
        None,
    ]
    for odd in others:
        assert row(image(content={**content, "m.relates_to": odd})).replaces is None


@pytest.mark.parametrize(
    ("event", "target"),
    [
        ({"redacts": "$old"}, "$old"),
        ({"content": {"redacts": "$old"}}, "$old"),
        ({"redacts": "$outer", "content": {"redacts": "$inner"}}, "$inner"),
        ({"redacts": "$outer", "content": {"redacts": 5}}, "$outer"),
        ({"redacts": {}}, None),
        ({}, None),
    ],
)
def test_a_redaction_names_its_target(event: Any, target: str | None) -> None:
    """In the content since room version 11, beside it before."""
    assert row({"event_id": "$x", "type": "m.room.redaction", **event}).redacts == target


def test_of_an_excluded_room_no_words_are_kept() -> None:
    """The event, its media and their roles; neither content, names nor keys."""
    file = {"url": CAT, "key": {"k": "secret"}, "hashes": {"sha256": "x"}}
    event = image(content={"msgtype": "m.image", "body": "a", "filename": "b", "file": file})
    for policy in (
        CapturePolicy("example.com", excluded=["!room"]),
        CapturePolicy("example.com", only=["!other"]),
    ):
        found = kept(event, policy)
        assert found is not None
        assert found.left_out
        assert (found.row.event_id, found.row.content, found.row.raw) == ("$image", "{}", None)
        assert found.references == [(Mxc("example.com", "cat"), Role.CONTENT, 0, *[None] * 5)]
        assert kept({"room_id": "!room", "type": "m.room.encrypted"}, policy) is None


def test_an_event_without_a_room_is_in_no_chosen_room() -> None:
    """`only` leaves it out, `except` does not."""
    event = image(room_id=5)
    for policy, left_out in (
        (CapturePolicy("example.com", only=["!room"]), True),
        (CapturePolicy("example.com", excluded=["!room"]), False),
    ):
        found = kept(event, policy)
        assert found is not None
        assert found.left_out is left_out


def test_the_least_that_is_kept_names_the_media() -> None:
    """A row under the hash of its bytes, always the same one, and its media without words."""
    found = kept(image())
    assert found is not None
    least = bare(found)
    assert least == bare(found)
    assert least.row.event_id.startswith("sha256:")
    assert least.row.raw
    assert least.references == [(Mxc("example.com", "cat"), Role.CONTENT, 0, *[None] * 5)]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*image(), "redacts", "unsigned", "x"]), JSON) | JSON)
def test_any_json_is_kept_or_not(event: Any) -> None:
    """Nothing raises, no media is lost, and what a row says is what its column takes."""
    found = kept(event)
    references = find_references(event).references
    assert (found.references if found else []) == references
    for value in found.row if found else ():
        assert value is None or type(value) in (str, int, bytes)
        assert not isinstance(value, str) or b"\0" not in value.encode()


@settings(deadline=None)
@given(JSON)
def test_storable_json_says_the_same(value: Any) -> None:
    """What is stored reads as what was sent."""
    text = storable_json(value)
    assert orjson.loads(text) == value if text else "\\u0000" in orjson.dumps(value).decode()


@pytest.mark.parametrize(
    ("content", "is_kept"),
    [
        ({"body": f"!archive show {CAT}"}, False),
        ({"body": f"  !ARCHIVE delete {CAT} "}, False),
        ({"body": f"!archive {CAT}", "formatted_body": f"<p>!archive {CAT}</p>"}, False),
        ({"body": f"!archived {CAT}"}, True),
        ({"body": f"see !archive {CAT}"}, True),
        ({"body": "!archive show cat", "url": CAT}, True),
        ({"body": f"!archive show {CAT}", "msgtype": "m.notice"}, True),
        ({"body": f"!archive {CAT}", "formatted_body": f'<img src="{CAT}">'}, True),
        ({"body": "!archive show", "other": CAT}, True),
    ],
)
def test_asking_about_a_media_is_not_posting_it(content: dict[str, Any], is_kept: bool) -> None:
    """Words that begin with the bot's prefix are a command, unless they show a media as well."""
    policy = CapturePolicy("example.com", prefix="!archive")
    event = image(content={"msgtype": "m.text", **content})
    assert (kept(event, policy) is not None) is is_kept
    assert kept(event) is not None


def test_what_our_bot_sends_is_not_kept() -> None:
    """Whatever it is; who has no name is not taken for the bot, nor the bot for others."""
    bot = "@archiver:example.com"
    policy = CapturePolicy("example.com", bot=bot)
    assert kept(image(sender=bot), policy) is None
    assert kept(image(type="m.room.member", state_key=bot, sender=bot), policy) is None
    for sender in ("@alice:example.com", "", None, [bot]):
        assert kept(image(sender=sender), policy) is not None
    assert kept(image(sender="")) is not None
