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
from typing import TYPE_CHECKING, Literal, TypeVar

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError

from archiver.errors import ArchiverError, BlobMissing, StoreUnavailable
from archiver.store.base import MIB, Body, Leftovers, Stored
from archiver.store.bucket import ADVICE, Bucket, code_of
from archiver.store.crowd import Crowd
from archiver.store.spool import in_thread

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

CALL_THREADS = 8
MOST_PARTS = 9000  # S3 allows 10,000
URL_SECONDS = 3600
_CODE = re.compile(rb"<Code>(\w+)</Code>")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-")

T = TypeVar("T")


class S3Store:
    """A `BlobStore` in a bucket.

    A body over `single_size` bytes goes up in parts. All such uploads together hold at most
    `part_size` times `concurrency` bytes in memory; `part_size` grows for objects that would have
    too many parts.
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
        self._crowd = Crowd()
        self._single_size = single_size
        self._part_size = part_size
        self._concurrency = concurrency
        self._uploads = ThreadPoolExecutor(concurrency, "s3-upload")
        # Apart from the uploads, or a reader would wait for them.
        self._calls = ThreadPoolExecutor(CALL_THREADS, "s3-call")

    async def open(self) -> None:
        """Make the bucket when it is missing, and drop what a crash left of an upload."""
        await self.ensure_bucket()
        # Not every server, nor every key, can list uploads; nothing depends on it.
        with contextlib.suppress(StoreUnavailable):
            await self.leftovers(remove=True)

    async def ensure_bucket(self) -> None:
        """After return the bucket is there."""
        await self._call(self._bucket.ensure)

    async def put(self, body: Body) -> None:
        """See `BlobStore.put`. The server gets an MD5 of all that is sent, to check it."""
        large = body.data is None and body.size > self._single_size
        if not large or await self._call(self._bucket.size, body.sha256) != body.size:
            await self.replace(body)

    async def replace(self, body: Body) -> None:
        """See `BlobStore.replace`."""
        if body.data is not None:
            await self._call(self._bucket.put, body)
        elif body.size <= self._single_size:
            await self._upload(self._bucket.put, body)
        else:
            await self._put_parts(body)

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
                    raise await self._refusal(response, sha256)
                at = _first_byte(response)
                async for chunk, _ in response.content.iter_chunks():  # as they came, uncopied
                    end = None if stop is None else max(0, stop - at)
                    if piece := chunk[max(0, start - at) : end]:
                        yield piece
                    at += len(chunk)
                    if stop is not None and at >= stop:
                        return
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._no_answer(error) from error

    async def presigned_url(
        self, sha256: bytes, seconds: int = URL_SECONDS, **overrides: str
    ) -> str:
        """See `Bucket.presigned_url`."""
        sign = partial(self._bucket.presigned_url, sha256, seconds, overrides)
        if self._bucket.signs_at_once:  # in a sixth of a millisecond
            with self._explained():
                return sign()
        return await self._call(sign)

    async def size(self, sha256: bytes) -> int | None:
        """See `BlobStore.size`."""
        size = await self._call(self._bucket.size, sha256)
        if size is None:
            await self.check()  # a missing bucket must not look like a missing blob
        return size

    async def delete(self, sha256: bytes) -> None:
        """See `BlobStore.delete`."""
        await self._call(self._bucket.delete, sha256)

    async def pages(self) -> AsyncGenerator[list[Stored], None]:
        """See `BlobStore.pages`."""
        pages = self._bucket.pages()
        while (page := await self._call(next, pages, None)) is not None:
            if page:
                yield page

    async def leftovers(self, *, remove: bool) -> Leftovers:
        """See `BlobStore.leftovers`. A server tells no size of an upload that never ended."""
        return Leftovers(await self._call(partial(self._bucket.stale, abort=remove)))

    async def check(self) -> None:
        """See `BlobStore.check`."""
        await self._call(self._bucket.check)

    async def close(self) -> None:
        """Wait for what is under way, then end the threads and close the connections."""
        for executor in (self._uploads, self._calls):
            await in_thread(None, executor.shutdown)
        self._bucket.close()
        await self._crowd.close()

    async def _put_parts(self, body: Body) -> None:
        upload_id = await self._call(self._bucket.begin, body.sha256)
        try:
            parts = await self._upload_parts(body, upload_id)
            await self._call(self._bucket.complete, body.sha256, upload_id, parts)
        except BaseException:
            with contextlib.suppress(StoreUnavailable):  # then `open` drops it another day
                await self._call(self._bucket.abort, body.sha256, upload_id)
            raise
        if (stored := await self._call(self._bucket.size, body.sha256)) != body.size:
            await self.delete(body.sha256)
            raise StoreUnavailable(
                f"{self._where()} joined {body.size} bytes to {stored}: see its own log"
            )

    async def _upload_parts(self, body: Body, upload_id: str) -> list[CompletedPartTypeDef]:
        part_size = max(self._part_size, -(-body.size // MOST_PARTS))
        numbers = iter(range(1, -(-body.size // part_size) + 1))
        parts: list[CompletedPartTypeDef] = []

        async def upload() -> None:
            for number in numbers:
                put_part = self._bucket.put_part
                parts.append(await self._upload(put_part, body, upload_id, number, part_size))

        tasks = [asyncio.create_task(upload()) for _ in range(self._concurrency)]
        try:
            await asyncio.gather(*tasks)
        finally:  # no part may be on its way when the upload is aborted, or it would stay
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return sorted(parts, key=lambda part: part["PartNumber"])

    async def _call(self, work: Callable[..., T], *args: object) -> T:
        """A short request. Who gives up on it need not wait for a server that hangs."""
        with self._explained():
            return await asyncio.get_running_loop().run_in_executor(self._calls, work, *args)

    async def _upload(self, work: Callable[..., T], *args: object) -> T:
        with self._explained():
            return await in_thread(self._uploads, work, *args)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise self._refused(code_of(error)) from error
        except BotoCoreError as error:
            raise self._no_answer(error) from error

    async def _refusal(self, response: aiohttp.ClientResponse, sha256: bytes) -> ArchiverError:
        found = _CODE.search(await response.content.read(4096))
        code = found[1].decode() if found else str(response.status)
        if code == "NoSuchKey":
            return BlobMissing(f"blob {sha256.hex()} is not in {self._where()}")
        return self._refused(code)

    def _refused(self, code: str) -> StoreUnavailable:
        advice = ADVICE.get(code, "it will be tried again; see the server's own log")
        return StoreUnavailable(f"{self._where()} answered {code}: {advice}")

    def _no_answer(self, error: Exception) -> StoreUnavailable:
        reason = str(error) or type(error).__name__
        return StoreUnavailable(
            f"{self._where()} does not answer ({reason}): check that it runs, and"
            " storage.s3.endpoint_url"
        )

    def _where(self) -> str:
        return f"S3 bucket {self._bucket.name} at {self._bucket.endpoint_url or 'Amazon'}"


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
