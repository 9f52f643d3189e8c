"""The promise of a blob store, and the name of a blob inside one."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import NamedTuple, Protocol

from archiver.errors import StoreUnavailable

KIB = 1024
MIB = 1024 * KIB
CHUNK = 256 * KIB  # what a read holds at a time

_KEY = re.compile(r"([0-9a-f]{2})/([0-9a-f]{2})/(\1\2[0-9a-f]{60})")


def key_of(sha256: bytes) -> str:
    """`ab/cd/abcd…`: the blob's name in a folder or bucket, spread over 65,536 folders."""
    name = sha256.hex()
    return f"{name[:2]}/{name[2:4]}/{name}"


def digest_of(key: str) -> bytes | None:
    """The SHA-256 behind a key; None for a name that is none of ours."""
    match = _KEY.fullmatch(key)
    return bytes.fromhex(match[3]) if match else None


class Stored(NamedTuple):
    """A blob as its store lists it: length in bytes, and when it came (None: nobody knows)."""

    sha256: bytes
    size: int
    modified_at: datetime | None = None


class ObjectLocked(StoreUnavailable):
    """The store is there, but must not let go of these very bytes; the message says why."""


class Leftovers(NamedTuple):
    """What a crash left half written more than a day ago, and its bytes where they are known."""

    number: int = 0
    size: int = 0


class Body(Protocol):
    """Bytes that are complete and hashed, in memory or on disk (`SpooledBody` is one)."""

    @property
    def sha256(self) -> bytes:
        """The digest of all the bytes."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def data(self) -> bytes | None:
        """All the bytes, when they are in memory."""

    def read_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer only at the end. Blocks; any thread may call it."""

    def fileno(self) -> int:
        """The open file, when on disk; OSError when in memory."""


class BlobStore(Protocol):
    """Keeps blobs under their SHA-256.

    Every call may raise `StoreUnavailable` (retryable): the store is away, full, or refuses us;
    the message says what the operator can do. Nothing is lost by it, and any call may be repeated.
    Any number of processes may use one store at once. A store does not arbitrate between a `put`
    and a `delete` of the same blob: the caller does, in PostgreSQL.
    """

    async def open(self) -> None:
        """Once, before the other calls: makes what may be made, clears what a crash left."""

    async def put(self, body: Body) -> None:
        """After return the blob is durable; after an error it is complete or not there at all.

        Idempotent, also at the same time. A blob of the right size that is there already may be
        left as it is: to repair one, delete it first.
        """

    async def replace(self, body: Body) -> None:
        """The same, also in the place of a blob that is there, which readers see until then."""

    def read(
        self, sha256: bytes, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` (>= 0) up to `stop`, or the end, in chunks of at most 1 MiB.

        A range outside the blob gives what lies inside, maybe nothing. Raises `BlobMissing`
        (permanent). Close the iterator (`contextlib.aclosing`) when leaving early.
        """

    async def size(self, sha256: bytes) -> int | None:
        """Length in bytes; None when the blob is not here."""

    async def delete(self, sha256: bytes) -> None:
        """After return the blob is gone. Deleting what is not there is fine.

        Raises ObjectLocked, besides, where a lock keeps it.
        """

    def pages(self) -> AsyncGenerator[list[Stored], None]:
        """Every blob here in the order of its SHA-256, a page at a time, in bounded memory.

        Blobs that come or go meanwhile may or may not be among them.
        """

    async def leftovers(self, *, remove: bool) -> Leftovers:
        """What a crash left half written more than a day ago; with `remove` it is gone then."""

    async def check(self) -> None:
        """Return when the store answers us; the sentence of the error is for the operator."""

    async def close(self) -> None:
        """Let go of threads and connections that are the store's own."""
