"""What commands are about is named in every way that Matrix has for it."""

from __future__ import annotations

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from archiver.control.arguments import (
    ANY_TARGET,
    EVENT,
    HIDEABLE,
    HOLDABLE,
    MXC,
    ROOM,
    USER,
    Kind,
    Target,
    TargetType,
    mxc_of,
    settled,
    target_of,
)
from archiver.errors import OperationError, RoomUnreadable
from archiver.matrix.history import History
from archiver.model import Mxc


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("mxc://a.org/x_-1", "mxc", "mxc://a.org/x_-1"),
        ("mxc://a.org:8448/x", "mxc", "mxc://a.org:8448/x"),
        ("mxc://[::1]:8448/x", "mxc", "mxc://[::1]:8448/x"),
        ("$abc-_", "event", "$abc-_"),
        ("$143273582443PhrSn:a.org", "event", "$143273582443PhrSn:a.org"),
        ("@alice:a.org", "user", "@alice:a.org"),
        ("@a/b+c=d:a.org:8448", "user", "@a/b+c=d:a.org:8448"),
        ("!abc:a.org", "room", "!abc:a.org"),
        ("!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM", "room", None),  # of room version 12
        ("#gärten:a.org", "alias", "#gärten:a.org"),
        ("https://matrix.to/#/@alice:a.org", "user", "@alice:a.org"),
        ("https://matrix.to/#/%40alice%3Aa.org", "user", "@alice:a.org"),
        ("https://matrix.to/#/@a%2Fb:a.org", "user", "@a/b:a.org"),
        ("https://matrix.to/#/#room:a.org", "alias", "#room:a.org"),
        ("https://matrix.to/#/%23room%3Aa.org?via=b.org", "alias", "#room:a.org"),
        ("https://matrix.to/#/!abc:a.org?via=a.org&via=b.org", "room", "!abc:a.org"),
        ("https://matrix.to/#/!abc:a.org/$ev-1?via=a.org", "event", "$ev-1"),
        ("https://matrix.to/#/%21abc%3Aa.org/%24ev-1", "event", "$ev-1"),
        ("https://matrix.to/#/#room:a.org/$ev-1", "event", "$ev-1"),
        ("http://matrix.to/#/!abc:a.org/", "room", "!abc:a.org"),
        ("matrix:u/alice:a.org", "user", "@alice:a.org"),
        ("matrix:user/alice:a.org?action=chat", "user", "@alice:a.org"),
        ("matrix:r/room:a.org?action=join", "alias", "#room:a.org"),
        ("matrix:room/room:a.org", "alias", "#room:a.org"),
        ("matrix:roomid/abc:a.org?via=b.org", "room", "!abc:a.org"),
        ("matrix:roomid/abc:a.org/e/ev-1?via=b.org", "event", "$ev-1"),
        ("matrix:r/room:a.org/event/ev-1", "event", "$ev-1"),
        ("matrix:r/g%C3%A4rten:a.org", "alias", "#gärten:a.org"),
    ],
)
def test_every_way_of_naming(text: str, kind: Kind, value: str | None) -> None:
    """Identifiers as they are, links with and without `via`, with and without escapes."""
    assert target_of(text) == Target(kind, value or text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cat.png",
        "all",
        "@alice",
        "#room",
        "$",
        "!",
        "@ali ce:a.org",
        "@alice:a.org\n",
        "!a\0b:a.org",
        "!a\u202eb:a.org",
        "!" + "a" * 255,
        "mxc://",
        "mxc://a.org",
        "mxc://a.org/",
        "mxc:///x",
        "mxc://a.org/../x",
        "mxc://a.org/x?y",
        "mxc://a.org/x#y",
        "mxc://a b/x",
        "https://example.com/#/@alice:a.org",
        "https://matrix.to/#/",
        "https://matrix.to/#/?via=a.org",
        "https://matrix.to/#/%00",
        "https://matrix.to/@alice:a.org",
        "matrix:",
        "matrix:u",
        "matrix:x/alice:a.org",
        "matrix:u/alice",
        "matrix:u/%0a:a.org",
        "matrix:r/a:b/c/d/e",
    ],
)
def test_what_names_nothing(text: str) -> None:
    """Also what looks like a name and has a part that no server would give it."""
    assert target_of(text) is None


@given(
    st.one_of(
        st.text(),
        st.builds(
            "{}{}".format,
            st.sampled_from(
                ["mxc://", "matrix:", "matrix:u/", "https://matrix.to/#/", "$", "@", "!", "#"]
            ),
            st.text(alphabet=st.one_of(st.sampled_from("%:/?#$@![]a0\udcff"), st.characters())),
        ),
    )
)
@example("https://matrix.to/#/%ff%fe")
@example("mxc://[/x")
@example("matrix:roomid/%/e/%")
def test_no_text_raises(text: str) -> None:
    """Whatever is given is a target or none, and a target is one line that can be shown."""
    target = target_of(text)
    if target is not None:
        assert target.value.isprintable()
        assert target_of(target.value) == target
    if target is not None and target.kind == "mxc":
        assert str(mxc_of(target)) == target.value


@pytest.mark.parametrize(
    ("wanted", "text", "expected"),
    [
        (MXC, "@alice:a.org", "is not a media like mxc://server/id"),
        (EVENT, "mxc://a.org/x", "is not an event ($... or its matrix.to link)"),
        (ROOM, "garden", "is not a room (!..., #alias:server or its matrix.to link)"),
        (USER, "alice", "is not a user like @name:server"),
        (TargetType("mxc", "event"), "!a:b", "a media like mxc://server/id or an event"),
    ],
)
def test_another_kind_is_refused(wanted: TargetType, text: str, expected: str) -> None:
    """The message repeats what was given, and says what was expected."""
    with pytest.raises(click.BadParameter) as refused:
        wanted.convert(text, None, None)
    assert repr(text) in refused.value.message
    assert expected in refused.value.message


def test_an_alias_is_a_room() -> None:
    """It is one of the ways to name a room, and no way to name anything else."""
    assert ROOM.convert("#room:a.org", None, None) == Target("alias", "#room:a.org")
    assert ANY_TARGET.convert(Target("user", "@a:b"), None, None) == Target("user", "@a:b")
    with pytest.raises(click.BadParameter):
        USER.convert("#room:a.org", None, None)


def test_a_target_knows_its_media() -> None:
    """As the catalogue names it."""
    assert mxc_of(Target("mxc", "mxc://a.org/x")) == Mxc("a.org", "x")


class _Directory(History):
    """A homeserver that knows one alias."""

    def __init__(self) -> None:
        """Asks nobody."""

    async def room_id(self, alias: str) -> str:
        if alias != "#known:a.org":
            raise RoomUnreadable("Room alias not found")
        return "!known:a.org"


async def test_an_alias_becomes_its_room() -> None:
    """By the homeserver's directory; what is in no directory is told, all else stays."""
    directory = _Directory()
    room = Target("room", "!known:a.org")
    assert await settled(Target("alias", "#known:a.org"), directory) == room
    assert await settled(room, directory) == room
    with pytest.raises(OperationError, match=r"#lost:a\.org: Room alias not found"):
        await settled(Target("alias", "#lost:a.org"), directory)


def test_bytes_and_spans_are_targets_of_those_who_take_them() -> None:
    """Bytes in any case of their letters; neither is anything else's target."""
    name, span = "sha256:" + "0f" * 32, "2024-01-01..2024-01-31"
    assert HOLDABLE.convert(name.upper(), None, None) == Target("hash", name)
    assert HOLDABLE.convert(span, None, None) == Target("span", span)
    assert HIDEABLE.convert(name, None, None) == Target("hash", name)
    for kinds, text in ((HIDEABLE, span), (ANY_TARGET, name), (ANY_TARGET, span)):
        with pytest.raises(click.BadParameter, match="is not a media"):
            kinds.convert(text, None, None)
    for text in ("sha256:", "sha256:" + "0g" * 32, "2024-01-31..2024-01-01"):
        with pytest.raises(click.BadParameter):
            HOLDABLE.convert(text, None, None)
