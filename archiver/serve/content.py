"""A media's bytes, whole or in part, from wherever they rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from archiver.catalogue.media import look
from archiver.db.pool import Pool
from archiver.errors import BlobMissing, StoreUnavailable
from archiver.model import Blob, Mxc, State
from archiver.serve.asking import Found, asked_for, ready, redacted, sees_hidden
from archiver.serve.conditional import Span, is_known, wanted
from archiver.serve.database import connection
from archiver.serve.errors import report
from archiver.serve.headers import media_headers, shown_as
from archiver.serve.hot import Entry, Hot
from archiver.serve.missed import missed
from archiver.serve.readers import given
from archiver.serve.redirect import redirected
from archiver.serve.sending import break_off, from_memory, say_range, send_chunks, send_file
from archiver.serve.through import MISSED, Answering, Through
from archiver.serve.usage import Usage, source_of
from archiver.store.hybrid import HybridStore

if TYPE_CHECKING:
    from multidict import CIMultiDict

    from archiver.db.pool import Connection

# A redaction reaches no browser's cache. So where redacted media is hidden, a browser has to ask
# each time, and is mostly told (304) that nothing changed.
ASK_EACH_TIME = "private, no-cache"
NOBODY_KEEPS = "private, no-store"

Ask = Callable[["Connection", bool | None], Awaitable[Found | None]]

log = structlog.get_logger(__name__)


class Content:
    """Answers with bytes. Those of a small blob come with the one question to the database.

    `hides_redacted`: what was redacted is for admins alone, who have to ask for it.
    `redirects`: what rests in a bucket is to be fetched there. `through`: fetches what is not
    archived yet.
    """

    def __init__(
        self,
        pool: Pool,
        store: HybridStore,
        usage: Usage,
        hot: Hot,
        *,
        hides_redacted: bool = False,
        redirects: bool = False,
        through: Through | None = None,
    ) -> None:
        self.hot = hot
        self._pool = pool
        self._store = store
        self._usage = usage
        self._hides_redacted = hides_redacted
        self._redirects = redirects
        self._through = through

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET or HEAD of a media by `server` and `id`, maybe under another `/name`."""
        return await self.send(request, asked_for(request), request.match_info.get("name", "")[1:])

    async def send(
        self, request: web.Request, mxc: Mxc, name: str = "", *, changes: bool = False
    ) -> web.StreamResponse:
        """Answers a GET or HEAD with the media, under another name if one is given.

        `changes`: the address may stand for another media tomorrow, so nobody may rely on it.
        """
        kept = None if sees_hidden(request) else self.hot.get(mxc, name)
        if kept is not None:
            return await self.give(request, mxc, *kept, hidden=False, changes=changes, hot=True)
        whole, before = _is_plain(request) and request.method == "GET", self.hot.changes
        media, arriving = await self._look(
            request,
            mxc,
            lambda conn, hides: look(conn, mxc, with_name=not name, with_data=whole, hides=hides),
            streams=whole or _is_from_the_start(request),
        )
        if media and arriving:
            return await arriving(name or media.filename)
        media, blob = ready(mxc, media, unhides=sees_hidden(request))
        shown = shown_as(media.declared_type, blob.facts.mimetype)
        headers = media_headers(etag_of(blob), shown, name or media.filename)
        if media.data is not None and self.is_for_all(request, media):
            self.hot.put(before, Entry(blob, media.data, headers), mxc, name)
        return await self.give(
            request, mxc, blob, media.data, headers, hidden=self.is_hidden(media), changes=changes
        )

    async def find(
        self,
        request: web.Request,
        mxc: Mxc,
        ask: Ask[Found],
    ) -> tuple[Found, Blob]:
        """What the catalogue says of a media that is ready. Here it is decided who sees what.

        `ask` gets `hides`, as `catalogue.media.look` has it. Raises NotFound, Waiting,
        DatabaseUnavailable, and what `Through.wait` does.
        """
        found, _ = await self._look(request, mxc, ask, streams=False)
        return ready(mxc, found, unhides=sees_hidden(request))

    async def _look(
        self, request: web.Request, mxc: Mxc, ask: Ask[Found], *, streams: bool
    ) -> tuple[Found | None, Answering | None]:
        found = await self._visible(request, mxc, ask)
        if self._through is None or found is None or found.state is not State.PENDING:
            return found, None
        if arriving := await self._through.wait(request, mxc, streams=streams):
            return found, arriving
        return await self._visible(request, mxc, ask), None

    async def _visible(self, request: web.Request, mxc: Mxc, ask: Ask[Found]) -> Found | None:
        unhides = sees_hidden(request)
        async with connection(self._pool) as conn:
            found = await ask(conn, not unhides if self._hides_redacted else None)
        if found and found.redacted and self._hides_redacted and not unhides:
            raise redacted(mxc)
        return found

    def is_for_all(self, request: web.Request, found: Found) -> bool:
        """Whether everybody gets the same answer as this reader, until a change is told."""
        steady = found.live or not self._hides_redacted
        return steady and found.state is State.READY and not sees_hidden(request)

    def is_hidden(self, found: Found) -> bool:
        """Whether it is only for those who ask for what is hidden."""
        return found.state is State.QUARANTINED or (self._hides_redacted and found.redacted)

    async def give(
        self,
        request: web.Request,
        mxc: Mxc,
        blob: Blob,
        data: bytes | None,
        headers: CIMultiDict[str],
        *,
        hidden: bool,
        changes: bool = False,
        hot: bool = False,
    ) -> web.StreamResponse:
        """Answers with `blob`, which is the media's own or a variant's: with `data` if that is
        all of it in memory, else from where it rests."""
        plain, headers = _is_plain(request), headers.copy()
        if MISSED in request:
            headers["X-Cache"] = "MISS"
        if self._hides_redacted or changes:
            headers["Cache-Control"] = ASK_EACH_TIME
        if hidden:
            headers["Cache-Control"] = NOBODY_KEEPS
        if not plain and is_known(request.headers, headers["ETag"]):
            return web.Response(status=304, headers=headers)
        if request.method == "HEAD":
            headers["Content-Length"] = str(blob.size)
            return web.Response(headers=headers)
        span = None if plain else wanted(request.headers, headers["ETag"], blob.size)
        given(request, mxc)
        if span is None or span.start == 0:  # a player asks for many parts of what it plays once
            self._usage.media_read(mxc, source_of(headers, hot=hot))
        try:
            return await self._bytes(request, headers, blob, data, span, hidden=hidden)
        except BlobMissing:
            await missed(self._pool, blob)
            raise

    async def _bytes(
        self,
        request: web.Request,
        headers: CIMultiDict[str],
        blob: Blob,
        data: bytes | None,
        span: Span | None,
        *,
        hidden: bool,
    ) -> web.StreamResponse:
        if data is not None:
            return from_memory(headers, blob, data, span)
        if self._redirects and (away := await redirected(self._store, blob, headers, hidden)):
            return away
        return await self._stream(request, headers, blob, span)

    async def _stream(
        self, request: web.Request, headers: CIMultiDict[str], blob: Blob, span: Span | None
    ) -> web.StreamResponse:
        start, stop = span or Span(0, blob.size)
        headers["Content-Length"] = str(stop - start)
        say_range(headers, blob, span)
        response = web.StreamResponse(status=206 if span else 200, headers=headers)
        complete = False
        try:
            await self._send(request, response, blob, Span(start, stop))
            complete = True
        except (ConnectionError, TimeoutError):
            log.debug("a reader left early", path=request.path)
        except (BlobMissing, StoreUnavailable) as error:
            if not response.prepared:
                raise
            report(request, error)
            if isinstance(error, BlobMissing):
                await missed(self._pool, blob)
        finally:
            if response.prepared and not complete:
                break_off(request)
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, blob: Blob, span: Span
    ) -> None:
        if file := await self._store.open_file(blob):
            with file:
                await send_file(request, response, file, *span)
            return
        async with aclosing(self._store.read(blob, *span)) as chunks:
            size = span.stop - span.start
            await send_chunks(request, response, chunks, size, blob.place)


def etag_of(blob: Blob) -> str:
    """The strong entity tag of these bytes."""
    return f'"{blob.sha256.hex()}"'


def _is_from_the_start(request: web.Request) -> bool:
    """What a browser asks of a video first. It may be given the whole (RFC 9110, section 14.2)."""
    conditional = "If-Range" in request.headers or "If-None-Match" in request.headers
    return (
        request.method == "GET" and request.headers.get("Range") == "bytes=0-" and not conditional
    )


def _is_plain(request: web.Request) -> bool:
    """Neither a part is wanted, nor is something known already."""
    return "Range" not in request.headers and "If-None-Match" not in request.headers
