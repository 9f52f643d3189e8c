"""Signed URLs: the formula, and that nothing in them can be changed."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from multidict import MultiDict
from yarl import URL

from archiver.errors import Forbidden
from archiver.model import Scope
from archiver.serve.signing import OURS, Parameter, Signed, are_signable, read, sign, signed_url

SECRET = "mmk_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
DOWNLOAD = "/_matrix/client/v1/media/download/example.com/abc"
THUMBNAIL = "/_matrix/client/v1/media/thumbnail/example.com/abc"
EXPIRES = 1735689600

VECTORS: list[tuple[str, str, list[Parameter], str]] = [
    (DOWNLOAD, "read", [], "k9MmEKGiVWmi4l5BPtVj4LRqQJWDArVKuY3KiDbP3WQ"),
    (
        THUMBNAIL,
        "read",
        [("width", "96"), ("method", "crop"), ("height", "96")],
        "C3BFfCGeLebr0exMsnRG28iJrlU9XQbcWIYiH1YZkJI",
    ),
    (
        f"{DOWNLOAD}/Zo\u00eb's holiday.png",
        "admin",
        [("for", "@alice:example.com")],
        "AHQLnOciFt4yeGpuKqEi9JE6CIvYSRZ-vp-nPHGGY7w",
    ),
]

paths = st.text(
    st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1, max_size=30
).map(lambda text: f"/{text}")
numbers = st.integers(1, 10**17)
names = st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True).filter(lambda name: name not in OURS)
values = st.from_regex(r"[!-%'-~]{0,8}", fullmatch=True)
parameters = st.lists(st.tuples(names, values), max_size=4)
scopes = st.sampled_from(list(Scope))
secrets = st.from_regex(r"mmk_[A-Za-z0-9_-]{4}", fullmatch=True)


@pytest.mark.parametrize(("path", "scope", "others", "signature"), VECTORS)
def test_the_formula_is_the_documented_one(
    path: str, scope: str, others: list[Parameter], signature: str
) -> None:
    """These vectors are for whoever writes it in another language."""
    assert sign(SECRET, path, EXPIRES, scope, others) == signature
    assert sign(SECRET, path, EXPIRES, scope, reversed(others)) == signature


def arrived(url: str) -> Signed:
    """What a server reads of it."""
    received = URL(f"http://archive.test{url}", encoded=True)
    return read(received.path, received.query)


@given(secrets, numbers, paths, numbers, scopes, parameters)
def test_a_url_says_what_was_signed(
    secret: str, key_id: int, path: str, expires: int, scope: Scope, others: list[Parameter]
) -> None:
    """Whatever its path and parameters hold, it arrives as it was meant."""
    assume("\x7f" not in path)
    signed = arrived(signed_url(secret, key_id, path, expires, scope, others))
    assert signed[:4] == (path, expires, scope, key_id)
    assert sorted(signed.parameters) == sorted(others)
    assert signed.is_by(secret)


@given(
    secret=secrets,
    one=st.tuples(paths, numbers, scopes, parameters),
    other=st.tuples(paths, numbers, scopes, parameters),
    which=st.sets(st.integers(0, 3), min_size=1),
)
def test_any_change_breaks_it(
    secret: str,
    one: tuple[str, int, Scope, list[Parameter]],
    other: tuple[str, int, Scope, list[Parameter]],
    which: set[int],
) -> None:
    """Of the path, the expiry, the scope or the parameters, and of several at a time."""
    changed = tuple(other[part] if part in which else one[part] for part in range(4))
    assume((*one[:3], sorted(one[3])) != (*changed[:3], sorted(changed[3])))  # type: ignore[arg-type]  # a tuple of four kinds
    assert sign(secret, *one) != sign(secret, *changed)  # type: ignore[arg-type]  # as above


@given(secrets, secrets)
def test_another_key_breaks_it(one: str, other: str) -> None:
    """The signature is the key's."""
    assume(one != other)
    signature = sign(one, DOWNLOAD, EXPIRES, "read")
    signed = Signed(DOWNLOAD, EXPIRES, Scope.READ, 1, signature)
    assert signed.is_by(one)
    assert not signed.is_by(other)


@given(st.integers(0, 42), st.characters(min_codepoint=33, max_codepoint=126))
def test_another_character_of_the_signature_breaks_it(place: int, character: str) -> None:
    """Also the last one, whose last bits base64 has no use for."""
    signature = sign(SECRET, DOWNLOAD, EXPIRES, "read")
    assert len(signature) == 43
    tampered = signature[:place] + character + signature[place + 1 :]
    signed = Signed(DOWNLOAD, EXPIRES, Scope.READ, 1, tampered)
    assert signed.is_by(SECRET) is (tampered == signature)


RIGHT = {"expires": "5", "scope": "read", "key": "1", "signature": "abc"}


@pytest.mark.parametrize(
    "query",
    [
        *({name: text for name, text in RIGHT.items() if name != left_out} for left_out in RIGHT),
        *(
            {**RIGHT, "expires": text}
            for text in ("", "05", "+5", " 5", "5.0", "-5", "\u0665", "9" * 30)
        ),
        *({**RIGHT, "key": text} for text in ("", "01", "x", "9" * 30)),
        *({**RIGHT, "scope": text} for text in ("", "Read", "owner", "read\n")),
        {**RIGHT, "signature": "\u00e9"},
        {**RIGHT, "width": "1&2"},
        {**RIGHT, "width": "1\n"},
        {**RIGHT, "wi=dth": "1"},
        {**RIGHT, "": "1"},
        {**RIGHT, "width": "\u00e9"},
    ],
)
def test_what_is_not_of_the_form_is_refused(query: dict[str, str]) -> None:
    """A number written in another way, a parameter that could be read in two, or none at all."""
    with pytest.raises(Forbidden):
        read(DOWNLOAD, MultiDict(query))


@pytest.mark.parametrize("name", sorted(OURS))
def test_nothing_of_ours_is_said_twice(name: str) -> None:
    """Or one would be checked, and the other believed."""
    with pytest.raises(Forbidden):
        read(DOWNLOAD, MultiDict([*RIGHT.items(), (name, RIGHT[name])]))


@pytest.mark.parametrize("path", ["/a\n5\nread\n", "/a\0", "/a\udc80"])
def test_a_path_is_one_line(path: str) -> None:
    """Or it could hold what seems to follow it."""
    with pytest.raises(Forbidden):
        read(path, MultiDict(RIGHT))


@pytest.mark.parametrize("name", sorted(OURS))
def test_ours_are_no_parameters(name: str) -> None:
    """Nobody can have a second expiry signed."""
    assert not are_signable([(name, "1")])
    assert are_signable([(f"{name}s", "1")])
