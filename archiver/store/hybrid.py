"""The threshold: small blobs rest in PostgreSQL, large ones in the object store."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import IO

from archiver.errors import BlobMissing, StoreUnavailable
from archiver.model import Blob, Place
from archiver.store.base import BlobStore, Body, Leftovers, Stored
from archiver.store.filesystem import FilesystemStore
from archiver.store.postgres import PostgresStore
from archiver.store.s3 import S3Store
from archiver.store.spool import in_thread

RECHECK_SECONDS = 5.0


class HybridStore:
    """Both stores as one. `inline_limit` is in bytes; a blob of that very size is still inline.

    `former` is where objects were kept before: what is not among the objects is read from there,
    nothing is put there, and what is deleted goes from both.
    """

    def __init__(
        self,
        inline: PostgresStore,
        objects: BlobStore,
        inline_limit: int,
        former: BlobStore | None = None,
    ) -> None:
        self.former = former
        self._inline = inline
        self._objects = objects
        self._inline_limit = inline_limit
        self._away: str | None = None
        self._check_again = 0.0

    @property
    def objects_name(self) -> str:
        """The name of the store that objects are kept in."""
        return _name(self._objects)

    @property
    def former_name(self) -> str | None:
        """The name of the store that they were kept in before."""
        return None if self.former is None else _name(self.former)

    @property
    def bucket(self) -> S3Store | None:
        """Where objects are kept, or were before, in a bucket: it may know locks."""
        either = self._objects if isinstance(self._objects, S3Store) else self.former
        return either if isinstance(either, S3Store) else None

    async def open(self) -> None:
        """See `BlobStore.open`, for both."""
        await self._inline.open()
        with self._noticed():
            await self._objects.open()

    def place_for(self, size: int) -> Place:
        """Where a new blob of this size goes."""
        return Place.INLINE if size <= self._inline_limit else Place.OBJECT

    async def expect(self, size: int | None) -> None:
        """To be asked before a body of `size` is fetched, so that it is not fetched in vain.

        Raises StoreUnavailable while it would be an object and the object store is known to be
        away; every few seconds one caller, and no second one meanwhile, looks whether it is back.
        """
        if self._away is None or size is None or self.place_for(size) is Place.INLINE:
            return
        if time.monotonic() < self._check_again:
            raise StoreUnavailable(self._away)
        self._check_again = math.inf
        try:
            with self._noticed():
                await self.check_objects()
        finally:
            self._check_again = time.monotonic() + RECHECK_SECONDS

    async def settle(self, body: Body) -> bytes | None:
        """Make an object durable and return None; or return the bytes of an inline blob.

        Those the caller writes in the very commit that records the blob. Raises StoreUnavailable.
        """
        if self.place_for(body.size) is Place.OBJECT:
            with self._noticed():
                await self._objects.put(body)
            return None
        if body.data is not None:
            return body.data
        return await in_thread(None, body.read_at, 0, body.size)

    def read(
        self, blob: Blob, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See `BlobStore.read`. By the blob's recorded place, so the limit may change any day."""
        if blob.place is Place.OBJECT and self.former is not None:
            return _from_either(self._objects, self.former, blob.sha256, start, stop)
        return self._store(blob.place).read(blob.sha256, start, stop)

    async def open_file(self, blob: Blob) -> IO[bytes] | None:
        """The blob as an open file, the caller's to close; None where it rests in no file.

        Raises as `BlobStore.read` does.
        """
        if blob.place is not Place.OBJECT:
            return None
        if isinstance(self._objects, FilesystemStore):
            try:
                return await self._objects.open_file(blob.sha256)
            except BlobMissing:
                if self.former is None:
                    raise
                return None
        if isinstance(self.former, FilesystemStore):
            try:
                return await self.former.open_file(blob.sha256)
            except BlobMissing:
                return None
        return None

    async def replace_object(self, body: Body) -> None:
        """See `BlobStore.replace`, for the object store. Inline bytes are replaced by their rows'
        owner, in one commit with these."""
        with self._noticed():
            await self._objects.replace(body)

    async def size(self, blob: Blob) -> int | None:
        """See `BlobStore.size`. By the blob's recorded place."""
        size = await self._store(blob.place).size(blob.sha256)
        if size is None and blob.place is Place.OBJECT and self.former is not None:
            return await self.former.size(blob.sha256)
        return size

    def elsewhere(self, blob: Blob) -> list[tuple[str, BlobStore]]:
        """Where else its bytes may be, by name: a move leaves them where they were for a day."""
        inline = blob.place is Place.INLINE
        stores = [(self.objects_name, self._objects) if inline else ("inline", self._inline)]
        return [*stores, (_name(self.former), self.former)] if self.former else stores

    def pages(self, place: Place) -> AsyncGenerator[list[Stored], None]:
        """See `BlobStore.pages`. What is in the former store alone is not among the objects."""
        return self._store(place).pages()

    async def leftovers(self, *, remove: bool) -> Leftovers:
        """See `BlobStore.leftovers`."""
        return await self._objects.leftovers(remove=remove)

    async def link(
        self, blob: Blob, seconds: int, content_type: str, disposition: str, cache_control: str
    ) -> str | None:
        """A URL at which anyone may GET the blob for so long, with these headers of the answer.

        None where it rests in no bucket. Nobody is asked whether the bytes are there, unless they
        may still be where they were before. Raises StoreUnavailable where there are no keys to
        sign with.
        """
        if blob.place is not Place.OBJECT or not isinstance(self._objects, S3Store):
            return None
        if self.former is not None and not await self.has_object(blob):
            return None
        return await self._objects.presigned_url(
            blob.sha256,
            seconds,
            ResponseContentType=content_type,
            ResponseContentDisposition=disposition,
            ResponseCacheControl=cache_control,
        )

    async def delete_object(self, sha256: bytes) -> None:
        """See `BlobStore.delete`. Inline bytes go with their rows, in one commit.

        A refusal says nothing of uploads: a key may lack this permission alone.
        """
        await self._objects.delete(sha256)
        if self.former is not None:
            await self.former.delete(sha256)

    async def put_object(self, body: Body, *, anew: bool = False) -> None:
        """Make these bytes a durable object, whatever their size; `anew` in place of wrong ones.

        Raises StoreUnavailable.
        """
        with self._noticed():
            await (self._objects.replace(body) if anew else self._objects.put(body))

    async def has_object(self, blob: Blob) -> bool:
        """Whether all of it is among the objects, not only where they were before."""
        return await self._objects.size(blob.sha256) == blob.size

    async def check(self) -> None:
        """See `BlobStore.check`, for both."""
        await self._inline.check()
        await self.check_objects()

    async def check_objects(self) -> None:
        """See `BlobStore.check`, for the object store alone."""
        await self._objects.check()

    async def close(self) -> None:
        """See `BlobStore.close`, for both."""
        await self._inline.close()
        await self._objects.close()
        if self.former is not None:
            await self.former.close()

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        """Remembers whether the object store was there."""
        try:
            yield
        except StoreUnavailable as error:
            self._away = str(error)
            raise
        self._away = None

    def _store(self, place: Place) -> BlobStore:
        return self._inline if place is Place.INLINE else self._objects


def _name(objects: BlobStore) -> str:
    """As `config.yaml` has it."""
    return "filesystem" if isinstance(objects, FilesystemStore) else "s3"


async def _from_either(
    objects: BlobStore, former: BlobStore, sha256: bytes, start: int, stop: int | None
) -> AsyncGenerator[bytes, None]:
    """What is moved meanwhile is at first in both, then in `objects` alone. What was given of one
    is not given of the other again."""
    for store in (objects, former):
        try:
            async with aclosing(store.read(sha256, start, stop)) as chunks:
                async for chunk in chunks:
                    yield chunk
                    start += len(chunk)
        except BlobMissing:
            if store is former:
                raise
        else:
            return
