"""What it means that a homeserver, or who it redirects to, does not hand out a media."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from archiver.errors import (
    ArchiverError,
    FetchFailed,
    HomeserverUnavailable,
    MediaNotFound,
    NotYetUploaded,
    RateLimited,
    TooLargeForHomeserver,
)

DEFAULT_RETRY_AFTER = 5.0
LONGEST_RETRY_AFTER = 86_400.0
REFUSAL_SIZE = 64 * 1024
REFUSAL_SECONDS = 10

# A homeserver gives a Matrix error with these; without one a reverse proxy speaks for itself.
_PROXY_ALONE = frozenset({502, 503})


@dataclass(frozen=True)
class Refusal:
    """A response that is no media. `matrix` is the Matrix error in it, maybe empty.

    https://spec.matrix.org/v1.16/client-server-api/#standard-error-response
    """

    status: int
    matrix: dict[str, Any]
    retry_after: str | None

    @property
    def errcode(self) -> Any:
        """Matrix's code for it: text, if the server knows Matrix."""
        return self.matrix.get("errcode")

    def error(self, *, by_homeserver: bool) -> ArchiverError:
        """Ours for it. What another origin says is never held against the homeserver."""
        said = (
            f"{self.status} {self.errcode or ''}: {self.matrix.get('error') or 'no reason given'}"
        )
        said = said[:1000]
        if self.status == 429:
            return RateLimited(said, self._seconds())
        if self.errcode == "M_NOT_YET_UPLOADED":
            return NotYetUploaded(said)
        if self.errcode == "M_TOO_LARGE":
            return TooLargeForHomeserver(said)
        if self.status == 404:
            return MediaNotFound(said)
        if by_homeserver and self.status == 401:
            return HomeserverUnavailable(
                f"the homeserver refuses the as_token ({said}): is registration.yaml the one that"
                " it reads?"
            )
        if by_homeserver and self.status in _PROXY_ALONE and self.errcode is None:
            return HomeserverUnavailable(f"the homeserver is away, its proxy says {self.status}")
        # 403 too: Synapse says so of one media, where federation with its server is denied.
        return FetchFailed(said)

    def _seconds(self) -> float:
        """By Matrix's own word or by HTTP's (RFC 9110, 10.2.3; dates are not looked at)."""
        seconds, header = DEFAULT_RETRY_AFTER, self.retry_after
        milliseconds = self.matrix.get("retry_after_ms")
        if isinstance(milliseconds, int | float) and milliseconds >= 0:
            seconds = milliseconds / 1000
        elif header and header.isascii() and header.isdigit():
            seconds = float(header)
        return min(seconds, LONGEST_RETRY_AFTER)


async def read_refusal(response: aiohttp.ClientResponse) -> Refusal:
    """Reads no more than `REFUSAL_SIZE` of the body, and closes the response."""
    body = bytearray()
    try:
        async with asyncio.timeout(REFUSAL_SECONDS):
            while len(body) < REFUSAL_SIZE and (chunk := await response.content.readany()):
                body += chunk
        matrix = orjson.loads(body)
    except (aiohttp.ClientError, ConnectionError, TimeoutError, orjson.JSONDecodeError):
        matrix = None
    finally:
        response.close()
    found = matrix if isinstance(matrix, dict) else {}
    return Refusal(response.status, found, response.headers.get("Retry-After"))
