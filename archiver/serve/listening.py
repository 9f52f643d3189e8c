"""Web applications that listen on an address."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from archiver.config import Address
from archiver.errors import OperationError


@asynccontextmanager
async def listening(app: web.Application, address: Address) -> AsyncIterator[None]:
    """The application answers until the end of the block. Raises OperationError."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=10)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, *address).start()
        except OSError as error:
            raise OperationError(
                f"cannot listen on {address.host}:{address.port} ({error.strerror}): is another "
                "archiver running? appservice.listen and serve.listen choose the addresses"
            ) from error
        yield
    finally:
        await runner.cleanup()
