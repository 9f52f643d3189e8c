"""The promise of a scanner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import NamedTuple, Protocol

from archiver.errors import ArchiverError

LONGEST = 200  # characters of what a scanner says


class Outcome(StrEnum):
    """What a scanner has found. What nobody could look at is never infected."""

    CLEAN = "clean"
    INFECTED = "infected"
    UNSCANNED = "unscanned"


class Verdict(NamedTuple):
    """`reason`: the signature's name, or why the scanner will not look at these bytes at all."""

    outcome: Outcome
    reason: str | None = None


class ScannerAway(ArchiverError):
    """There is no scanner to be had; the message says what to do. It is nobody's fault."""


class ScanFailed(ArchiverError):
    """The scanner came to no end with these bytes."""


class Scanner(Protocol):
    """Looks at bytes, any number of them at once."""

    async def scan(self, chunks: AsyncIterator[bytes]) -> Verdict:
        """What is found in all of the bytes, which may be read in part only.

        Raises ScannerAway, ScanFailed, and what reading the chunks raises.
        """

    async def version(self) -> str:
        """What it is and what it knows, in a line. Raises ScannerAway."""


def told(text: bytes) -> str:
    """What a scanner said, as a line that may be kept and shown."""
    words = text.decode("utf-8", "replace").strip("\0\r\n ")
    shown = "".join(c if c.isprintable() else "\ufffd" for c in words)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"
