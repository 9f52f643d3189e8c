"""Which events of a push concern the bot."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.intake.summons import Summons, summoned

BOT = "@archiver:example.com"
PREFIX = "!archive"

WORDS = st.text(max_size=12) | st.sampled_from(
    ["type", "content", "body", "msgtype", "m.text", "m.room.message", "m.reaction", "key",
     "m.relates_to", "rel_type", "m.replace", "!archive", "✅", "event_id", "room_id", "sender",
     "state_key", "m.room.member", BOT]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=20,
)


def event(kind: str, content: Any, **others: Any) -> dict[str, Any]:
    sender = "@admin:example.com"
    return {"event_id": "$e", "room_id": "!r", "sender": sender, "type": kind, "content": content,
            **others}  # fmt: skip


def message(body: Any, **content: Any) -> dict[str, Any]:
    return event("m.room.message", {"msgtype": "m.text", "body": body, **content})


def reaction(key: Any) -> dict[str, Any]:
    relation = {"rel_type": "m.annotation", "event_id": "$x", "key": key}
    return event("m.reaction", {"m.relates_to": relation})


def concerns(*events: Any, prefix: str = PREFIX) -> bool:
    return bool(summoned(events, prefix, BOT))


@pytest.mark.parametrize(
    "body",
    ["!archive", "!archive status", " \n!archive\tstatus", "!ARCHIVE", "!Archive\nhelp",
     "!archive\u2003help"],
    ids=repr,
)  # fmt: skip
def test_a_command_concerns_the_bot(body: str) -> None:
    """Its first word is the prefix, however it is written."""
    assert concerns(message(body))


@pytest.mark.parametrize(
    "body",
    ["", " ", "!", "!archiv", "!archiver status", "!archive-status", "say !archive", "archive",
     "> !archive", None, 5, ["!archive"], {"!archive": 1}],
    ids=repr,
)  # fmt: skip
def test_another_text_does_not(body: Any) -> None:
    """What only looks like the prefix, or holds it elsewhere, is what people talk about."""
    assert not concerns(message(body))


@pytest.mark.parametrize("prefix", ["!", "ß", "!İstanbul", "/Archiv", "ﬀ"])
def test_any_word_can_be_the_prefix(prefix: str) -> None:
    """Also one that has another length in small letters."""
    assert concerns(message(f"{prefix} status"), prefix=prefix)
    assert concerns(message(f"{prefix}\nstatus"), prefix=prefix)
    assert not concerns(message(f"{prefix}x status"), prefix=prefix)


@pytest.mark.parametrize("msgtype", ["m.notice", "m.emote", "m.image", None, ["m.text"]])
def test_only_text_is_a_command(msgtype: Any) -> None:
    """Notices come from bots, and the rest is no talk."""
    assert not concerns(message("!archive status", msgtype=msgtype))


def test_an_edit_is_no_command() -> None:
    """Else a corrected mistake would run twice; a reply and a thread are no edits."""
    replaced = {"rel_type": "m.replace", "event_id": "$x"}
    assert not concerns(message("!archive help", **{"m.relates_to": replaced}))
    for relation in ({"m.in_reply_to": {"event_id": "$x"}}, {"rel_type": "m.thread"}, None, "x"):
        assert concerns(message("!archive help", **{"m.relates_to": relation}))


@pytest.mark.parametrize("key", ["✅", "✅\ufe0f", "❌", "❌\ufe0f"])
def test_ok_and_cancel_concern_the_bot(key: str) -> None:
    """With or without the sign that asks for colour."""
    assert concerns(reaction(key))


@pytest.mark.parametrize("key", ["👍️", "", "✅✅", "✔️", "OK", None, ["✅"], 5], ids=repr)
def test_other_reactions_do_not(key: Any) -> None:
    """People react with anything."""
    assert not concerns(reaction(key))


def test_its_own_membership_concerns_the_bot() -> None:
    """Invited, thrown out, or by its own doing; not that of others."""
    assert concerns(event("m.room.member", {"membership": "invite"}, state_key=BOT))
    assert concerns(event("m.room.member", {"membership": "join"}, state_key=BOT, sender=BOT))
    assert not concerns(event("m.room.member", {"membership": "join"}, state_key="@a:b"))
    assert not concerns(event("m.room.member", {"membership": "join"}))


def test_the_bot_does_not_hear_itself() -> None:
    """What it says is no command to it, and its reactions are no answers."""
    assert not concerns(
        {**message("!archive help"), "sender": BOT}, {**reaction("✅"), "sender": BOT}
    )


@pytest.mark.parametrize("field", ["event_id", "room_id", "sender"])
@pytest.mark.parametrize("value", [None, "", 5, [], "a\0b", "\ud800", "x" * 256], ids=repr)
def test_who_where_and_which_must_be_known(field: str, value: Any) -> None:
    """What no database could hold is no command."""
    assert not concerns({**message("!archive"), field: value})


def test_the_whole_event_is_kept() -> None:
    """As JSON that can be read again."""
    sent = message("!archive status", extra=[1, "ü"])
    [found] = summoned([None, sent], PREFIX, BOT)
    assert found == Summons("$e", "!r", "@admin:example.com", found.raw)
    assert orjson.loads(found.raw) == sent


def test_what_cannot_be_written_again_is_left_alone() -> None:
    """Half a pair of surrogates, huge numbers, and hundreds of levels."""
    deep = json.loads("[" * 600 + "]" * 600)
    for odd in ("\ud800", 2**70, deep):
        assert not concerns(message("!archive", odd=odd))


@given(st.lists(JSON, max_size=3))
def test_any_json_goes_in(events: list[Any]) -> None:
    """Nothing raises, whatever somebody sends."""
    for found in summoned(events, PREFIX, BOT):
        orjson.loads(found.raw)


@given(JSON, JSON, JSON)
def test_any_fields_go_in(content: Any, relation: Any, state_key: Any) -> None:
    """Nor with the types that are looked at."""
    for kind in ("m.room.message", "m.reaction", "m.room.member"):
        summoned([event(kind, content, state_key=state_key)], PREFIX, BOT)
        related = {"msgtype": "m.text", "body": "!archive", "m.relates_to": relation}
        summoned([event(kind, related)], PREFIX, BOT)
