"""Bytes on their way to a reader, in bounded memory and without a thread for each slow one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import IO, TYPE_CHECKING

from aiohttp import web

from archiver import metrics
from archiver.errors import BlobMissing, StoreUnavailable
from archiver.model import Blob, Place
from archiver.serve.conditional import Span
from archiver.store.base import MIB
from archiver.store.spool import in_thread

if TYPE_CHECKING:
    from multidict import CIMultiDict

PIECE = MIB  # what the kernel is asked to send at a time
STALL_SECONDS = 60.0  # a reader that takes nothing for so long is gone

_SERVED = {place: metrics.BYTES_SERVED.labels(place) for place in Place}


def from_memory(
    headers: CIMultiDict[str], blob: Blob, data: bytes, span: Span | None
) -> web.Response:
    """The answer with `data`, which is all of the blob, or with a part. Raises BlobMissing where
    bytes lack."""
    if len(data) != blob.size:
        raise BlobMissing(f"blob {blob.sha256.hex()} has {len(data)} bytes, not {blob.size}")
    body = data[span.start : span.stop] if span else data
    say_range(headers, blob, span)
    _SERVED[blob.place].inc(len(body))
    return web.Response(status=206 if span else 200, body=body, headers=headers)


def say_range(headers: CIMultiDict[str], blob: Blob, span: Span | None) -> None:
    """Which part of the blob it is, if it is one."""
    if span:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{blob.size}"


def break_off(request: web.Request) -> None:
    """The headers promised more than will come: only a broken connection can tell."""
    if request.transport is not None:
        request.transport.abort()


async def send_chunks(
    request: web.Request,
    response: web.StreamResponse,
    chunks: AsyncIterator[bytes],
    size: int,
    place: Place,
) -> None:
    """Answers with `size` bytes, counted as they go. Raises BlobMissing where bytes lack.

    The headers wait for the first chunk: what is missing then is an error, no broken answer.
    """
    while size:
        chunk = await anext(chunks, b"")
        if not chunk:
            raise BlobMissing(f"the last {size} bytes are missing")
        async with asyncio.timeout(STALL_SECONDS):
            if not response.prepared:
                await response.prepare(request)
            await response.write(chunk)
        _SERVED[place].inc(len(chunk))
        size -= len(chunk)


async def send_file(
    request: web.Request, response: web.StreamResponse, file: IO[bytes], start: int, stop: int
) -> None:
    """Answers with a part of an object, which the kernel copies to the socket (sendfile(2)).

    The socket never blocks, so a thread is held for one read of the disk at most, and a slow
    reader holds none. Raises BlobMissing where bytes lack.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    async with asyncio.timeout(STALL_SECONDS):
        await _headers_sent(request, response, transport)
    # A number of our own: the loop closes the transport's when the reader is gone.
    socket = os.dup(transport.get_extra_info("socket").fileno())
    try:
        while start < stop:
            if transport.is_closing():
                raise ConnectionResetError
            sent = await _send_piece(socket, file, start, min(PIECE, stop - start))
            _SERVED[Place.OBJECT].inc(sent)
            start += sent
    finally:
        os.close(socket)


async def _headers_sent(
    request: web.Request, response: web.StreamResponse, transport: asyncio.WriteTransport
) -> None:
    transport.set_write_buffer_limits(0)  # so that drain() waits until nothing is left
    try:
        if writer := await response.prepare(request):
            await writer.drain()
    finally:
        transport.set_write_buffer_limits()


async def _send_piece(socket: int, file: IO[bytes], start: int, size: int) -> int:
    try:
        sent = await in_thread(None, os.sendfile, socket, file.fileno(), start, size)
    except BlockingIOError:
        async with asyncio.timeout(STALL_SECONDS):
            await _writable(socket)
        return 0
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        raise StoreUnavailable(f"cannot read {file.name}: {error.strerror}") from error
    if not sent:
        raise BlobMissing(f"the file ends at byte {start}")
    return sent


async def _writable(socket: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(socket, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(socket)
