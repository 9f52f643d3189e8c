"""A media that the archive has is fetched once more, because its bytes were damaged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from archiver.errors import BodyMismatch, FetchFailed, MediaNotFound
from archiver.fetch.archive import Parts
from archiver.fetch.download import Download, MediaSource
from archiver.model import Mxc
from archiver.store.spool import SpooledBody


def again(parts: Parts) -> Callable[[Mxc, int], AbstractAsyncContextManager[SpooledBody]]:
    """What fetches with these parts, whatever rules are for media that is new."""

    @asynccontextmanager
    async def fetch(mxc: Mxc, size: int) -> AsyncIterator[SpooledBody]:
        async with (
            _open(parts.source, mxc) as download,
            parts.spool.body(download.announced_size) as body,
        ):
            _check(download.announced_size, size)
            async for chunk in download.chunks():
                await body.write(chunk)
                _check(body.size, size)
            await body.finish()
            yield body

    return fetch


@asynccontextmanager
async def _open(source: MediaSource, mxc: Mxc) -> AsyncIterator[Download]:
    """Also what the homeserver has in quarantine, as far as it gives that to us."""
    async with AsyncExitStack() as stack:
        try:
            download = await stack.enter_async_context(source.open(mxc))
        except MediaNotFound as missing:
            try:
                download = await stack.enter_async_context(source.open(mxc, hidden=True))
            except (FetchFailed, MediaNotFound):
                raise missing from None
        yield download


def _check(came: int | None, size: int) -> None:
    if came is not None and came > size:
        raise BodyMismatch(f"the homeserver has more than the {size} bytes that were archived")
