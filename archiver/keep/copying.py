"""A blob's bytes, copied from wherever they may be and hashed on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from archiver.errors import BlobMissing
from archiver.model import Blob
from archiver.store.spool import Spool, SpooledBody


@asynccontextmanager
async def copied(
    spool: Spool, blob: Blob, source: AsyncGenerator[bytes, None]
) -> AsyncIterator[SpooledBody | None]:
    """The bytes in the spool, or None where they are not what they were. Raises
    StoreUnavailable."""
    async with spool.body(blob.size) as body:
        right = False
        with suppress(BlobMissing):
            async with aclosing(source) as chunks:
                async for chunk in chunks:
                    await body.write(chunk)
            right = await body.finish() == blob.sha256
        yield body if right else None
