"""A homeserver that hands out media over real HTTP, and misbehaves as it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from archiver.fetch.download import AUTHENTICATED, LEGACY
from archiver.model import Mxc
from tests.support.process import LOOPBACK, free_port

SERVER_NAME = "archive.test"
TOKEN = "the-as-token"
BOT = f"@archiver:{SERVER_NAME}"
PIECE = 64 * 1024

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def mxc(media_id: str) -> Mxc:
    """A media of this homeserver."""
    return Mxc(SERVER_NAME, media_id)


@dataclass(frozen=True)
class Seen:
    """A request: `target` byte for byte; `client` tells one TCP connection from another."""

    path: str
    target: str
    query: dict[str, str]
    headers: Mapping[str, str]
    client: object


class Homeserver:
    """Answers downloads as told; what it was not told about is `M_NOT_FOUND`.

    It keeps its port while it is stopped. `sent` counts the bytes of bodies that it wrote.
    """

    def __init__(self, *, authenticated: bool = True) -> None:
        """Without `authenticated` it is one from before Matrix 1.11."""
        self.url = f"http://{LOOPBACK}:{free_port()}"
        self.seen: list[Seen] = []
        self.sent = 0
        self.authenticated = authenticated
        self._answers: dict[str, list[Answer]] = {}
        self._default: Answer = error(404, "M_NOT_FOUND")
        self._runner: web.AppRunner | None = None

    def give(self, media: Mxc | str, *answers: Answer | bytes) -> None:
        """The next requests for a media get these answers in turn, the last one from then on.

        A text is a path outside the media endpoints.
        """
        key = f"/{media.server_name}/{media.media_id}" if isinstance(media, Mxc) else media
        self._answers[key] = [body(a) if isinstance(a, bytes) else a for a in answers]

    def give_everything(self, answer: Answer) -> None:
        """The answer for every media that has none of its own."""
        self._default = answer

    @property
    def downloads(self) -> list[Seen]:
        """What was asked of it, as far as it was media."""
        return [seen for seen in self.seen if "/media/" in seen.path]

    def asked(self, media: Mxc) -> int:
        """How often a media was asked for."""
        end = f"/{media.server_name}/{media.media_id}"
        return sum(seen.path.endswith(end) for seen in self.seen)

    async def start(self) -> None:
        """Returns when it answers."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        port = int(self.url.rpartition(":")[2])
        await web.TCPSite(self._runner, LOOPBACK, port, reuse_address=True).start()

    async def stop(self) -> None:
        """Cuts every connection; nothing answers afterwards."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Homeserver:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        self.seen.append(
            Seen(request.path, request.raw_path, dict(request.query), request.headers, peer)
        )
        for endpoint in (AUTHENTICATED, LEGACY):
            if request.path.startswith(f"/{endpoint}/"):
                return await self._download(request, endpoint)
        return await self._next(request.path)(request)

    async def _download(self, request: web.Request, endpoint: str) -> web.StreamResponse:
        if (endpoint == AUTHENTICATED) is not self.authenticated:
            errcode = "M_NOT_FOUND" if self.authenticated else "M_UNRECOGNIZED"
            return await error(404, errcode)(request)
        if self.authenticated and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return await error(401, "M_UNKNOWN_TOKEN")(request)
        return await self._next(request.path.removeprefix(f"/{endpoint}"))(request)

    def _next(self, key: str) -> Answer:
        answers = self._answers.get(key)
        if answers is None:
            return self._default
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def endless(self, announced: int, status: int = 200) -> Answer:
        """As many zeros as announced, as fast as they are taken; counted in `sent`."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(status=status)
            response.content_length = announced
            await response.prepare(request)
            rest = announced
            while rest:
                piece = bytes(min(PIECE, rest))
                await response.write(piece)
                self.sent += len(piece)
                rest -= len(piece)
            return response

        return answer


def body(data: bytes, content_type: str = "image/png", **headers: str) -> Answer:
    """200 with the whole body and its length. Underscores in `headers` are hyphens."""

    async def answer(_request: web.Request) -> web.Response:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=data, headers={"Content-Type": content_type, **fields})

    return answer


def chunked(data: bytes, pause: float = 0, piece: int = 1000, status: int = 200) -> Answer:
    """A body without a length, in pieces that may take their time."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for start in range(0, len(data), piece):
            await response.write(data[start : start + piece])
            await asyncio.sleep(pause)
        return response

    return answer


def cut_off(data: bytes, announced: int | None) -> Answer:
    """200 that announces a length (or chunks: None), sends `data` and cuts the connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = announced
        await response.prepare(request)
        await response.write(data)
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


def held(until: asyncio.Event, data: bytes, left: asyncio.Event | None = None) -> Answer:
    """200 whose body comes only after `until` is set; `left` is set when nobody waits any more."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(data)
        await response.prepare(request)
        while not until.is_set():
            if request.transport is None or request.transport.is_closing():
                if left is not None:
                    left.set()
                return response
            await asyncio.sleep(0.005)
        await response.write(data)
        return response

    return answer


def error(
    status: int, errcode: str | None, *, headers: Mapping[str, str] | None = None, **fields: Any
) -> Answer:
    """A Matrix error."""

    async def answer(_request: web.Request) -> web.Response:
        refusal = {"errcode": errcode, "error": "as the test wants it", **fields}
        return web.json_response(refusal, status=status, headers=headers)

    return answer


def plain(status: int, data: bytes, content_type: str = "text/html", **headers: str) -> Answer:
    """What something that is no homeserver says."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = await body(data, content_type, **headers)(request)
        response.set_status(status)
        return response

    return answer


def redirect(status: int, location: str | None) -> Answer:
    """A redirect, to nowhere for None."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": location} if location else {})

    return answer


def raw(data: bytes) -> Answer:
    """Bytes as they are, instead of HTTP; then the connection is closed."""

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(data)
        request.transport.close()
        return web.Response()

    return answer
