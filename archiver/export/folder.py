"""A bag as it grows in a folder (RFC 8493): files appear whole, and the manifest is written last.

A bag without its manifest is not finished; the same export once more takes what is there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from archiver.errors import BlobMissing, OperationError
from archiver.export import check
from archiver.export.ledger import Ledger
from archiver.store.spool import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SELECTION = "selection.json"
PART = ".part"  # what is not whole yet, and what this run knows

T = TypeVar("T")


class Lines:
    """A text file of the payload that grows until it is closed. All calls block."""

    def __init__(self, folder: BagFolder, name: str) -> None:
        self._folder, self._name = folder, name
        self._path = folder.part / name.replace("/", "-")
        self._file = self._path.open("wb")
        folder.growing.add(self._file)
        self._digest, self._size = hashlib.sha256(), 0

    def write(self, lines: Iterable[bytes]) -> None:
        """Adds lines, each with its end."""
        for line in lines:
            self._file.write(line)
            self._digest.update(line)
            self._size += len(line)

    def close(self) -> None:
        """The file is whole now, and in its place."""
        self._file.close()
        self._folder.growing.discard(self._file)
        self._folder.place(self._path, self._name)
        self._folder.ledger.add(self._name, self._digest.hexdigest(), self._size)


class BagFolder:
    """The folder and the ledger of one run. `work` runs what blocks, with a sentence for what a
    disk refuses."""

    def __init__(self, path: Path, selection: bytes) -> None:
        """Blocks. Raises OperationError where something else is in the folder."""
        self._path = path
        self.part = path / PART
        self.growing: set[IO[bytes]] = set()
        try:
            self._prepare(selection)
            self.ledger = Ledger(self.part / "ledger")
        except (OSError, sqlite3.Error) as error:
            raise self._refused(error) from error

    async def work(self, work: Callable[..., T], *args: object) -> T:
        """Runs blocking work on the folder in a thread. Raises OperationError."""
        try:
            return await in_thread(None, work, *args)
        except (OSError, sqlite3.Error) as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Lets go of what is open, finished or not."""
        for file in self.growing:
            with suppress(OSError):  # a full disk, which is told already
                file.close()
        self.ledger.close()

    async def put(
        self, name: str, sha256: bytes, size: int, read: Callable[[], AsyncGenerator[bytes, None]]
    ) -> bool:
        """Writes a blob, unless it is there as it should be. False: the store has other bytes.

        Raises BlobMissing, StoreUnavailable and OperationError.
        """
        if not await self.work(self._is_there, name, sha256, size):
            part = self.part / "blob"
            if await self._write(part, read()) != sha256:
                return False
            await self.work(self.place, part, name)
        self.ledger.add(name, sha256.hex(), size)
        return True

    def place(self, part: Path, name: str) -> None:
        """Gives a file that is whole its name. Blocks."""
        target = self._path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)

    def finish(self, info: Iterable[tuple[str, str]]) -> tuple[int, int]:
        """Writes all that makes it a bag; returns the payload's bytes and files. Blocks."""
        self._remove_strays()
        size, count = self.ledger.total()
        told = [*info, ("Payload-Oxum", f"{size}.{count}")]
        self._tag("bagit.txt", check.DECLARATION.encode())
        self._tag("bag-info.txt", "".join(map(_labelled, told)).encode())
        self._tag("check.py", Path(check.__file__).read_bytes())
        part = self.part / "manifest"
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{digest}  {name}\n" for name, digest in self.ledger.files())
        tags = [
            f"{_hash(path)}  {name}\n"
            for name, path in (
                *((tag, self._path / tag) for tag in ("bag-info.txt", "bagit.txt", "check.py")),
                (check.MANIFEST, part),
                (SELECTION, self._path / SELECTION),
            )
        ]
        self._tag(check.TAG_MANIFEST, "".join(tags).encode())
        self.place(part, check.MANIFEST)
        self.close()
        shutil.rmtree(self.part)
        return size, count

    def _prepare(self, selection: bytes) -> None:
        # It has every word in it that an administrator may see.
        self._path.mkdir(0o700, parents=True, exist_ok=True)
        ours = self._path / SELECTION
        if not ours.exists():
            if set(os.listdir(self._path)) - {PART}:  # noqa: PTH208  # names are enough
                raise OperationError(f"{self._path} is not empty: name a folder that is new")
        elif ours.read_bytes() != selection:
            raise OperationError(
                f"{self._path} has an export of something else: its {SELECTION} says of what."
                " Ask for the same again, with the times written out, or name another folder"
            )
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir()
        for manifest in (check.MANIFEST, check.TAG_MANIFEST):
            (self._path / manifest).unlink(missing_ok=True)
        self._tag(SELECTION, selection)

    def _tag(self, name: str, data: bytes) -> None:
        part = self.part / "tag"
        part.write_bytes(data)
        self.place(part, name)

    def _is_there(self, name: str, sha256: bytes, size: int) -> bool:
        path = self._path / name
        try:
            return path.stat().st_size == size and _hash(path) == sha256.hex()
        except FileNotFoundError:
            return False

    async def _write(self, part: Path, chunks: AsyncGenerator[bytes, None]) -> bytes | None:
        """The SHA-256 of what the store has; None where it has nothing."""
        digest = hashlib.sha256()
        with await self.work(part.open, "wb") as file:
            try:
                async for chunk in _closing(chunks):
                    await self.work(_take, file.write, digest.update, chunk)
            except BlobMissing:
                return None
            await self.work(file.flush)
        return digest.digest()

    def _remove_strays(self) -> None:
        """What an earlier run wrote and this one did not: deleted since, most likely."""
        for folder, _, files in os.walk(self._path / "data", topdown=False):
            for file in files:
                path = Path(folder, file)
                if not self.ledger.has(path.relative_to(self._path).as_posix()):
                    path.unlink()
            with suppress(OSError):  # which it does where something is in it
                Path(folder).rmdir()

    def _refused(self, error: OSError | sqlite3.Error) -> OperationError:
        why = error.strerror if isinstance(error, OSError) else error
        return OperationError(
            f"cannot write to {self._path}: {why}; see that its disk has room and is"
            " ours to write, and export once more: what is there is not written again"
        )


def _labelled(told: tuple[str, str]) -> str:
    """A line of bag-info.txt, which is one whatever is in it."""
    key, said = told
    return f"{key}: {' '.join(said.split())}\n"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return check.hash_of(file)


def _take(
    write: Callable[[bytes], object], update: Callable[[bytes], object], chunk: bytes
) -> None:
    write(chunk)
    update(chunk)


async def _closing(chunks: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
