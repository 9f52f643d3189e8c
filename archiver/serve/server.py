"""The readers' routes: Matrix's own face, our API, and the archive's health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from archiver.catalogue import tokens
from archiver.db.listen import Listener
from archiver.db.pool import Pool
from archiver.serve.api import Api
from archiver.serve.auth import OPEN, Authenticator
from archiver.serve.content import Content
from archiver.serve.errors import answer_errors
from archiver.serve.health import Health
from archiver.serve.usage import Usage
from archiver.store.hybrid import HybridStore

# Anything between the slashes, so that what is no name is refused as such; panels add a slash.
MEDIA = "{server:[^/]*}/{id:[^/]*}"
NAME = r"{name:(?:/[\s\S]*)?}"
SLASH = "{slash:/?}"


class Serving:
    """Gives archived media to those who hold a token."""

    def __init__(self, pool: Pool, store: HybridStore, listener: Listener) -> None:
        """`listener` is told here what to listen to, so it must not run yet."""
        self._usage = Usage(pool)
        self._authenticator = Authenticator(pool, self._usage)
        listener.on(tokens.CHANGED, self._authenticator.forget)
        self._content = Content(pool, store, self._usage)
        self._api = Api(pool)
        self._health = Health(pool, store)

    def application(self) -> web.Application:
        """To be run without an access log: `/metrics` counts, and paths are private."""
        app = web.Application(middlewares=[answer_errors, self._authenticator.only_with_token])
        routes = {
            f"/_matrix/client/v1/media/download/{MEDIA}{NAME}": self._content.get,
            f"/api/media/download/{MEDIA}{NAME}": self._content.get,
            f"/api/v1/media/{MEDIA}/content{SLASH}": self._content.get,
            f"/api/v1/media/{MEDIA}{SLASH}": self._api.media,
            "/api/v1/stats": self._api.stats,
            OPEN: self._health.alive,
            "/readyz": self._health.ready,
            "/metrics": self._health.metrics,
        }
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        app.cleanup_ctx.append(self._keep_usage)
        return app

    async def _keep_usage(self, _app: web.Application) -> AsyncIterator[None]:
        flushing = asyncio.create_task(self._usage.run())
        yield
        flushing.cancel()
        await asyncio.wait([flushing])
        await self._usage.flush()
