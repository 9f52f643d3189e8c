"""A body as a file, and a file as something that outlives a power cut."""

from __future__ import annotations

import os
from pathlib import Path

from archiver.store.base import MIB, Body
from archiver.store.spool import write_all

FILE_MODE = 0o640


def write_file(body: Body, path: Path) -> None:
    """`path` becomes a file with the body's bytes that a power cut cannot take back."""
    if not _link(body, path):
        _copy(body, path)
    with path.open("rb+", buffering=0) as file:
        os.fchmod(file.fileno(), FILE_MODE)
        os.fsync(file.fileno())


def _link(body: Body, path: Path) -> bool:
    """Give the spool's unnamed file a name; False where that cannot be done.

    It cannot for a body in memory or on another file system, nor without O_TMPFILE.
    """
    try:
        fd = body.fileno()
        # The descriptor means nothing beside an absolute path, but without it Python calls
        # link(2), which links the symbolic link in /proc instead of the file.
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)
    except OSError:
        return False
    return True


def _copy(body: Body, path: Path) -> None:
    with path.open("xb", buffering=0) as file:
        for offset in range(0, body.size, MIB):
            write_all(file.fileno(), body.read_at(offset, MIB))
