"""Web applications that listen on an address."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum, auto

from aiohttp import web

from archiver.config import Address
from archiver.errors import OperationError


class Sharing(Enum):
    """Whether several processes of one user listen at an address (SO_REUSEPORT): the kernel
    divides the connections among them. Nobody may be there before the first."""

    ALONE = auto()
    FIRST = auto()
    FURTHER = auto()


@asynccontextmanager
async def listening(
    app: web.Application, address: Address, sharing: Sharing = Sharing.ALONE
) -> AsyncIterator[None]:
    """The application answers until the end of the block. Raises OperationError."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=10)
    await runner.setup()
    try:
        try:
            if sharing is Sharing.FIRST:
                _check_free(address)
            reuse_port = sharing is not Sharing.ALONE
            await web.TCPSite(runner, *address, reuse_port=reuse_port).start()
        except OSError as error:
            raise OperationError(
                f"cannot listen on {address.host}:{address.port} ({error.strerror}): is another "
                "archiver running? appservice.listen and serve.listen choose the addresses"
            ) from error
        yield
    finally:
        await runner.cleanup()


def _check_free(address: Address) -> None:
    """Raises OSError where somebody listens, who might be another archive that shares, too."""
    for family, kind, protocol, _, found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # as asyncio binds it: IPv4 is another socket
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(found)
