"""A media's bytes, whole or in part, from wherever they rest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import structlog
from aiohttp import web

from archiver import metrics
from archiver.catalogue.media import Media, look
from archiver.catalogue.variants import View
from archiver.db.pool import Pool
from archiver.errors import BlobMissing, InvalidParam, NotFound, StoreUnavailable, Waiting
from archiver.model import Blob, Mxc, Scope, State
from archiver.serve.auth import SCOPE
from archiver.serve.conditional import Span, is_known, wanted
from archiver.serve.database import connection
from archiver.serve.errors import report
from archiver.serve.headers import media_headers, shown_as
from archiver.serve.readers import given
from archiver.serve.sending import send_chunks, send_file
from archiver.serve.usage import Usage
from archiver.store.hybrid import HybridStore

if TYPE_CHECKING:
    from multidict import CIMultiDict

    from archiver.db.pool import Connection

# A redaction reaches no browser's cache. So where redacted media is hidden, a browser has to ask
# each time, and is mostly told (304) that nothing changed.
ASK_EACH_TIME = "private, no-cache"
NOBODY_KEEPS = "private, no-store"
ADMINS_ASK = "a token with scope admin sees it with ?hidden=true"

QUARANTINED = State.QUARANTINED

Found = TypeVar("Found", Media, View)

log = structlog.get_logger(__name__)


class Content:
    """Answers with bytes. Those of a small blob come with the one question to the database.

    `hides_redacted`: what was redacted is for admins alone, who have to ask for it.
    """

    def __init__(
        self, pool: Pool, store: HybridStore, usage: Usage, *, hides_redacted: bool = False
    ) -> None:
        self._pool = pool
        self._store = store
        self._usage = usage
        self._hides_redacted = hides_redacted

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET or HEAD of a media by `server` and `id`, maybe under another `/name`."""
        return await self.send(request, asked_for(request), request.match_info.get("name", "")[1:])

    async def send(
        self, request: web.Request, mxc: Mxc, name: str = "", *, changes: bool = False
    ) -> web.StreamResponse:
        """Answers a GET or HEAD with the media, under another name if one is given.

        `changes`: the address may stand for another media tomorrow, so nobody may rely on it.
        """
        whole = _is_plain(request) and request.method == "GET"
        media, blob = await self.find(
            request,
            mxc,
            lambda conn, hides: look(conn, mxc, with_name=not name, with_data=whole, hides=hides),
        )
        shown = shown_as(media.declared_type, blob.facts.mimetype)
        headers = media_headers(etag_of(blob), shown, name or media.filename)
        return await self.give(
            request, mxc, blob, media.data, headers, hidden=self.is_hidden(media), changes=changes
        )

    async def find(
        self,
        request: web.Request,
        mxc: Mxc,
        ask: Callable[[Connection, bool | None], Awaitable[Found | None]],
    ) -> tuple[Found, Blob]:
        """What the catalogue says of a media that is ready. Here it is decided who sees what.

        `ask` gets `hides`, as `catalogue.media.look` has it. Raises NotFound, Waiting and
        DatabaseUnavailable.
        """
        unhides = sees_hidden(request)
        async with connection(self._pool) as conn:
            found = await ask(conn, not unhides if self._hides_redacted else None)
        if found and found.redacted and self._hides_redacted and not unhides:
            raise redacted(mxc)
        return _ready(mxc, found, unhides=unhides)

    def is_hidden(self, found: Found) -> bool:
        """Whether it is only for those who ask for what is hidden."""
        return found.state is QUARANTINED or (self._hides_redacted and found.redacted)

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
    ) -> web.StreamResponse:
        """Answers with `blob`, which is the media's own or a variant's: with `data` if that is
        all of it in memory, else from where it rests."""
        plain = _is_plain(request)
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
            self._usage.media_read(mxc)
        if data is not None:
            return _from_memory(headers, blob, data, span)
        return await self._stream(request, headers, blob, span)

    async def _stream(
        self, request: web.Request, headers: CIMultiDict[str], blob: Blob, span: Span | None
    ) -> web.StreamResponse:
        start, stop = span or Span(0, blob.size)
        headers["Content-Length"] = str(stop - start)
        _say_range(headers, blob, span)
        response = web.StreamResponse(status=206 if span else 200, headers=headers)
        complete = False
        try:
            await self._send(request, response, blob, Span(start, stop))
            complete = True
            metrics.BYTES_SERVED.labels(blob.place).inc(stop - start)
        except (ConnectionError, TimeoutError):
            log.debug("a reader left early", path=request.path)
        except (BlobMissing, StoreUnavailable) as error:
            if not response.prepared:
                raise
            report(request, error)
        finally:
            if response.prepared and not complete:
                _break_off(request)
        return response

    async def _send(
        self, request: web.Request, response: web.StreamResponse, blob: Blob, span: Span
    ) -> None:
        if file := await self._store.open_file(blob):
            with file:
                await send_file(request, response, file, *span)
            return
        async with aclosing(self._store.read(blob, *span)) as chunks:
            await send_chunks(request, response, chunks, span.stop - span.start)


def asked_for(request: web.Request) -> Mxc:
    """The media that the path names. Raises InvalidParam."""
    mxc = Mxc.checked(request.match_info["server"], request.match_info["id"])
    if mxc is None:
        raise InvalidParam("the path names no media: it holds a server name and a media id")
    return mxc


def sees_hidden(request: web.Request) -> bool:
    """True for an administrator who says that it is on purpose: no list of pictures shows by
    accident what was hidden for a reason."""
    return request[SCOPE] is Scope.ADMIN and request.query.get("hidden") == "true"


def unknown(mxc: Mxc) -> NotFound:
    """No event that the archive has seen names this media."""
    return NotFound(f"{mxc} is not in the archive")


def redacted(mxc: Mxc) -> NotFound:
    """Every event that names it was redacted, and the reader is no admin who asks for such."""
    return NotFound(f"{mxc} was redacted: {ADMINS_ASK}")


def etag_of(blob: Blob) -> str:
    """The strong entity tag of these bytes."""
    return f'"{blob.sha256.hex()}"'


def _is_plain(request: web.Request) -> bool:
    """Neither a part is wanted, nor is something known already."""
    return "Range" not in request.headers and "If-None-Match" not in request.headers


def _ready(mxc: Mxc, media: Found | None, *, unhides: bool) -> tuple[Found, Blob]:
    if media is None:
        raise unknown(mxc)
    if media.blob and media.state is QUARANTINED and not unhides:
        raise NotFound(f"{mxc} is in quarantine: {ADMINS_ASK}")
    if media.blob and media.state in (State.READY, QUARANTINED):
        return media, media.blob
    reason = f": {media.reason}" if media.reason else ""
    if media.state is State.PENDING:
        raise Waiting(f"{mxc} is not archived yet, and still being tried{reason}")
    raise NotFound(f"{mxc} is not to be had ({media.state}){reason}")


def _from_memory(
    headers: CIMultiDict[str], blob: Blob, data: bytes, span: Span | None
) -> web.Response:
    if len(data) != blob.size:
        raise BlobMissing(f"blob {blob.sha256.hex()} has {len(data)} bytes, not {blob.size}")
    body = data[span.start : span.stop] if span else data
    _say_range(headers, blob, span)
    metrics.BYTES_SERVED.labels(blob.place).inc(len(body))
    return web.Response(status=206 if span else 200, body=body, headers=headers)


def _say_range(headers: CIMultiDict[str], blob: Blob, span: Span | None) -> None:
    if span:
        headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{blob.size}"


def _break_off(request: web.Request) -> None:
    """The headers promised more than will come: only a broken connection can tell."""
    if request.transport is not None:
        request.transport.abort()
