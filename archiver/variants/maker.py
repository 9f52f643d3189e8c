"""Makes one picture of a blob in a helper process, and keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import asyncpg

from archiver import metrics
from archiver.catalogue import garbage, queue, variants
from archiver.catalogue.variants import FOOTAGE, PICTURES
from archiver.db.pool import Pool
from archiver.errors import (
    BlobMissing,
    CannotRender,
    LimitExceeded,
    NotAnImage,
    RenderingBroke,
    TooLargeToRender,
)
from archiver.imaging.recipe import STANDARD, Recipe
from archiver.imaging.renderer import Renderer, Source
from archiver.imaging.wire import Rendered
from archiver.model import Blob, Facts, Place
from archiver.store.base import MIB
from archiver.store.hybrid import HybridStore
from archiver.store.spool import Spool, SpooledBody
from archiver.variants.recipes import MOST_KEPT, STANDARD_NAMES, name_of

MOST_WAITING = 256
TOO_LARGE = "too large: "
NO_FILMS = "of films and sound no pictures are made here: the archive lacks the package av"


class Made(NamedTuple):
    """A picture, and the blob that it is."""

    blob: Blob
    data: bytes


class Maker:
    """`renderer` is shared by all who want pictures in this process."""

    def __init__(
        self, pool: Pool, store: HybridStore, spool: Spool, renderer: Renderer, at_once: int
    ) -> None:
        """`at_once`: of how many pictures that are asked for the sources are fetched at a time."""
        self.renderer = renderer
        self._places = asyncio.Semaphore(at_once)
        self._pool = pool
        self._store = store
        self._spool = spool
        self._making: dict[tuple[bytes, str], asyncio.Task[Made]] = {}

    async def make(self, blob: Blob, recipe: Recipe) -> Made:
        """The picture by this recipe, kept if there is room; who asks meanwhile gets the same.

        Raises what `Renderer` does, BlobMissing, StoreUnavailable, and what asyncpg does.
        """
        key = blob.sha256, name_of(recipe)
        task = self._making.get(key)
        if task is None:
            if len(self._making) >= MOST_WAITING:
                raise LimitExceeded("too many pictures are being made: try again soon", 1.0)
            task = self._making[key] = asyncio.create_task(self._make(blob, recipe))
            task.add_done_callback(partial(self._ended, key))
        return await asyncio.shield(task)

    @asynccontextmanager
    async def opened(self, blob: Blob) -> AsyncIterator[Source]:
        """The blob as a helper can read it: never more than a MiB of it is in memory."""
        if file := await self._store.open_file(blob):
            with file:
                yield file
            return
        async with self._spool.body(blob.size) as body:
            async with aclosing(self._store.read(blob)) as chunks:
                async for chunk in chunks:
                    await body.write(chunk)
            if await body.finish() != blob.sha256:
                raise BlobMissing(f"blob {blob.sha256.hex()} is not what it was")
            yield body if body.data is None else body.data

    async def render(self, blob: Blob, source: Source, recipe: Recipe) -> Rendered:
        """A picture of the blob that `source` holds."""
        if blob.facts.mimetype in PICTURES:
            return await self.renderer.render(source, recipe)
        return await self.renderer.poster(source, recipe)

    async def keep(self, source: bytes, recipe: Recipe, made: Rendered) -> Blob:
        """Keeps a picture as a variant of `source`; the blob that it is, whether kept or not.

        It is not kept where there are too many, or when its source was deleted meanwhile.
        """
        facts = Facts(made.mimetype, made.width, made.height)
        async with self._spool.body(len(made.data)) as body:
            await body.write(made.data)
            await body.finish()
            blob = Blob(body.sha256, body.size, self._store.place_for(body.size), facts)
            if await self._record(source, recipe, blob, body):
                metrics.VARIANTS_KEPT.inc()
        return blob

    async def close(self) -> None:
        """Gives up what is being made."""
        for task in self._making.values():
            task.cancel()
        if self._making:
            await asyncio.wait(self._making.values())

    async def _make(self, blob: Blob, recipe: Recipe) -> Made:
        check_kind(blob)
        try:
            async with self._places, self.opened(blob) as source:
                rendered = await self.render(blob, source, recipe)
        except RenderingBroke:
            raise
        except (CannotRender, TooLargeToRender) as error:
            if name_of(recipe) in STANDARD_NAMES:  # then no other size will do either
                async with self._pool.acquire() as conn:
                    await variants.refuse(conn, blob.sha256, reason_of(error))
            raise
        return Made(await self.keep(blob.sha256, recipe, rendered), rendered.data)

    async def _record(self, source: bytes, recipe: Recipe, blob: Blob, body: SpooledBody) -> bool:
        """The bytes first, the rows then: as archiving does it."""
        name = name_of(recipe)
        most = MOST_KEPT + (len(STANDARD) if name in STANDARD_NAMES else 0)
        is_object = blob.place is Place.OBJECT
        known = is_object and await self._is_known(blob)
        inline = None if known else await self._store.settle(body)
        async with self._pool.acquire() as conn:
            try:
                kept = await variants.keep(conn, source, name, blob, inline, most)
            except asyncpg.ForeignKeyViolationError:  # deleted between our look and our commit
                kept = False
            if is_object and not kept:
                await garbage.discard(conn, blob.sha256)
        return kept

    async def _is_known(self, blob: Blob) -> bool:
        async with self._pool.acquire() as conn:
            return await queue.is_known(conn, blob.sha256)

    def _ended(self, key: tuple[bytes, str], task: asyncio.Task[Made]) -> None:
        del self._making[key]
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would report it when nobody waits any more


@asynccontextmanager
async def open_maker(
    pool: Pool, store: HybridStore, spool: Path, helpers: int
) -> AsyncIterator[Maker]:
    """A maker with so many `helpers`, and `spool` as its folder for sources over a MiB."""
    spool.mkdir(parents=True, exist_ok=True)
    async with Renderer(helpers) as renderer:
        maker = Maker(pool, store, Spool(spool, MIB), renderer, 2 * helpers)
        try:
            yield maker
        finally:
            await maker.close()


def check_kind(blob: Blob) -> None:
    """Raises NotAnImage for what no picture is made of, and CannotRender for films without av."""
    kind = blob.facts.mimetype
    if kind in FOOTAGE and not can_films():
        raise CannotRender(NO_FILMS)
    if kind not in PICTURES | FOOTAGE:
        raise NotAnImage(f"no picture is made of {kind or 'what has no magic number of ours'}")


def can_films() -> bool:
    """Whether the extra `video` is installed; nothing is imported for the answer."""
    return find_spec("av") is not None


def reason_of(error: CannotRender | TooLargeToRender) -> str:
    """Why there is no picture, as it is recorded."""
    return f"{TOO_LARGE}{error}" if isinstance(error, TooLargeToRender) else str(error)


def refusal_of(reason: str) -> CannotRender | TooLargeToRender:
    """The error behind a recorded reason."""
    if reason.startswith(TOO_LARGE):
        return TooLargeToRender(reason.removeprefix(TOO_LARGE))
    return CannotRender(reason)
