"""The words by which media is found: what was posted and what is asked for part the same way."""

from __future__ import annotations

import re
import unicodedata

# Punctuation parts words, the underscore too, lest IMG_1.holiday.jpg be one.
_WORD = re.compile(r"[^\W_]+")
FILENAME_MAX, CAPTION_MAX = 1_000, 2_000  # characters of each that count
_WORD_MAX = 64  # characters: PostgreSQL refuses lexemes of 2 KiB, and no sender may stop an insert


def lexemes(text: str) -> set[str]:
    """Each word once, without case, and however its letters were composed.

    File names made on a Mac have their accents apart, which NFKC puts together
    (https://unicode.org/reports/tr15/).
    """
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return {word[:_WORD_MAX] for word in _WORD.findall(plain.casefold())}


def said_by(filename: str | None, caption: str | None) -> str | None:
    """What a reference is found by, parted by spaces; nobody looks for the end of a long text."""
    text = f"{(filename or '')[:FILENAME_MAX]} {(caption or '')[:CAPTION_MAX]}"
    return " ".join(lexemes(text)) or None


def query(text: str) -> str | None:
    """A tsquery for each word of a text; None where it holds none.

    From three letters on, or one of a script that needs fewer, also for words that begin so.
    """
    return (
        " & ".join(
            f"'{word}':*" if len(word.encode()) > 2 else f"'{word}'"
            for word in sorted(lexemes(text))
        )
        or None
    )
