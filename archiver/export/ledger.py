"""What this run has written so far, on disk, so that no selection is too large for memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE seen (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE file (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL, size INTEGER NOT NULL)
    WITHOUT ROWID;
"""
SEE = "INSERT OR IGNORE INTO seen (key) VALUES (?)"
SEEN = "SELECT 1 FROM seen WHERE key = ?"
ADD = "INSERT OR REPLACE INTO file (name, sha256, size) VALUES (?, ?, ?)"
HAS = "SELECT 1 FROM file WHERE name = ?"
FILES = "SELECT name, sha256 FROM file ORDER BY name"
TOTAL = "SELECT coalesce(sum(size), 0), count(*) FROM file"


class Ledger:
    """A database in a file of its own, worth nothing once the run has ended. All calls block."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        # Any thread, but one after the other.
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.executescript(TABLES)

    def fresh(self, keys: Iterable[str]) -> list[str]:
        """Those that were not named before, in their order; from now on they are not fresh."""
        return [key for key in keys if self._database.execute(SEE, (key,)).rowcount == 1]

    def seen(self, keys: Iterable[str]) -> set[str]:
        """Those that were named before."""
        return {key for key in keys if self._database.execute(SEEN, (key,)).fetchone()}

    def add(self, name: str, sha256: str, size: int) -> None:
        """A file of the payload is written: its SHA-256 in hex, its size in bytes."""
        self._database.execute(ADD, (name, sha256, size))

    def has(self, name: str) -> bool:
        """Whether this file is of this run."""
        return self._database.execute(HAS, (name,)).fetchone() is not None

    def files(self) -> Iterator[tuple[str, str]]:
        """The name and SHA-256 of every file, sorted by name."""
        yield from self._database.execute(FILES)

    def total(self) -> tuple[int, int]:
        """Bytes and number of all files."""
        size, count = self._database.execute(TOTAL).fetchone()
        return size, count

    def close(self) -> None:
        """Closes the file."""
        self._database.close()
