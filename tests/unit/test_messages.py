"""What the bot says as Matrix takes it: relations, sizes, escaping."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.control.messages import MAX_CONTENT, answer, edit, notice, picture
from archiver.control.reply import Code, Picture, Reply, Table, said
from archiver.model import Mxc

COMMAND = {"event_id": "$command", "content": {"msgtype": "m.text", "body": "!archive status"}}
TAGS = {"p", "ul", "li", "strong", "pre", "code", "br"}

SHORT = st.text(max_size=60)
LONG = st.sampled_from(
    ['"' * 20_000, "<b>&'" * 4_000, "\U0001f600" * 20_000, "\ud800" * 20_000, "a\nb\0" * 5_000]
)
TEXT = SHORT | LONG
NAMES = st.lists(st.sampled_from(["", "room", "<b>", 'size "', "größe"]), min_size=1, max_size=4)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    columns = tuple(draw(NAMES))
    cells, times = draw(st.sampled_from([(SHORT, 1), (SHORT, 500), (TEXT, 1)]))
    row = st.tuples(*(cells for _ in columns))
    return Table(columns, tuple(draw(st.lists(row, max_size=3)) * times))


REPLIES = st.lists(TEXT | tables() | st.builds(Code, TEXT), max_size=5) | st.lists(
    SHORT | st.builds(Code, SHORT), min_size=1, max_size=5
).map(lambda parts: parts * 300)


class WellFormed(HTMLParser):
    """Fails at what is not opened, not closed, or not ours; gathers the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert not attrs
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> str:
    parser = WellFormed()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser.text


@settings(max_examples=60, deadline=None)
@given(REPLIES)
def test_any_reply_fits_into_an_event(parts: list[Any]) -> None:
    """Whatever a command answers, its message and its edit have a size that Matrix takes, and
    their HTML is well-formed and ours."""
    content = answer(Reply(tuple(parts)), {"event_id": "$" + "e" * 254})
    assert len(orjson.dumps(content)) <= MAX_CONTENT
    read(content["formatted_body"])
    assert len(orjson.dumps(edit("$" + "m" * 254, content))) <= MAX_CONTENT + 8 * 1024


def test_a_reply_is_a_notice_that_mentions_nobody() -> None:
    """Plain and HTML say the same, and no bot would answer it."""
    content = answer(said("All is well.", Table(("room", "media"), (("!r", "5"),))), COMMAND)
    assert content == {
        "msgtype": "m.notice",
        "body": "All is well.\n\n• !r · media 5",
        "format": "org.matrix.custom.html",
        "formatted_body": "<p>All is well.</p><ul><li><strong>!r</strong> · media 5</li></ul>",
        "m.mentions": {},
        "m.relates_to": {"m.in_reply_to": {"event_id": "$command"}},
    }


def test_a_command_in_a_thread_is_answered_there() -> None:
    """As a true reply within the thread."""
    relation = {"rel_type": "m.thread", "event_id": "$root", "is_falling_back": True}
    content = answer(
        said("Done."), {"event_id": "$command", "content": {"m.relates_to": relation}}
    )
    assert content["m.relates_to"] == {
        "rel_type": "m.thread",
        "event_id": "$root",
        "is_falling_back": False,
        "m.in_reply_to": {"event_id": "$command"},
    }


@pytest.mark.parametrize(
    "content",
    [
        None, [], {}, {"m.relates_to": None}, {"m.relates_to": "m.thread"},
        {"m.relates_to": {"rel_type": "m.thread"}},
        {"m.relates_to": {"rel_type": "m.thread", "event_id": 5}},
        {"m.relates_to": {"rel_type": "m.thread", "event_id": "$" * 256}},
        {"m.relates_to": {"rel_type": ["m.thread"], "event_id": "$root"}},
    ],
    ids=range(9),
)  # fmt: skip
def test_an_odd_relation_is_no_thread(content: Any) -> None:
    """What a command relates to may be anything; the answer is a plain reply."""
    answered = answer(said("Done."), {"event_id": "$command", "content": content})
    assert answered["m.relates_to"] == {"m.in_reply_to": {"event_id": "$command"}}


def test_what_the_bot_says_by_itself_is_to_nobody() -> None:
    """It relates to nothing."""
    assert "m.relates_to" not in notice(said("The disk is nearly full."))


def test_an_edit_shows_the_new_content() -> None:
    """The new content has no relation of its own; a short body is there for old clients."""
    content = answer(said("x" * 5000), COMMAND)
    edited = edit("$message", content)
    assert edited["m.relates_to"] == {"rel_type": "m.replace", "event_id": "$message"}
    assert edited["m.new_content"] == {
        key: value for key, value in content.items() if key != "m.relates_to"
    }
    assert (edited["msgtype"], edited["m.mentions"]) == ("m.notice", {})
    assert edited["body"] == "* " + "x" * 1000 + "…"


def test_rows_that_do_not_fit_are_counted() -> None:
    """The first rows stay, the end tells how many are missing, and what comes after is there."""
    rows = tuple((f"!room{number}:example.com", f"{number:,}") for number in range(5000))
    body = notice(said("All rooms:", Table(("room", "media"), rows), "That was it."))["body"]
    start, *shown, more, end = body.replace("\n\n", "\n").split("\n")
    assert (start, end) == ("All rooms:", "That was it.")
    assert shown[0] == "• !room0:example.com · media 0"
    assert len(shown) > 300
    assert more == f"… and {5000 - len(shown):,} more"


def test_a_short_reply_loses_nothing() -> None:
    """A table that fits is whole."""
    rows = tuple((str(number), "x" * 50) for number in range(100))
    assert notice(said(Table(("a", "b"), rows)))["body"].count("\n") == 99


def test_what_others_wrote_is_text() -> None:
    """Markup in it is shown, and is none."""
    evil = "<img src=x onerror=alert(1)>&amp;</li>"
    content = notice(said(evil, Table(("name", "of"), ((evil, evil),)), Code(evil)))
    assert read(content["formatted_body"]).count(evil) == 4


def test_a_picture_is_shown_in_reply() -> None:
    """With what is known of it, under its name."""
    shown = Picture(Mxc("example.com", "cat"), "image/png", 68, 3, None, "cat\n\u202egnp.exe")
    content = picture(shown, COMMAND)
    assert content == {
        "msgtype": "m.image",
        "body": "cat\ufffd\ufffdgnp.exe",
        "filename": "cat\ufffd\ufffdgnp.exe",
        "url": "mxc://example.com/cat",
        "info": {"mimetype": "image/png", "size": 68, "w": 3},
        "m.mentions": {},
        "m.relates_to": {"m.in_reply_to": {"event_id": "$command"}},
    }
