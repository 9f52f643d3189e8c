"""Pictures of media: thumbnails as Matrix has them, and variants for our own pages.

https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv1mediathumbnailservernamemediaid
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from aiohttp import web

from archiver.catalogue import variants
from archiver.catalogue.variants import View
from archiver.errors import InvalidParam, MissingParam
from archiver.imaging.recipe import Format, Method, Recipe
from archiver.model import Blob
from archiver.serve.asking import asked_for, sees_hidden
from archiver.serve.content import Content, etag_of
from archiver.serve.database import answering
from archiver.serve.headers import media_headers, shown_as
from archiver.serve.hot import Entry
from archiver.variants.maker import Made, Maker, check_kind, refusal_of
from archiver.variants.recipes import QUALITY, name_of, thumbnail, variant

METHODS = {"scale": Method.SCALE, "crop": Method.CROP}
OUR_METHODS = {"fit": Method.FIT, **METHODS}
FORMATS = {kind.name.lower(): kind for kind in (Format.WEBP, Format.AVIF, Format.JPEG, Format.PNG)}
_MOST_DIGITS = 9

T = TypeVar("T")


class Thumbnails:
    """Answers with pictures that are kept, or makes them; who may see what is `Content`'s say."""

    def __init__(self, content: Content, maker: Maker) -> None:
        self._content = content
        self._maker = maker

    async def thumbnail(self, request: web.Request) -> web.StreamResponse:
        """GET or HEAD as the specification has it. `timeout_ms` is about media that is still on
        its way: making a picture does not take so long."""
        method = _choice(request, "method", METHODS, "scale")
        width, height = _number(request, "width"), _number(request, "height")
        make = partial(thumbnail, method, width, height)
        return await self._send(request, make(animated=False), make(animated=_moves(request)))

    async def variant(self, request: web.Request) -> web.StreamResponse:
        """GET or HEAD of our own: also AVIF, any quality, and `fit`, never larger than asked."""
        method = _choice(request, "method", OUR_METHODS, "fit")
        width = _number(request, "width")
        height = _number(request, "height", width)
        kind = _choice(request, "format", FORMATS, "webp")
        make = partial(variant, method, width, height, kind, _number(request, "quality", QUALITY))
        return await self._send(request, make(animated=False), make(animated=_moves(request)))

    async def _send(
        self, request: web.Request, still: Recipe, moving: Recipe
    ) -> web.StreamResponse:
        mxc, hot = asked_for(request), self._content.hot
        names = name_of(still), name_of(moving)
        kept = None if sees_hidden(request) else hot.get(mxc, *names)
        if kept is not None:
            return await self._content.give(request, mxc, *kept, hidden=False, hot=True)
        before = hot.changes
        view, blob = await self._content.find(
            request,
            mxc,
            lambda conn, hides: variants.look(
                conn,
                mxc,
                hides,
                still=names[0],
                moving=names[1],
                with_data=request.method == "GET",
            ),
        )
        if view.made is not None:
            made, data, cache = view.made, view.data, "HIT"
        else:
            recipe = moving if blob.facts.mimetype in variants.MOVING else still
            (made, data), cache = await self._make(view, blob, recipe), "MISS"
        kind = made.facts.mimetype
        name = f"thumbnail.{str(kind).rpartition('/')[2]}"
        headers = media_headers(etag_of(made), shown_as(None, kind), name)
        headers["X-Cache"] = cache
        if view.data is not None and self._content.is_for_all(request, view):
            hot.put(before, Entry(made, view.data, headers), mxc, *names)
        hidden = self._content.is_hidden(view)
        return await self._content.give(request, mxc, made, data, headers, hidden=hidden)

    async def _make(self, view: View, blob: Blob, recipe: Recipe) -> Made:
        check_kind(blob)
        if view.refused and view.processing != "pending":
            raise refusal_of(view.refused)
        async with answering():
            return await self._maker.make(blob, recipe)


def _number(request: web.Request, name: str, otherwise: int | None = None) -> int:
    value = request.query.get(name)
    if value is None:
        if otherwise is None:
            raise MissingParam(f"{name} is missing: a number of pixels")
        return otherwise
    if not (value.isascii() and value.isdecimal() and len(value) <= _MOST_DIGITS):
        raise InvalidParam(f"{name} must be a whole number")
    return int(value)


def _choice(request: web.Request, name: str, choices: dict[str, T], otherwise: str) -> T:
    chosen = choices.get(request.query.get(name, otherwise))
    if chosen is None:
        raise InvalidParam(f"{name} must be one of: {', '.join(choices)}")
    return chosen


def _moves(request: web.Request) -> bool:
    return _choice(request, "animated", {"false": False, "true": True}, "false")
