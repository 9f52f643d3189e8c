"""Command lines as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.control.line import pointed, split
from archiver.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("!archive  hold x", ["!archive", "hold", "x"]),
        ("a\u00a0b\u202fc\nd", ["a", "b", "c", "d"]),
        ("""a "b c" 'd e'""", ["a", "b c", "d e"]),
        ("a \u201cb c\u201d \u201ed e\u201c \u00abf g\u00bb", ["a", "b c", "d e", "f g"]),
        ("don't say 'I don't'", ["don't", "say", "I don't"]),
        ('--since="2 d" x', ["--since=2 d", "x"]),
        ("\u2014all \u2013 3\u20134", ["--all", "\u2013", "3\u20134"]),
        ('a ""', ["a", ""]),
        ("", []),
    ],
)
def test_words_are_split_as_people_write_them(line: str, words: list[str]) -> None:
    """Spaces of every kind part words, quotes of every kind keep them together."""
    assert [word.text for word in split(line)] == words


@pytest.mark.parametrize("line", ['a "b', "a \u201cb c", "a 'b", "a\0b"])
def test_what_cannot_be_split_is_told_in_a_sentence(line: str) -> None:
    """A quote that stays open, and a NUL, are mistakes."""
    with pytest.raises(ConfigError):
        split(line)


def test_a_caret_points_at_the_word_that_is_wrong() -> None:
    """Under its first letter, as wide as the word."""
    line = "!archive hold nonsense spam"
    shown = pointed(line, split(line), "Invalid value for 'TARGET': 'nonsense' is not a media")
    assert shown == f"{line}\n              ^^^^^^^^"


def test_a_caret_points_into_a_long_line() -> None:
    """What is far to the left is left out."""
    line = f"!archive hold {'a' * 200} --nonsense"
    first, second = pointed(line, split(line), "No such option: --nonsense").split("\n")
    assert len(first) < 100
    assert first[second.index("^") :].startswith("--nonsense")


@given(st.text(), st.text())
def test_every_line_is_split_or_refused(line: str, message: str) -> None:
    """No text raises anything else, and a line can always be shown."""
    try:
        words = split(line)
    except ConfigError:
        words = []
    for word in words:
        assert line[word.start : word.end].strip()
    pointed(line, words, message)
