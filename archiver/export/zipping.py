"""A bag as one file: ZIP64, not compressed, because media is so already."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path


def zip_bag(folder: Path, target: Path) -> None:
    """Writes the bag in `folder` to `target`, which appears whole, and removes the folder. Blocks.

    Raises OSError. Its files lie in a folder named after the file, as RFC 8493 wants it.
    """
    part = target.with_name(f"{target.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for file in sorted(files):
                path = Path(parent, file)
                archive.write(path, f"{target.stem}/{path.relative_to(folder).as_posix()}")
    part.replace(target)
    shutil.rmtree(folder)
