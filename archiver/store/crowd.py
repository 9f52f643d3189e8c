"""Reading from a bucket: fast for a few at once, and in little memory for a crowd."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from archiver.store.base import KIB
from archiver.store.bucket import ANSWER_SECONDS, CONNECT_SECONDS

FEW = 64  # that share the buffers a fast line wants; with five hundred these would be half a GiB
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=ANSWER_SECONDS)


# Bytes that may have come and were not asked for, and those that the kernel may hold of them.
AHEAD = 256 * KIB
AHEAD_IN_CROWD, KERNEL_IN_CROWD = 32 * KIB, 64 * KIB


class Crowd:
    """Asks for objects, and knows how many do. To be made, used and closed on one loop."""

    def __init__(self) -> None:
        self._readers = 0
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def get(
        self, url: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer. Raises what aiohttp does."""
        if self._session is None:  # not before there is a loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=self._socket),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        self._readers += 1
        try:
            async with self._session.get(
                URL(url, encoded=True),
                headers=headers,
                allow_redirects=False,
                timeout=TIMEOUT,
                read_bufsize=AHEAD_IN_CROWD if self._is_large() else AHEAD,
            ) as response:
                yield response
        finally:
            self._readers -= 1

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """In a crowd the kernel may take little ahead: uvloop reads at once whatever it has."""
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        if self._is_large():
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_IN_CROWD)
        return made

    def _is_large(self) -> bool:
        return self._readers > FEW
