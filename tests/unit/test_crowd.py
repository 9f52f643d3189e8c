"""A few readers of a bucket may have much on the way, and who joins a crowd little."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestServer

from archiver.store import crowd
from archiver.store.crowd import AHEAD, AHEAD_IN_CROWD, KERNEL_IN_CROWD, Crowd

BODY = bytes(4 * AHEAD)


async def answer(_request: web.Request) -> web.Response:
    """More than anybody may have on the way."""
    return web.Response(body=BODY)


def ahead(response: ClientResponse) -> tuple[int, int]:
    """What aiohttp and the kernel may take of an answer before it is asked for."""
    assert response.connection is not None
    assert response.connection.transport is not None
    made = response.connection.transport.get_extra_info("socket")
    kernel = made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    return response.content.get_read_buffer_limits()[0], int(kernel)


async def test_who_joins_a_crowd_holds_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in the kernel; and when the crowd has dispersed, a reader may have much again."""
    monkeypatch.setattr(crowd, "FEW", 2)
    application = web.Application()
    application.router.add_get("/", answer)
    readers = Crowd()
    async with TestServer(application) as server:
        url = str(server.make_url("/"))
        async with AsyncExitStack() as stack:
            got = [await stack.enter_async_context(readers.get(url, {})) for _ in range(4)]
            first, *_, last = map(ahead, got)
        assert (first[0], last[0]) == (AHEAD, AHEAD_IN_CROWD)
        assert last[1] <= 2 * KERNEL_IN_CROWD < first[1]  # Linux doubles what it is told
        async with readers.get(url, {}) as response:
            assert ahead(response)[0] == AHEAD
            assert await response.read() == BODY
    await readers.close()
