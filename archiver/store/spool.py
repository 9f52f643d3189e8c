"""Where a body waits while it is hashed: small ones in memory, large ones in an unnamed file."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from archiver.errors import StoreUnavailable
from archiver.store.base import KIB, MIB

BATCH = MIB  # what is gathered for one trip to the disk
SMALL_CHUNK = 16 * KIB  # is joined with its neighbour: an object for each byte would take forty
HASHED_ON_LOOP = 256 * KIB  # a fraction of a millisecond; a thread would cost more in all

T = TypeVar("T")


async def in_thread(executor: Executor | None, work: Callable[..., T], *args: object) -> T:
    """Run blocking work on a body in a thread (None: the loop's own pool).

    A cancelled caller still waits for the thread, so that the body's file is not closed under it:
    its number could by then be another file's.
    """
    future = asyncio.get_running_loop().run_in_executor(executor, work, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # looked at, or asyncio would report it as lost
        raise


def write_all(fd: int, data: bytes) -> None:
    """Write every byte: one `write` may take only some of them."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


class SpooledBody:
    """A body on its way in: `write` it, `finish` it, then it satisfies `store.base.Body`.

    `sha256` and `data` have their values after `finish`; `data` stays None when on disk.
    """

    def __init__(self, directory: Path, memory_limit: int, expected_size: int | None) -> None:
        self.size = 0
        self.sha256 = b""
        self.data: bytes | None = None
        self._directory = directory
        self._memory_limit = memory_limit
        large = expected_size is not None and expected_size > memory_limit
        self._hold = BATCH if large else memory_limit
        # As they came: one growing buffer would be copied again and again on the loop.
        self._batch: list[bytes] = []
        self._hash = hashlib.sha256()
        self._fd: int | None = None
        self._on_disk = 0

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes. Raises StoreUnavailable when the spool folder cannot hold them."""
        self.size += len(chunk)
        if self._batch and len(self._batch[-1]) + len(chunk) <= SMALL_CHUNK:
            self._batch[-1] += chunk
        else:
            self._batch.append(chunk)
        if self.size - self._on_disk > self._hold:
            await self._spill()

    async def finish(self) -> bytes:
        """The SHA-256 of all that was written. Nothing may be written afterwards."""
        if self._fd is not None or self.size > self._memory_limit:
            await self._spill()
        else:
            self.data = b"".join(self._batch)
            self._batch.clear()
            if self.size <= HASHED_ON_LOOP:
                self._hash.update(self.data)
            else:
                await in_thread(None, self._hash.update, self.data)
        self.sha256 = self._hash.digest()
        return self.sha256

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` of the finished body, fewer only at its end."""
        if self.data is not None:
            return self.data[offset : offset + length]
        # One pread gives at most 2 GiB, and no caller asks for more.
        return os.pread(self.fileno(), length, offset)

    async def read_so_far(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` of a body that still grows: nothing where they have
        not come, are just on their way to the disk, or when the body is closed."""
        if self.data is not None:
            return self.data[offset : offset + length]
        if offset >= self._on_disk:
            return _slice(self._batch, offset - self._on_disk, length)
        if self._fd is None:
            return b""
        # A number of our own, because the body may be closed meanwhile.
        length = min(length, self._on_disk - offset)
        return await in_thread(None, _read_and_close, os.dup(self._fd), offset, length)

    def fileno(self) -> int:
        """The open file. OSError when the body is in memory."""
        if self._fd is None:
            raise io.UnsupportedOperation("this body is not in a file")
        return self._fd

    async def close(self) -> None:
        """Give back the disk space. In a thread: freeing a large file takes a while."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            await in_thread(None, os.close, fd)

    async def _spill(self) -> None:
        batch, self._batch = self._batch, []
        self._hold = BATCH
        try:
            written = await in_thread(None, self._write_and_hash, batch)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot write to the spool folder {self._directory}: {error.strerror};"
                " make room there, or name another in storage.spool"
            ) from error
        self._on_disk += written

    def _write_and_hash(self, batch: list[bytes]) -> int:
        if self._fd is None:
            self._fd = _unnamed_file(self._directory)
        data = b"".join(batch)
        write_all(self._fd, data)
        self._hash.update(data)
        return len(data)


def _slice(chunks: list[bytes], start: int, length: int) -> bytes:
    """The bytes from `start` of what these chunks are together, of one of them alone."""
    for chunk in chunks:
        if start < len(chunk):
            return chunk[start : start + length]
        start -= len(chunk)
    return b""


def _read_and_close(fd: int, offset: int, length: int) -> bytes:
    try:
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


class Spool:
    """The folder for bodies over `memory_limit` bytes. No file in it ever has a name."""

    def __init__(self, directory: Path, memory_limit: int) -> None:
        self._directory = directory
        self._memory_limit = memory_limit

    @contextlib.asynccontextmanager
    async def body(self, expected_size: int | None = None) -> AsyncIterator[SpooledBody]:
        """A new body. One expected to be large does not gather in memory first."""
        body = SpooledBody(self._directory, self._memory_limit, expected_size)
        try:
            yield body
        finally:
            await body.close()


def _unnamed_file(directory: Path) -> int:
    """A file that is gone with its last descriptor, so a kill -9 leaves nothing behind.

    Not `tempfile.TemporaryFile`: it opens with O_EXCL, and such a file can never be linked into
    the object folder (open(2), O_TMPFILE).
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system without O_TMPFILE, such as NFS
        fd, name = tempfile.mkstemp(dir=directory)
        Path(name).unlink()
        return fd
