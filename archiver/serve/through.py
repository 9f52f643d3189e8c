"""Media that is asked for before it is archived: waited for, or streamed while it is fetched.

https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Protocol

import structlog
from aiohttp import HttpVersion11, web

from archiver import metrics
from archiver.catalogue.served import Source
from archiver.errors import ArchiverError, InvalidParam, Waiting
from archiver.model import Mxc
from archiver.serve.headers import media_headers, shown_as
from archiver.serve.readers import given
from archiver.serve.sending import STALL_SECONDS, break_off
from archiver.serve.usage import Usage

WAIT_MS = 20_000  # as the specification has it
WAIT_AT_MOST_MS = 60_000
_MOST_DIGITS = 12

# What the homeserver says of the whole is not known before its end, nor is it for a cache.
_NOT_YET = ("ETag", "Accept-Ranges")

# On a request that was waited for: it is no hit, even if it is answered from the store.
MISSED = web.RequestKey("missed", bool)

Answering = Callable[[str | None], Awaitable[web.StreamResponse]]

log = structlog.get_logger(__name__)


class Arriving(Protocol):
    """A media on its way, for any number of readers. What is known of it is so once it `begun`."""

    announced_size: int | None
    declared_type: str | None
    upload_name: str | None

    @property
    def kind(self) -> str | None:
        """The media type by magic number."""

    async def begun(self) -> bool:
        """Waits until enough has come to tell what it is. False: it is over already."""

    async def over(self) -> bool:
        """Waits for the end. True: the media is archived."""

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes as they come. Raises an ArchiverError where it does not end well."""


class Demand(Protocol):
    """Whoever can fetch media at once."""

    def want(self, mxc: Mxc) -> Arriving | None:
        """The media on its way; None where it failed just now. Raises LimitExceeded."""


class Through:
    """Waits for media that is `pending`, once it is decided that the reader may see it."""

    def __init__(self, demand: Demand, usage: Usage) -> None:
        self._demand = demand
        self._usage = usage

    async def wait(self, request: web.Request, mxc: Mxc, *, streams: bool) -> Answering | None:
        """Fetches it, and waits for so long as the request says.

        Returns what answers with the bytes as they come, under a file name, if the reader
        `streams`; None when it is over, so that the catalogue tells how. Raises InvalidParam,
        LimitExceeded and, when time is over, Waiting.
        """
        seconds = _seconds(request)
        arriving = self._demand.want(mxc)
        if arriving is None:
            _count("spared")
            return None
        request[MISSED] = True
        try:
            async with asyncio.timeout(seconds):
                # Before HTTP 1.1 only a length tells an end from a broken connection.
                if streams and request.version >= HttpVersion11 and await arriving.begun():
                    return partial(self._answer, request, mxc, arriving)
                _count("waited" if await arriving.over() else "failed")
        except TimeoutError:
            _count("late")
            raise Waiting(f"{mxc} is not archived yet, and still being fetched") from None
        return None

    async def _answer(
        self, request: web.Request, mxc: Mxc, arriving: Arriving, name: str | None
    ) -> web.StreamResponse:
        shown = shown_as(arriving.declared_type, arriving.kind)
        headers = media_headers("", shown, name or arriving.upload_name)
        for header in _NOT_YET:
            del headers[header]
        headers["Cache-Control"] = "private, no-store"
        headers["X-Cache"] = "MISS"
        response = web.StreamResponse(headers=headers)
        response.content_length = arriving.announced_size
        given(request, mxc)
        self._usage.media_read(mxc, Source.MISSED)
        outcome = "broken"
        try:
            await _stream(request, response, arriving)
            outcome = "streamed"
        except (ConnectionError, TimeoutError):
            outcome = "left"
            log.debug("a reader left early", path=request.path)
        except ArchiverError as error:
            if not response.prepared:
                raise Waiting(f"{mxc} is not archived yet, and still being tried") from error
            log.warning("a media broke off while it was streamed", path=request.path)
        finally:
            _count(outcome)
            if outcome != "streamed" and response.prepared:
                break_off(request)
        return response


async def _stream(request: web.Request, response: web.StreamResponse, arriving: Arriving) -> None:
    """The headers wait for the first bytes: what fails before is an error, no broken answer."""
    async with aclosing(arriving.chunks()) as chunks:
        async for chunk in chunks:
            async with asyncio.timeout(STALL_SECONDS):
                await response.prepare(request)
                await response.write(chunk)
                metrics.BYTES_SERVED.labels("arriving").inc(len(chunk))


def _seconds(request: web.Request) -> float:
    """How long the reader waits: `timeout_ms`."""
    value = request.query.get("timeout_ms", str(WAIT_MS))
    if not (value.isascii() and value.isdecimal() and len(value) <= _MOST_DIGITS):
        raise InvalidParam("timeout_ms must be a whole number of milliseconds")
    return min(int(value), WAIT_AT_MOST_MS) / 1000


def _count(outcome: str) -> None:
    metrics.READ_THROUGH.labels(outcome).inc()
