"""Gets a media's bytes from the homeserver, by the authenticated endpoint.

https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.message import Message

import aiohttp
from yarl import URL

from archiver.catalogue.queue import Said
from archiver.errors import ArchiverError, BodyMismatch, FetchFailed, HomeserverUnavailable
from archiver.matrix.refusal import Refusal, read_refusal
from archiver.model import SERVER_NAME_MAX, Mxc

CHUNK = 256 * 1024
MAX_REDIRECTS = 5
# How long the homeserver itself may wait for another server, or for an upload to come.
HOMESERVER_WAIT = 20
# Uploaders choose the Content-Type, and Synapse hands out up to 16 KiB of it.
HEADER_SIZE = 64 * 1024
TEXT_LENGTH = 255

AUTHENTICATED = "_matrix/client/v1/media/download"
LEGACY = "_matrix/media/v3/download"
# Synapse's own, for administrators; others are refused with 400.
EVEN_HIDDEN = {"admin_unsafely_bypass_quarantine": "true"}

_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10, sock_read=HOMESERVER_WAIT + 40)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Download:
    """A download under way: what was announced, and the chunks as they come."""

    def __init__(self, response: aiohttp.ClientResponse, arrived: Callable[[], None]) -> None:
        self._response = response
        self._arrived = arrived
        self.announced_size = response.content_length
        self.said = Said(
            declared_type=_text(response.headers.get("Content-Type")),
            upload_name=_text(_filename(response.headers.get("Content-Disposition"))),
        )

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, `CHUNK` at most at a time. Raises BodyMismatch when they end too early."""
        try:
            async for chunk in self._response.content.iter_chunked(CHUNK):
                yield chunk
            self._arrived()
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise BodyMismatch(
                f"the download broke off: {str(error) or 'no data came'}"
            ) from error


class MediaSource:
    """The homeserver, as far as it hands out media. It is asked as our own bot.

    `at_once` downloads go on at a time, each until its body has arrived.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        homeserver_url: str,
        as_token: str,
        bot: str,
        at_once: int,
    ) -> None:
        self._session = session
        self._base = URL(homeserver_url)
        self._headers = {"Authorization": f"Bearer {as_token}", "Accept-Encoding": "identity"}
        self._bot = bot
        self._legacy = False
        self._slots = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def open(self, mxc: Mxc, *, hidden: bool = False) -> AsyncIterator[Download]:
        """The body of a media; with `hidden` also of one that Synapse has in quarantine, where the
        bot is an administrator. Raises the Retryable and Permanent errors of errors.py."""
        await self._slots.acquire()
        arrived = _once(self._slots.release)
        try:
            response = await self._get(mxc, hidden=hidden)
            try:
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise FetchFailed("the homeserver sent a compressed body, unasked")
                yield Download(response, arrived)
            finally:
                response.close()
        finally:
            arrived()

    async def _get(self, mxc: Mxc, *, hidden: bool) -> aiohttp.ClientResponse:
        if not self._legacy:
            url = self._url(AUTHENTICATED, mxc)
            response = await self._follow(url.update_query(EVEN_HIDDEN) if hidden else url)
            if response.status == 200:
                return response
            refusal = await read_refusal(response)
            if refusal.errcode != "M_UNRECOGNIZED":
                raise self._error(response, refusal)
        # Homeservers before Matrix 1.11 know only this one. Remembered as long as it works: an
        # upgraded homeserver has what is new behind the other one alone.
        response = await self._follow(self._url(LEGACY, mxc))
        self._legacy = response.status == 200
        if not self._legacy:
            raise self._error(response, await read_refusal(response))
        return response

    def _url(self, endpoint: str, mxc: Mxc) -> URL:
        query = {"timeout_ms": str(HOMESERVER_WAIT * 1000), "user_id": self._bot}
        return (self._base / endpoint / mxc.server_name / mxc.media_id).with_query(query)

    async def _follow(self, url: URL) -> aiohttp.ClientResponse:
        """GET, following redirects by hand: the token goes to the homeserver's origin alone.

        Once led away it is not sent again, not even on the way back: where another server leads us
        is not for that server to choose with our rights.
        """
        headers = self._headers
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._request(url, headers)
            if response.status not in _REDIRECTS:
                return response
            response.close()
            url = _target(url, response.headers.get("Location"))
            if not self._is_homeserver(url):
                headers = {"Accept-Encoding": "identity"}
        raise FetchFailed(f"the homeserver redirects more than {MAX_REDIRECTS} times")

    async def _request(self, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        try:
            return await self._session.get(
                url,
                headers=headers,
                allow_redirects=False,
                timeout=_TIMEOUT,
                max_field_size=HEADER_SIZE,
            )
        except aiohttp.SocketTimeoutError as error:  # it took the request: only this one is slow
            raise FetchFailed(f"{url.origin()} sent nothing for too long") from error
        except (TimeoutError, aiohttp.ClientConnectionError, OSError) as error:
            reason = str(error) or type(error).__name__
            if self._is_homeserver(url):
                raise HomeserverUnavailable(f"the homeserver does not answer: {reason}") from error
            raise FetchFailed(f"{url.origin()} does not answer: {reason}") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise FetchFailed(f"{url.origin()} answers what is no HTTP: {error}") from error

    def _error(self, response: aiohttp.ClientResponse, refusal: Refusal) -> ArchiverError:
        return refusal.error(by_homeserver=self._is_homeserver(response.url))

    def _is_homeserver(self, url: URL) -> bool:
        return url.origin() == self._base.origin()


def _once(release: Callable[[], None]) -> Callable[[], None]:
    """A slot is free when its body has arrived, or at the latest when its user leaves."""
    pending = [release]

    def call() -> None:
        while pending:
            pending.pop()()

    return call


def _target(url: URL, location: str | None) -> URL:
    """Where a redirect leads. Not requoted: a signed URL is good as it is, or not at all."""
    try:
        target = url.join(URL(location or "", encoded=True))
        if not location or target.scheme not in {"http", "https"}:
            raise ValueError("no address")
        if not target.host or len(target.host) > SERVER_NAME_MAX:
            raise ValueError("no host")
    except ValueError as error:
        raise FetchFailed(f"a redirect to {(location or 'nowhere')[:200]!r}: {error}") from error
    return target


def _filename(disposition: str | None) -> str | None:
    """The file name in a Content-Disposition (RFC 6266, 8187), however odd the header is."""
    if not disposition:
        return None
    header = Message()
    header["Content-Disposition"] = disposition
    return header.get_filename()


def _text(value: str | None) -> str | None:
    """As PostgreSQL's text takes it: no NUL, no half surrogates, and not without end."""
    if not value:
        return None
    return value[:TEXT_LENGTH].replace("\0", "\ufffd").encode("utf-8", "replace").decode()
