"""Objects in a bucket of any S3 server.

What needs a short answer goes through boto3 in threads of our own. The bytes of a read come
through aiohttp from a presigned URL, so that a slow reader holds no thread. Nothing is locked
here: S3 servers exist that check conditional requests only when they come one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, TypeVar

import aiohttp

from archiver.errors import StoreUnavailable
from archiver.store import locks, versions
from archiver.store.base import MIB, Body, Leftovers, Stored
from archiver.store.bucket import Bucket
from archiver.store.crowd import Crowd
from archiver.store.multipart import Multipart
from archiver.store.refusals import Refusals
from archiver.store.spool import in_thread
from archiver.store.versions import Kind

CALL_THREADS = 8
URL_SECONDS = 3600
NOBODYS = bytes(32)  # the name of an object that nobody ever puts
_CONTENT_RANGE = re.compile(r"bytes (\d+)-")

T = TypeVar("T")


class S3Store:
    """A `BlobStore` in a bucket.

    A body over `single_size` bytes goes up in parts. All such uploads together hold at most
    `part_size` times `concurrency` bytes in memory; `part_size` grows for objects that would have
    too many parts. `address` tells one bucket from another.
    """

    def __init__(
        self,
        *,
        endpoint_url: str | None,
        region: str,
        bucket: str,
        prefix: str,
        access_key_id: str | None,
        secret_access_key: str | None,
        addressing_style: Literal["auto", "path", "virtual"],
        single_size: int = 64 * MIB,
        part_size: int = 8 * MIB,
        concurrency: int = 3,
    ) -> None:
        keys = access_key_id, secret_access_key
        self._bucket = Bucket(endpoint_url, region, bucket, prefix, *keys, addressing_style)
        self._refusals = Refusals(f"S3 bucket {bucket} at {endpoint_url or 'Amazon'}")
        self.address = f"{endpoint_url or 'https://s3.amazonaws.com'}/{bucket}/{prefix}"
        self._kind: Kind | None = None
        self._crowd = Crowd()
        self._single_size = single_size
        self._uploads = ThreadPoolExecutor(concurrency, "s3-upload")
        # Apart from the uploads, or a reader would wait for them.
        self._calls = ThreadPoolExecutor(CALL_THREADS, "s3-call")
        runs = self._call, self._upload
        self._multipart = Multipart(self._bucket, part_size, concurrency, *runs)

    async def open(self) -> None:
        """Make the bucket when it is missing, and drop what a crash left of an upload."""
        await self.ensure_bucket()
        await self.look()
        # Not every server, nor every key, can list uploads; nothing depends on it.
        with contextlib.suppress(StoreUnavailable):
            await self._call(partial(self._bucket.stale, abort=True))

    async def ensure_bucket(self) -> None:
        """After return the bucket is there."""
        await self._call(self._bucket.ensure)

    async def look(self) -> Kind:
        """What the bucket is at this moment: its owner may change that at any time."""
        self._kind = await self._call(versions.kind_of, self._bucket)
        return self._kind

    async def put(self, body: Body) -> None:
        """See `BlobStore.put`. The server gets an MD5 of all that is sent, to check it.

        In a bucket with versions nothing is put twice: what is there may be locked.
        """
        large = body.data is None and body.size > self._single_size
        look = large or (await self._known()).versioned
        if not look or await self._call(self._bucket.size, body.sha256) != body.size:
            await self.replace(body)

    async def replace(self, body: Body) -> None:
        """See `BlobStore.replace`. A legal hold goes over to the new bytes."""
        if body.data is not None:
            version = await self._call(self._bucket.put, body)
        elif body.size <= self._single_size:
            version = await self._upload(self._bucket.put, body)
        else:
            version = await self._multipart.put(body)
        if (await self._known()).versioned or version:
            await self._call(versions.supersede, self._bucket, body.sha256, version)

    async def read(
        self, sha256: bytes, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """See `BlobStore.read`."""
        if stop is not None and stop <= start:
            return
        url = await self.presigned_url(sha256)
        try:
            async with self._crowd.get(url, _headers(start, stop)) as response:
                if response.status == 416:  # the range begins after the end
                    return
                if response.status not in (200, 206):
                    raise await self._refusals.of(response, sha256)
                at = _first_byte(response)
                async for chunk, _ in response.content.iter_chunks():  # as they came, uncopied
                    end = None if stop is None else max(0, stop - at)
                    if piece := chunk[max(0, start - at) : end]:
                        yield piece
                    at += len(chunk)
                    if stop is not None and at >= stop:
                        return
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._refusals.no_answer(error) from error

    async def presigned_url(
        self, sha256: bytes, seconds: int = URL_SECONDS, **overrides: str
    ) -> str:
        """See `Bucket.presigned_url`."""
        sign = partial(self._bucket.presigned_url, sha256, seconds, overrides)
        if self._bucket.signs_at_once:  # in a sixth of a millisecond
            with self._refusals.explained():
                return sign()
        return await self._call(sign)

    async def size(self, sha256: bytes) -> int | None:
        """See `BlobStore.size`."""
        size = await self._call(self._bucket.size, sha256)
        if size is None:
            await self.check()  # a missing bucket must not look like a missing blob
        return size

    async def delete(self, sha256: bytes) -> None:
        """See `BlobStore.delete`. Of an object that has versions all of them go."""
        kept = (await self._known()).versioned
        if kept or await self._call(self._bucket.delete, sha256):
            await self._call(versions.delete, self._bucket, sha256)

    async def lock(self, sha256: bytes) -> bool:
        """Puts a legal hold on an object; False where it is not here. For buckets with Object
        Lock, as `look` tells. Raises StoreUnavailable."""
        return await self._call(locks.hold, self._bucket, sha256)

    async def unlock(self, sha256: bytes) -> bool:
        """Takes it off again, if there is one; False where the bucket has no Object Lock."""
        if not (await self._known()).locks:
            return False
        await self._call(versions.release, self._bucket, sha256)
        return True

    async def may_lock(self) -> bool:
        """Whether our keys may do that. For buckets with Object Lock."""
        return await self._call(locks.may_hold, self._bucket, NOBODYS)

    async def pages(self) -> AsyncGenerator[list[Stored], None]:
        """See `BlobStore.pages`."""
        async for page in self._paged(self._bucket.pages()):
            yield page

    async def hidden(self) -> AsyncGenerator[list[Stored], None]:
        """Like `pages`, those that a marker hides, though their bytes are in the bucket. For
        buckets that have versions, as `look` tells."""
        async for page in self._paged(versions.hidden(self._bucket)):
            yield page

    async def _paged(self, pages: Iterator[list[Stored]]) -> AsyncGenerator[list[Stored], None]:
        while (page := await self._call(next, pages, None)) is not None:
            if page:
                yield page

    async def leftovers(self, *, remove: bool) -> Leftovers:
        """See `BlobStore.leftovers`. A server tells no size of an upload that never ended.

        What an object has besides its latest version is left over as well.
        """
        uploads = await self._call(partial(self._bucket.stale, abort=remove))
        if not (await self._known()).versioned:
            return Leftovers(uploads)
        number, size = await self._call(partial(versions.tidy, self._bucket, remove=remove))
        return Leftovers(uploads + number, size)

    async def check(self) -> None:
        """See `BlobStore.check`."""
        await self._call(self._bucket.check)

    async def close(self) -> None:
        """Wait for what is under way, then end the threads and close the connections."""
        for executor in (self._uploads, self._calls):
            await in_thread(None, executor.shutdown)
        self._bucket.close()
        await self._crowd.close()

    async def _known(self) -> Kind:
        return self._kind or await self.look()

    async def _call(self, work: Callable[..., T], *args: object) -> T:
        """A short request. Who gives up on it need not wait for a server that hangs."""
        with self._refusals.explained():
            return await asyncio.get_running_loop().run_in_executor(self._calls, work, *args)

    async def _upload(self, work: Callable[..., T], *args: object) -> T:
        with self._refusals.explained():
            return await in_thread(self._uploads, work, *args)


def _headers(start: int, stop: int | None) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}
    if start or stop is not None:
        headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    return headers


def _first_byte(response: aiohttp.ClientResponse) -> int:
    """Where in the object the answer begins: at 0 from a server that knows no ranges.

    The status does not tell: `rclone serve s3` gives the range, with a 200.
    """
    found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    return int(found[1]) if found else 0
