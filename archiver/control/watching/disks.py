"""How much room is left on the disks that the archive writes to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

GIB = 1024**3
# The smaller of the two: a tenth of a large disk is plenty, and so are 2 GiB of a small one.
LOW_SHARE, LOW_BYTES = 0.10, 2 * GIB
# There is room again only well above that, lest every file that comes and goes be told.
ROOMY_SHARE, ROOMY_BYTES = 0.15, 3 * GIB


class Space(NamedTuple):
    """A file system, by the paths of ours on it: bytes that are free for us, and in all."""

    paths: tuple[Path, ...]
    number: int
    free: int
    size: int

    @property
    def cause(self) -> str:
        """Its name. Another machine's disk at the same path is another one."""
        return f"disk:{self.paths[0]}:{self.number:x}"

    @property
    def is_low(self) -> bool | None:
        """True when it is nearly full, False when there is room again; None in between."""
        if self.free < min(LOW_SHARE * self.size, LOW_BYTES):
            return True
        return False if self.free > min(ROOMY_SHARE * self.size, ROOMY_BYTES) else None


def spaces(paths: Iterable[Path]) -> list[Space]:
    """The file systems under the paths, each once. Blocks. What is not there is left out."""
    found: dict[int, Space] = {}
    for path in paths:
        with suppress(OSError):  # a folder that is gone is told by the store itself
            device, stat = path.stat().st_dev, os.statvfs(path)
            before = found[device].paths if device in found else ()
            free, size = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
            found[device] = Space((*before, path), stat.f_fsid, free, size)
    return list(found.values())
