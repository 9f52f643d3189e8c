"""A body on its way into the archive, which many may read before it has arrived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from archiver.errors import FetchFailed
from archiver.fetch.download import Download
from archiver.fetch.inspect import kind_of
from archiver.model import Blob
from archiver.store.base import KIB
from archiver.store.hybrid import HybridStore
from archiver.store.spool import SpooledBody

HEAD = 64 * KIB  # what tells the type; a body that is no longer is not worth to be streamed
PIECE = 128 * KIB  # what a reader holds at a time
TAIL = 64 * KIB  # what nobody gets before the body was checked, and is kept


class Arrival:
    """An `Onlooker` of `archive_one`, for any number of readers, each at a pace of its own.

    Of the body it holds beginning and end; readers take the rest from the spool while it is there,
    and from the store afterwards.
    """

    def __init__(self, store: HybridStore) -> None:
        self.announced_size: int | None = None
        self.declared_type: str | None = None
        self.upload_name: str | None = None
        self.archived = False
        self._store = store
        self._body: SpooledBody | None = None
        self._blob: Blob | None = None
        self._size = 0
        self._head = b""
        self._tail = b""
        self._over = False
        self._news = asyncio.Event()

    @property
    def kind(self) -> str | None:
        """The media type by magic number, once the body has `begun`."""
        return kind_of(self._head)

    def begins(self, download: Download, body: SpooledBody) -> None:
        """See `Onlooker.begins`."""
        self.announced_size = download.announced_size
        self.declared_type, self.upload_name = download.said
        self._body = body

    def came(self, chunk: bytes) -> None:
        """See `Onlooker.came`."""
        self._size += len(chunk)
        if len(self._head) < HEAD:
            self._head += chunk[: HEAD - len(self._head)]
        self._tail = (self._tail + chunk)[-TAIL:]
        self._tell()

    def end(self, blob: Blob | None = None, *, archived: bool = False) -> None:
        """It is over: with the blob that is archived now, or by somebody else, or without."""
        self._blob = blob
        self.archived = archived or blob is not None
        self._over = True
        self._tell()

    async def begun(self) -> bool:
        """Waits for the first 64 KiB. False: it is over already, well or not."""
        while not (self._over or self._size >= HEAD):
            await self._news.wait()
        return not self._over

    async def over(self) -> bool:
        """Waits for the end. True: the media is archived."""
        while not self._over:
            await self._news.wait()
        return self.archived

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """All bytes as they come. The last ones only once all are checked and archived.

        Raises FetchFailed where it does not come to that, and what the store raises.
        """
        offset = 0
        while not self._over:
            news = self._news
            chunk = await self._read(offset)
            if chunk:
                yield chunk
                offset += len(chunk)
            else:
                await news.wait()
        if self._blob is None:
            raise FetchFailed("the media did not come to its end, or was not what it should be")
        rest = self._blob.size - offset
        if rest > len(self._tail):
            async with aclosing(self._store.read(self._blob, offset)) as chunks:
                async for chunk in chunks:
                    yield chunk
        elif rest:
            yield self._tail[-rest:]

    async def _read(self, offset: int) -> bytes:
        free = self._size - offset
        if self.announced_size is not None:
            free = min(free, self.announced_size - TAIL - offset)
        if self._body is None or free <= 0:
            return b""
        return await self._body.read_so_far(offset, min(free, PIECE))

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
