"""A few readers of a bucket get large buffers, and who joins a crowd gets small ones."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestServer

from archiver.store import crowd
from archiver.store.crowd import LARGE, SMALL, Crowd


def received_ahead(response: ClientResponse) -> int:
    """What the kernel may take ahead for an answer."""
    assert response.connection is not None
    assert response.connection.transport is not None
    made = response.connection.transport.get_extra_info("socket")
    return int(made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))


async def test_who_joins_a_crowd_holds_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of what is read at a time and of what the kernel takes; and the crowd disperses."""
    monkeypatch.setattr(crowd, "FEW", 2)
    application = web.Application()
    application.router.add_get("/", lambda _request: web.Response(body=bytes(4 * LARGE.ahead)))
    readers = Crowd()
    async with TestServer(application) as server:
        url = str(server.make_url("/"))
        async with AsyncExitStack() as stack:
            got = [await stack.enter_async_context(readers.get(url, {})) for _ in range(4)]
            assert [chunk for _, chunk in got] == [LARGE.chunk] * 2 + [SMALL.chunk] * 2
            first, *_, last = (received_ahead(response) for response, _ in got)
            assert last <= 2 * SMALL.chunk < first  # Linux doubles what it is told
        async with readers.get(url, {}) as (response, chunk):
            assert (chunk, len(await response.read())) == (LARGE.chunk, 4 * LARGE.ahead)
    await readers.close()
