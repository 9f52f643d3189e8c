"""Files as secrets, and as something that outlives a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def private(path: str, flags: int) -> int:
    """To be the `opener` of `open`: a new file is for its owner alone, and no link is followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable, as fsync(2) of a file does not. Blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
