"""The words of a command line as people write it on a phone, and where in it a mistake is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from archiver.control.reply import printable
from archiver.errors import ConfigError

# What a quote is closed by: phones put typographic ones in the place of what was typed.
_CLOSING = {
    '"': '"', "'": "'", "\u201c": "\u201d\u201c", "\u201d": "\u201d", "\u201e": "\u201c\u201d",
    "\u2018": "\u2019\u2018", "\u201a": "\u2018\u2019", "\u00ab": "\u00bb", "\u00bb": "\u00ab",
}  # fmt: skip
# And a long dash in the place of two hyphens.
_DASH = re.compile(r"[\u2013\u2014](?=[A-Za-z])")
_SHOWN = 60


class Word(NamedTuple):
    """A word without its quotes, and where it stands in the line."""

    text: str
    start: int
    end: int


def split(line: str) -> list[Word]:
    """The words of a line. A quote opens at the start of a word or behind `=`, and is closed
    before a space, so that an apostrophe is none. Raises ConfigError for one that is not closed.
    """
    if "\0" in line:
        raise ConfigError("there is a character in it that means nothing: type it anew")
    words: list[Word] = []
    at = 0
    while True:
        while at < len(line) and line[at].isspace():
            at += 1
        if at == len(line):
            return words
        word = _word(line, at)
        words.append(word)
        at = word.end


def pointed(line: str, words: Iterable[Word], message: str) -> str:
    """The line with a caret under the word that the message is about, if that can be told."""
    found = _offender(list(words), message)
    shown = "".join(" " if c.isspace() else c for c in printable(line, keep="\n\t"))
    if found is None:
        return _cut(shown, 0)
    begin = max(0, found.start - _SHOWN // 2)
    before = "\u2026" if begin else ""
    width = max(1, min(found.end - found.start, _SHOWN // 2))
    caret = " " * (found.start - begin + len(before)) + "^" * width
    return f"{before}{_cut(shown, begin)}\n{caret}"


def _word(line: str, start: int) -> Word:
    at, text = start, ""
    while at < len(line) and not line[at].isspace():
        if line[at] in _CLOSING and (at == start or line[at - 1] == "="):
            end = _closed(line, at)
            text += line[at + 1 : end]
            at = end + 1
        else:
            text += line[at]
            at += 1
    if _DASH.match(line, start):
        text = f"--{text[1:]}"
    return Word(text, start, at)


def _closed(line: str, at: int) -> int:
    closing = _CLOSING[line[at]]
    for end in range(at + 1, len(line)):
        if line[end] in closing and (end + 1 == len(line) or line[end + 1].isspace()):
            return end
    raise ConfigError(f"the quote {line[at]} is never closed: put a {closing[0]} where it ends")


def _offender(words: list[Word], message: str) -> Word | None:
    """click tells a value by its repr, options and superfluous words as they are."""
    for word in words:
        if repr(word.text) in message:
            return word
    told = set(re.split(r"[\s()',:]+", message.rstrip(".")))
    for word in words:
        name = word.text.partition("=")[0] if word.text.startswith("--") else word.text
        if name in told:
            return word
    return None


def _cut(line: str, begin: int) -> str:
    rest = line[begin:]
    return rest if len(rest) <= _SHOWN else f"{rest[:_SHOWN]}\u2026"
