"""Verifies a BagIt bag (RFC 8493), a folder or a ZIP of one, with nothing but its files.

It needs Python 3.8 or later and nothing else, and lies in every bag: `python3 check.py` there
verifies that bag, `python3 check.py PATH` another one. Exit status 0: whole; 1: not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO, Iterator, Union  # noqa: UP035  # older Pythons have it there

PIECE = 1024 * 1024
LINE = 16 * 1024
TEXT = 1024 * 1024  # bag-info.txt has a thousandth of that
# A ZIP in which a file is so many times what it takes there, beyond the first bytes, is a trap.
EXPANDS, EXPANDS_BEYOND = 200, 64 * 1024 * 1024
MANIFEST = "manifest-sha256.txt"
TAG_MANIFEST = "tagmanifest-sha256.txt"
DECLARATION = "BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
# What reading a file may raise that is not what it should be.
UNREADABLE = (
    OSError, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class BadBag(Exception):
    """It is no bag, or not all of one; the message is a sentence."""


class FolderBag:
    """A bag as a folder. Whatever is no plain file is not opened."""

    twice = 0

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> Iterator[str]:
        """The name of every file, with slashes."""
        for folder, folders, files in os.walk(self._path, onerror=_fail):
            links = [name for name in folders if Path(folder, name).is_symlink()]
            for name in files + links:
                yield Path(folder, name).relative_to(self._path).as_posix()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is no plain file of this name."""
        if not is_plain(name):
            return None
        path = self._path
        try:
            for part in name.split("/"):
                path = path / part
                if path.is_symlink():
                    return None
            status = path.stat()
        except (OSError, ValueError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, name: str) -> IO[bytes]:
        """The file, the caller's to close. Raises BadBag where it is none."""
        if self.size(name) is None:
            raise BadBag(f"{shown(name)} is not there.")
        return (self._path / name).open("rb")

    def close(self) -> None:
        """Nothing is open."""


class ZipBag:
    """A bag as a ZIP, in a folder of any name or at the top."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
            _refuse_traps(self._zip.infolist(), path.stat().st_size)
        except OSError:
            raise
        except UNREADABLE as error:
            raise BadBag(f"{path} is no whole ZIP file: {error}.") from error
        names = self._zip.namelist()
        tops = [name[:-9] for name in names if f"/{name}".endswith("/bagit.txt")]
        self._top = min(tops, key=len, default="")
        self.twice = len(names) - len(set(names))

    def names(self) -> Iterator[str]:
        """The name of every file, with slashes."""
        for name in self._zip.namelist():
            if not name.endswith("/"):
                inside = name.startswith(self._top)
                yield name[len(self._top) :] if inside else f"../{name}"

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none of this name."""
        try:
            info = self._zip.getinfo(self._top + name)
        except KeyError:
            return None
        # What Unix says of it: a link, or a device, becomes one where the ZIP is unpacked.
        kind = stat.S_IFMT(info.external_attr >> 16)
        return info.file_size if kind in {0, stat.S_IFREG} and is_plain(name) else None

    def open(self, name: str) -> IO[bytes]:
        """The file, the caller's to close. Raises BadBag where it is none."""
        if self.size(name) is None:
            raise BadBag(f"{shown(name)} is not there.")
        try:
            return self._zip.open(self._top + name)
        except UNREADABLE as error:
            raise BadBag(f"{shown(name)} cannot be read in the ZIP: {error}.") from error

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()


Bag = Union[FolderBag, ZipBag]  # noqa: UP007  # Python 3.8


def open_bag(path: Path) -> Bag:
    """The bag in a folder or a ZIP. Raises BadBag, and OSError."""
    if path.is_dir():
        return FolderBag(path)
    if not path.exists():
        raise BadBag(f"There is no {path}.")
    return ZipBag(path)


def is_plain(name: str) -> bool:
    """Whether a name leads to a file below the bag, on whatever system it is unpacked."""
    device = len(name) > 1 and name[1] == ":"
    parts = name.split("/")
    return not device and "\\" not in name and not {"", ".", ".."}.intersection(parts)


def faults(bag: Bag) -> Iterator[str]:
    """Everything that is wrong with a bag, each a sentence. Reads all of it."""
    try:
        yield from _declared(bag)
        manifest, tags = listed(bag, MANIFEST), listed(bag, TAG_MANIFEST)
        info = _text(bag, "bag-info.txt").splitlines()
    except BadBag as error:
        yield str(error)
        return
    if bag.twice:
        yield "The ZIP has several files of the same name."
    yield from _misplaced(manifest, tags)
    yield from _changed(bag, tags)
    yield from _changed(bag, manifest)
    for needed in ("bagit.txt", "bag-info.txt", MANIFEST):
        if needed not in tags:
            yield f"{TAG_MANIFEST} does not list {needed}."
    size = count = 0
    for name in bag.names():
        if name.startswith("data/"):
            size, count = size + (bag.size(name) or 0), count + 1
            if name not in manifest:
                yield f"{shown(name)} is there, but {MANIFEST} does not list it."
        elif name not in tags and name != TAG_MANIFEST:
            yield f"{shown(name)} is there, but {TAG_MANIFEST} does not list it."
    labels = [line.partition(":") for line in info]
    told = [said.strip() for label, _, said in labels if label.lower() == "payload-oxum"]
    if told != [f"{size}.{count}"]:
        yield f"There are {size} bytes in {count} files; Payload-Oxum says {shown(str(told))}."


def entries(bag: Bag, manifest: str) -> Iterator[tuple[str, str]]:
    """The name and SHA-256 in hex of every file that a manifest lists. Raises BadBag."""
    try:
        with bag.open(manifest) as file:
            for number, raw in enumerate(iter(lambda: file.readline(LINE), b""), 1):
                digest, _, name = raw.decode().rstrip("\r\n").partition(" ")
                name = _decoded(name.lstrip(" *"))
                if len(digest) != 64 or not name:
                    raise BadBag(f"Line {number} of {manifest} is none of a manifest.")
                yield name, digest.lower()
    except UnicodeDecodeError as error:
        raise BadBag(f"{manifest} is not UTF-8.") from error
    except UNREADABLE as error:
        raise BadBag(f"{manifest} cannot be read: {error}.") from error


def listed(bag: Bag, manifest: str) -> dict[str, str]:
    """All that a manifest lists, by name. Raises BadBag."""
    found: dict[str, str] = {}
    for name, digest in entries(bag, manifest):
        if name in found:
            raise BadBag(f"{manifest} lists {shown(name)} twice.")
        found[name] = digest
    return found


def hash_of(file: IO[bytes]) -> str:
    """The SHA-256 of all that is left in a file, in hex."""
    digest = hashlib.sha256()
    for piece in iter(lambda: file.read(PIECE), b""):
        digest.update(piece)
    return digest.hexdigest()


def shown(name: str) -> str:
    """A name from a bag that does a terminal no harm."""
    return name if name.isprintable() else ascii(name)


def _declared(bag: Bag) -> Iterator[str]:
    if bag.size(MANIFEST) is None:
        raise BadBag(
            f"There is no {MANIFEST}: this is no bag, or one that is not finished;"
            " the same export once more finishes it."
        )
    if _text(bag, "bagit.txt").replace("\r\n", "\n") != DECLARATION:
        yield "bagit.txt does not say that this is a bag of BagIt 1.0 in UTF-8."


def _misplaced(manifest: dict[str, str], tags: dict[str, str]) -> Iterator[str]:
    for listing, names, payload in ((MANIFEST, manifest, True), (TAG_MANIFEST, tags, False)):
        for name in names:
            if name.startswith("data/") != payload or not is_plain(name):
                yield f"{listing} lists {shown(name)}, which has no place in it."


def _changed(bag: Bag, manifest: dict[str, str]) -> Iterator[str]:
    for name, digest in manifest.items():
        if bag.size(name) is None:
            yield f"{shown(name)} is missing."
            continue
        try:
            with bag.open(name) as file:
                found = hash_of(file)
        except (BadBag, *UNREADABLE) as error:
            yield f"{shown(name)} cannot be read: {error}."
            continue
        if found != digest:
            yield f"{shown(name)} was changed: its SHA-256 is {found} and should be {digest}."


def _text(bag: Bag, name: str) -> str:
    try:
        with bag.open(name) as file:
            text = file.read(TEXT + 1)
            if len(text) > TEXT:
                raise BadBag(f"{name} is too long.")
            return text.decode()
    except UnicodeDecodeError as error:
        raise BadBag(f"{name} is not UTF-8.") from error
    except UNREADABLE as error:
        raise BadBag(f"{name} cannot be read: {error}.") from error


def _refuse_traps(infos: list[zipfile.ZipInfo], size: int) -> None:
    if sum(info.compress_size for info in infos) > size:
        raise BadBag("The files in the ZIP lie one upon the other: it is a trap.")
    for info in infos:
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise BadBag(
                f"{shown(info.filename)} in the ZIP is compressed in a way that not every Python"
                " reads: unpack the ZIP, and name the folder."
            )
        if info.file_size - EXPANDS_BEYOND > EXPANDS * info.compress_size:
            raise BadBag(
                f"{shown(info.filename)} in the ZIP would become {info.file_size} bytes, far more"
                " than it takes: unpack the ZIP where there is room, if you trust it, and name"
                " the folder."
            )


def _fail(error: OSError) -> None:
    raise error


def _decoded(name: str) -> str:
    for code, character in (("%0A", "\n"), ("%0D", "\r"), ("%25", "%")):
        name = name.replace(code, character).replace(code.lower(), character)
    return name


def report(path: Path) -> tuple[int, list[str]]:
    """How many files are right, and what is wrong. Raises OSError."""
    try:
        with contextlib.closing(open_bag(path)) as bag:
            found = list(faults(bag))
            return (0 if found else len(listed(bag, MANIFEST))), found
    except BadBag as error:
        return 0, [str(error)]


def main() -> int:
    """Verifies the bag that is named, or the one in which this file lies."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    try:
        count, found = report(path)
    except OSError as error:
        count, found = 0, [f"{path} cannot be read: {error.strerror or error}."]
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that does not know all letters
        sys.stdout.reconfigure(errors="backslashreplace")
    for fault in found:
        print(fault)  # noqa: T201  # a program of its own
    if not found:
        print(f"The bag is whole: {count} files are what {MANIFEST} says.")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
