"""A bag as one file: ZIP64, not compressed, because media is so already."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from archiver.disk import private, sync_folder


def zip_bag(folder: Path, target: Path) -> None:
    """Writes the bag in `folder` to `target`, which appears whole, and removes the folder. Blocks.

    Killed, it leaves the folder, and the same once more begins anew. Only its owner may read what
    it writes. Raises OSError. Its files lie in a folder named after the file, as RFC 8493 wants
    it.
    """
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    with open(part, "xb", opener=private) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for parent, folders, names in os.walk(folder):
                folders.sort()
                for name in sorted(names):
                    path = Path(parent, name)
                    archive.write(path, f"{target.stem}/{path.relative_to(folder).as_posix()}")
        file.flush()
        # Of the two copies the other goes next, so this one has to be on the disk.
        os.fsync(file.fileno())
    part.replace(target)
    sync_folder(target.absolute().parent)
    shutil.rmtree(folder)
