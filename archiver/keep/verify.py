"""Hashes bytes anew, wherever they are, and tells which are not what their names say."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from enum import StrEnum
from typing import IO, TYPE_CHECKING, NamedTuple

from archiver import metrics
from archiver.catalogue import custody
from archiver.catalogue import verification as catalogue
from archiver.errors import BlobMissing, StoreUnavailable
from archiver.keep.quarantine import Who
from archiver.model import Blob, Mxc
from archiver.store.base import MIB
from archiver.store.spool import HASHED_ON_LOOP, in_thread

if TYPE_CHECKING:
    from archiver.db.pool import Pool
    from archiver.store.hybrid import HybridStore

READERS = 4
PIECE = 16 * MIB  # of a file, hashed in a thread before anybody may say that it is enough
BUFFER = MIB

# Called with the bytes that were hashed, and returns when more may be.
Pace = Callable[[int], Awaitable[None]]


class Verdict(StrEnum):
    """What hashing a blob told. `unreadable`: nothing of the bytes, though the store is there."""

    RIGHT = "right"
    DIFFERENT = "different"
    MISSING = "missing"
    UNREADABLE = "unreadable"


class Finding(NamedTuple):
    """A blob whose bytes are not to be had as they were, and some of the media that have it."""

    sha256: bytes
    verdict: Verdict
    media: list[Mxc]


class Checked(NamedTuple):
    """What a page of blobs came to."""

    blobs: int
    size: int
    findings: list[Finding]
    mended: int


class Verifier:
    """Any number of them may work at once. What is damaged is noted for custody as it is found."""

    def __init__(self, pool: Pool, store: HybridStore, who: Who, pace: Pace | None = None) -> None:
        self._pool = pool
        self._store = store
        self._who = who
        self._pace = pace

    async def everything(self) -> AsyncIterator[Checked]:
        """All blobs, those first that never were verified, then the longest ago; tells of each
        handful. Raises StoreUnavailable, when nothing is said of what it could not read."""
        async for page in catalogue.pages(self._pool):
            for start in range(0, len(page), READERS):
                yield await self.check(page[start : start + READERS])

    async def check(self, blobs: Sequence[Blob]) -> Checked:
        """A few blobs, all at once. Raises StoreUnavailable."""
        verdicts = await asyncio.gather(
            *(verdict_of(self._store, blob, self._pace) for blob in blobs)
        )
        for verdict in verdicts:
            if isinstance(verdict, StoreUnavailable):
                raise verdict
        outcome = list(zip(blobs, verdicts, strict=True))
        good = [blob.sha256 for blob, verdict in outcome if verdict is Verdict.RIGHT]
        mended = await self._right(good) if good else 0
        findings = [
            await self._bad(blob.sha256, verdict)
            for blob, verdict in outcome
            if isinstance(verdict, Verdict) and verdict is not Verdict.RIGHT
        ]
        size = sum(blob.size for blob in blobs)
        metrics.BYTES_VERIFIED.inc(size)
        return Checked(len(blobs), size, [found for found in findings if found], mended)

    async def _right(self, digests: Sequence[bytes]) -> int:
        async with self._pool.acquire() as conn, conn.transaction():
            mended = await catalogue.right(conn, digests)
            for sha256 in mended:
                await custody.note(conn, *self._who, "verify", sha256.hex(), found="right again")
        return len(mended)

    async def _bad(self, sha256: bytes, verdict: Verdict) -> Finding | None:
        """None where the blob was deleted meanwhile. What cannot be read may still be right."""
        async with self._pool.acquire() as conn, conn.transaction():
            media = await catalogue.sharers(conn, sha256)
            if verdict is Verdict.UNREADABLE:
                return Finding(sha256, verdict, media)
            news = await catalogue.damaged(conn, sha256)
            if news is None:
                return None
            if news:
                told = [str(mxc) for mxc in media]
                await custody.note(
                    conn, *self._who, "verify", sha256.hex(), found=str(verdict), media=told
                )
            return Finding(sha256, verdict, media)


async def verdict_of(
    store: HybridStore, blob: Blob, pace: Pace | None = None
) -> Verdict | StoreUnavailable:
    """One file that cannot be read while its store works is that file's own trouble."""
    try:
        digest = await _digest(store, blob, pace)
    except BlobMissing:
        return Verdict.MISSING
    except (StoreUnavailable, OSError):
        try:
            await store.check()
        except StoreUnavailable as away:
            return away
        return Verdict.UNREADABLE
    return Verdict.RIGHT if digest == blob.sha256 else Verdict.DIFFERENT


async def _digest(store: HybridStore, blob: Blob, pace: Pace | None) -> bytes:
    """The SHA-256 of the bytes as the store has them. Raises OSError, and as `BlobStore.read`."""
    digest = hashlib.sha256()
    file = await store.open_file(blob)
    if file is not None:
        with file:
            piece = BUFFER if pace else PIECE
            while hashed := await in_thread(None, _hash_piece, file, digest, piece):
                if pace:
                    await pace(hashed)
        return digest.digest()
    async with aclosing(store.read(blob)) as chunks:
        async for chunk in chunks:
            if len(chunk) <= HASHED_ON_LOOP:
                digest.update(chunk)
            else:
                await in_thread(None, digest.update, chunk)
            if pace:
                await pace(len(chunk))
    return digest.digest()


def _hash_piece(file: IO[bytes], digest: hashlib._Hash, piece: int) -> int:
    """How many bytes there were. Reading into one buffer is faster than making one each time."""
    buffer = memoryview(bytearray(BUFFER))
    hashed = 0
    while hashed < piece:
        length = file.readinto(buffer)  # type: ignore[attr-defined]  # IO lacks it; a file has it
        if not length:
            break
        digest.update(buffer[:length])
        hashed += length
    return hashed
