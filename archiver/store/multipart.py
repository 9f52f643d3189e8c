"""A large body on its way into a bucket, in parts that go up beside each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from archiver.errors import StoreUnavailable
from archiver.store.base import Body
from archiver.store.bucket import Bucket

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

MOST_PARTS = 9000  # S3 allows 10,000

_Run = Callable[..., Awaitable[Any]]


class Multipart:
    """`call` runs a short request in a thread, and `upload` one that reads a body."""

    def __init__(
        self, bucket: Bucket, part_size: int, concurrency: int, call: _Run, upload: _Run
    ) -> None:
        self._bucket = bucket
        self._part_size = part_size
        self._concurrency = concurrency
        self._call = call
        self._upload = upload

    async def put(self, body: Body) -> str | None:
        """Stores a body, and returns the id of its version, as `Bucket.put`."""
        upload_id = await self._call(self._bucket.begin, body.sha256)
        try:
            parts = await self._put_parts(body, upload_id)
            version: str | None = await self._call(
                self._bucket.complete, body.sha256, upload_id, parts
            )
        except BaseException:
            with contextlib.suppress(StoreUnavailable):  # then `open` drops it another day
                await self._call(self._bucket.abort, body.sha256, upload_id)
            raise
        if (stored := await self._call(self._bucket.size, body.sha256)) != body.size:
            await self._call(self._bucket.delete, body.sha256, version)
            raise StoreUnavailable(
                f"S3 bucket {self._bucket.name} joined {body.size} bytes to {stored}: see its"
                " server's own log"
            )
        return version

    async def _put_parts(self, body: Body, upload_id: str) -> list[CompletedPartTypeDef]:
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
