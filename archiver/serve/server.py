"""The readers' routes: Matrix's own face, our API, and the archive's health."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import media, signing_keys, tokens
from archiver.db.listen import Listener
from archiver.db.pool import Pool
from archiver.serve import media_config, openapi
from archiver.serve.access import Access
from archiver.serve.api import Api
from archiver.serve.auth import OPEN, Authenticator
from archiver.serve.content import Content
from archiver.serve.errors import answer_errors
from archiver.serve.events import Events
from archiver.serve.figures import Figures
from archiver.serve.health import Health
from archiver.serve.hot import Hot
from archiver.serve.listing import Listing
from archiver.serve.people import People
from archiver.serve.polls import Polls
from archiver.serve.readers import READINGS, Readings
from archiver.serve.reads import ReadsApi
from archiver.serve.rooms import Rooms
from archiver.serve.sign import Sign
from archiver.serve.signed_urls import SignedUrls
from archiver.serve.statistics import GROUP, Statistics
from archiver.serve.through import Demand, Through
from archiver.serve.thumbnails import Thumbnails
from archiver.serve.usage import Usage
from archiver.store.hybrid import HybridStore
from archiver.variants.maker import Maker

# Anything between the slashes, so that what is no name is refused as such; panels add a slash.
MEDIA = "{server:[^/]*}/{id:[^/]*}"
NAME = r"{name:(?:/[\s\S]*)?}"
SLASH = "{slash:/?}"


class Serving:
    """Gives archived media to those who may see it."""

    def __init__(
        self,
        pool: Pool,
        store: HybridStore,
        listener: Listener,
        policy: CapturePolicy,
        access: Access,
        maker: Maker,
        *,
        hides_redacted: bool = False,
        hot_cache: int = 0,
        demand: Demand | None = None,
        counts: bool = True,
    ) -> None:
        """`listener` is told here what to listen to, so it must not run yet.

        `policy` tells which rooms are left out, `access` who may read. `maker` makes pictures.
        `hides_redacted`: the words of what was redacted are for administrators. `hot_cache`: the
        bytes of memory for small media. `demand` fetches what is not archived yet.
        `counts`: the whole tables for the metrics, too, which one of several processes does.
        """
        self._usage = Usage(pool)
        self._readings = Readings(pool, access.keep_reads)
        self._reads = ReadsApi(pool)
        self._limits = access.limits
        signed_urls = SignedUrls(pool, access.signed_for_at_most)
        self._sign = Sign(pool, access.public_url, access.signed_for_at_most)
        self._authenticator = Authenticator(
            pool, self._usage, signed_urls, access.matrix, access.limits
        )
        listener.on(tokens.CHANGED, self._authenticator.forget)
        listener.on(signing_keys.CHANGED, signed_urls.forget)
        hot = Hot(hot_cache, lambda: listener.connected)
        listener.on_payload(media.CHANGED, hot.changed)
        redirects = access.redirects
        through = Through(demand, self._usage) if demand else None
        self._content = Content(
            pool, store, self._usage, hot,
            hides_redacted=hides_redacted, redirects=redirects, through=through,
        )  # fmt: skip
        self._thumbnails = Thumbnails(self._content, maker)
        self._api = Api(pool, hides_redacted=hides_redacted)
        self._listing = Listing(pool, hides_redacted=hides_redacted)
        self._polls = Polls(pool, hides_redacted=hides_redacted)
        self._rooms = Rooms(pool, self._content, policy, hides_redacted=hides_redacted)
        self._people = People(pool, self._content, hides_redacted=hides_redacted)
        self._events = Events(pool, hides_redacted=hides_redacted)
        self._statistics = Statistics(pool)
        self._figures = Figures(pool) if counts else None
        self._health = Health(pool, store)

    def application(self) -> web.Application:
        """To be run without an access log: `/metrics` counts, and paths are private."""
        door = self._authenticator.only_readers
        app = web.Application(middlewares=[answer_errors, door, self._limits.within_limits])
        app[READINGS] = self._readings
        routes = {
            f"/_matrix/client/v1/media/download/{MEDIA}{NAME}": self._content.get,
            f"/api/media/download/{MEDIA}{NAME}": self._content.get,
            f"/api/v1/media/{MEDIA}/content{SLASH}": self._content.get,
            f"/_matrix/client/v1/media/thumbnail/{MEDIA}{SLASH}": self._thumbnails.thumbnail,
            f"/_matrix/client/v1/media/config{SLASH}": media_config.get,
            f"/api/media/thumbnail/{MEDIA}{SLASH}": self._thumbnails.thumbnail,
            f"/api/v1/media/{MEDIA}/variant{SLASH}": self._thumbnails.variant,
            f"/api/v1/media/{MEDIA}{SLASH}": self._api.media,
            f"/api/v1/media{SLASH}": self._listing.page,
            r"/api/v1/polls/{event_id:[\s\S]+}": self._polls.get,
            f"/api/v1/polls{SLASH}": self._polls.page,
            f"/api/v1/rooms{SLASH}": self._rooms.page,
            "/api/v1/rooms/{room_id}/avatar": self._rooms.avatar,
            f"/api/v1/rooms/{{room_id}}{SLASH}": self._rooms.get,
            "/api/v1/users/{user_id}/avatar": self._people.avatar,
            f"/api/v1/users/{{user_id}}{SLASH}": self._people.get,
            # Of old, an event id may hold a slash, and not everybody encodes it.
            r"/api/v1/events/{event_id:[\s\S]+}": self._events.get,
            f"/api/v1/reads{SLASH}": self._reads.page,
            "/api/v1/stats": self._statistics.all,
            f"/api/v1/stats/{GROUP}": self._statistics.grouped,
            "/api/v1/openapi.json": openapi.get,
            OPEN: self._health.alive,
            "/readyz": self._health.ready,
            "/metrics": self._health.metrics,
        }
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        app.router.add_post(f"/api/v1/media/{MEDIA}/sign{SLASH}", self._sign.post)
        app.cleanup_ctx.append(self._keep_usage)
        if self._figures is not None:
            app.cleanup_ctx.append(partial(self._keep_figures, self._figures))
        return app

    async def _keep_usage(self, _app: web.Application) -> AsyncIterator[None]:
        kept = (self._usage.run(), self._readings.run(), self._readings.tidy())
        tasks = [asyncio.create_task(keeping) for keeping in kept]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await self._usage.flush()
        await self._readings.flush()

    async def _keep_figures(self, figures: Figures, _app: web.Application) -> AsyncIterator[None]:
        counting = asyncio.create_task(figures.run())
        yield
        counting.cancel()
        await asyncio.wait([counting])
