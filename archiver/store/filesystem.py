"""Objects as files, `ab/cd/<sha256>`, in a folder that any number of processes may share."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TypeVar

from archiver.disk import sync_folder
from archiver.errors import BlobMissing, StoreUnavailable
from archiver.store.base import CHUNK, Body, Leftovers, Stored, digest_of, key_of
from archiver.store.files import write_file
from archiver.store.spool import in_thread

FOLDER_MODE = 0o750
STALE_SECONDS = 24 * 3600

T = TypeVar("T")


class FilesystemStore:
    """A `BlobStore` in a folder. A file there is complete: it was synced before it got its name.

    Only `open` makes the folder. When it is gone later, its disk is, and that is an outage; it
    must not look as if every blob were missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path / "tmp"
        # Folders that are known to outlive a power cut, 65,536 at most.
        self._lasting: set[Path] = set()

    def path_of(self, sha256: bytes) -> Path:
        """Where the blob's file is, or would be."""
        return self._path / key_of(sha256)

    async def open(self) -> None:
        """Make the folder, and remove what a crash left in `tmp` more than a day ago."""
        await self._run(self._prepare)

    async def put(self, body: Body) -> None:
        """See `BlobStore.put`. A body spooled on the same file system is linked, not copied."""
        with self._explained():
            await in_thread(None, self._put, body)

    async def replace(self, body: Body) -> None:
        """See `BlobStore.replace`."""
        with self._explained():
            await in_thread(None, self._replace, body)

    async def read(
        self, sha256: bytes, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See `BlobStore.read`."""
        with await self.open_file(sha256) as file:
            while stop is None or start < stop:
                length = CHUNK if stop is None else min(CHUNK, stop - start)
                chunk = await self._run(os.pread, file.fileno(), length, start)
                if not chunk:
                    return
                yield chunk
                start += len(chunk)

    async def open_file(self, sha256: bytes) -> IO[bytes]:
        """The blob as an open file, the caller's to close. Raises as `read` does."""
        return await self._run(self._open, sha256)

    async def size(self, sha256: bytes) -> int | None:
        """See `BlobStore.size`."""
        return await self._run(self._size, sha256)

    async def delete(self, sha256: bytes) -> None:
        """See `BlobStore.delete`. The folders stay: another process may be about to use them."""
        await self._run(self._delete, sha256)

    async def pages(self) -> AsyncGenerator[list[Stored], None]:
        """See `BlobStore.pages`. A page is what one folder has."""
        await self._run(self._require_folder)
        for outer in sorted(await self._run(_folders, self._path)):
            for inner in sorted(await self._run(_folders, self._path / outer)):
                if page := await self._run(_stored, self._path / outer / inner):
                    yield page

    async def leftovers(self, *, remove: bool) -> Leftovers:
        """See `BlobStore.leftovers`."""
        return await self._run(self._leftovers, remove)

    async def check(self) -> None:
        """Try to write, since a disk may be full or turned read-only."""
        await self._run(self._try_to_write)

    async def close(self) -> None:
        """Nothing to let go of."""

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        """Who gives up on this need not wait for a disk that hangs."""
        with self._explained():
            return await asyncio.to_thread(work, *args)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(
                f"cannot use the object folder {self._path}: {error.strerror}; see that its disk"
                " is mounted, has room and is ours to write (storage.filesystem.path)"
            ) from error

    def _prepare(self) -> None:
        self._path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self._temporary.mkdir(mode=FOLDER_MODE, exist_ok=True)
        self._leftovers(remove=True)

    def _leftovers(self, remove: bool) -> Leftovers:
        oldest = time.time() - STALE_SECONDS
        count = size = 0
        for entry in os.scandir(self._temporary):
            with contextlib.suppress(FileNotFoundError):  # another process tidies as well
                found = entry.stat()
                if found.st_mtime < oldest:
                    if remove:
                        Path(entry).unlink()
                    count, size = count + 1, size + found.st_size
        return Leftovers(count, size)

    def _put(self, body: Body) -> None:
        target = self.path_of(body.sha256)
        if self._size(body.sha256) != body.size:
            self._place(body, target)
        self._make_last(target)

    def _replace(self, body: Body) -> None:
        target = self.path_of(body.sha256)
        self._place(body, target)
        self._make_last(target)

    def _make_last(self, target: Path) -> None:
        # Also for a file that was there: who put it may not have come to this line yet.
        sync_folder(target.parent)
        for folder in (target.parent, target.parent.parent):
            if folder in self._lasting:
                return
            sync_folder(folder.parent)
            self._lasting.add(folder)

    def _place(self, body: Body, target: Path) -> None:
        temporary = self._temporary / secrets.token_hex(16)
        try:
            write_file(body, temporary)
            try:
                temporary.replace(target)
            except FileNotFoundError:
                self._make_folders(target.parent)
                temporary.replace(target)
        finally:
            # Still there after an error, and after replacing another link to the same file: then
            # rename(2) does nothing.
            temporary.unlink(missing_ok=True)

    def _make_folders(self, folder: Path) -> None:
        for one in (folder.parent, folder):
            if not one.is_dir():
                self._lasting.discard(one)
                one.mkdir(mode=FOLDER_MODE, exist_ok=True)

    def _open(self, sha256: bytes) -> IO[bytes]:
        try:
            return self.path_of(sha256).open("rb", buffering=0)
        except FileNotFoundError:
            self._require_folder()
            raise BlobMissing(f"blob {sha256.hex()} is not in {self._path}") from None

    def _size(self, sha256: bytes) -> int | None:
        try:
            return self.path_of(sha256).stat().st_size
        except FileNotFoundError:
            self._require_folder()
            return None

    def _delete(self, sha256: bytes) -> None:
        target = self.path_of(sha256)
        try:
            target.unlink()
        except FileNotFoundError:
            self._require_folder()
        else:
            sync_folder(target.parent)

    def _try_to_write(self) -> None:
        probe = self._temporary / secrets.token_hex(16)
        try:
            probe.write_bytes(b"\0")
        finally:
            probe.unlink(missing_ok=True)

    def _require_folder(self) -> None:
        self._temporary.stat()


def _folders(path: Path) -> list[str]:
    """The names of a level of the fan-out; `tmp` and what others put there is left out."""
    return [entry.name for entry in os.scandir(path) if len(entry.name) == 2 and entry.is_dir()]


def _stored(folder: Path) -> list[Stored]:
    """What a folder of the innermost level has, in order."""
    found = []
    above = f"{folder.parent.name}/{folder.name}"
    with os.scandir(folder) as entries:
        for entry in entries:
            if digest := digest_of(f"{above}/{entry.name}"):
                with contextlib.suppress(FileNotFoundError):  # deleted just now
                    told = entry.stat()
                    at = datetime.fromtimestamp(told.st_mtime, UTC)
                    found.append(Stored(digest, told.st_size, at))
    return sorted(found)
