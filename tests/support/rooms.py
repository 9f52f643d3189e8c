"""A homeserver that plays rooms with their history over real HTTP, as Synapse does it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiohttp import web

from tests.support.process import LOOPBACK, free_port

MOST_UPLOADED = 32 * 1024 * 1024

Event = dict[str, Any]


class Asked(NamedTuple):
    """A request for a page of a room."""

    room_id: str
    direction: str
    token: str | None
    limit: int


class Rooms:
    """Tokens are places in the order of a room, so an event that is delivered late can have its
    place before one that was handed out. It keeps its port while it is stopped."""

    def __init__(self) -> None:
        self.url = f"http://{LOOPBACK}:{free_port()}"
        self.asked: list[Asked] = []
        self.states_asked = 0
        self.admin = True
        self.refused: dict[str, tuple[int, str]] = {}
        self.forgotten: set[str] = set()
        self.aliases: dict[str, str] = {}
        self.uploads: list[bytes] = []
        self.takes_uploads = True
        self.close_connections = False
        self.versions_status = 200
        self.versions_asked = 0
        self.before: Callable[[Asked], Awaitable[object]] | None = None
        self._rooms: dict[str, list[tuple[float, Event]]] = {}
        self._runner: web.AppRunner | None = None

    def add(self, room_id: str, *events: Event, at: float | None = None) -> None:
        """Events at the end of a room, or all at an earlier place."""
        room = self._rooms.setdefault(room_id, [])
        for event in events:
            place = at if at is not None else (room[-1][0] + 1 if room else 1.0)
            room.append((place, {"room_id": room_id, **event}))
        room.sort(key=lambda placed: placed[0])

    def pages_of(self, room_id: str) -> list[Asked]:
        """The requests for a room."""
        return [asked for asked in self.asked if asked.room_id == room_id]

    async def start(self) -> None:
        """Returns when it answers."""
        app = web.Application(client_max_size=MOST_UPLOADED)
        admin, client = "/_synapse/admin/v1", "/_matrix/client/v3"
        app.router.add_get("/_matrix/client/versions", self._versions)
        app.router.add_get(admin + "/users/{user}/admin", self._is_admin)
        app.router.add_get(admin + "/rooms", self._list)
        app.router.add_get(client + "/joined_rooms", self._joined)
        app.router.add_get(client + "/directory/room/{alias}", self._room_of)
        app.router.add_post("/_matrix/media/v3/upload", self._upload)
        for face in (admin, client):
            app.router.add_get(face + "/rooms/{room}/messages", self._messages)
            app.router.add_get(face + "/rooms/{room}/state", self._state)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        port = int(self.url.rpartition(":")[2])
        await web.TCPSite(self._runner, LOOPBACK, port, reuse_address=True).start()

    async def stop(self) -> None:
        """Cuts every connection; nothing answers afterwards."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Rooms:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _versions(self, _request: web.Request) -> web.Response:
        self.versions_asked += 1
        headers = {"Connection": "close"} if self.close_connections else {}
        return web.json_response({"versions": []}, status=self.versions_status, headers=headers)

    async def _is_admin(self, _request: web.Request) -> web.Response:
        if self.admin:
            return web.json_response({"admin": True})
        return _error(403, "M_FORBIDDEN")

    async def _list(self, _request: web.Request) -> web.Response:
        return web.json_response({"rooms": [{"room_id": room_id} for room_id in self._rooms]})

    async def _joined(self, _request: web.Request) -> web.Response:
        return web.json_response({"joined_rooms": []})

    async def _room_of(self, request: web.Request) -> web.Response:
        room_id = self.aliases.get(request.match_info["alias"])
        return web.json_response({"room_id": room_id}) if room_id else _error(404, "M_NOT_FOUND")

    async def _upload(self, request: web.Request) -> web.Response:
        if not self.takes_uploads:
            return _error(403, "M_FORBIDDEN")
        self.uploads.append(await request.read())
        return web.json_response({"content_uri": f"mxc://homeserver.test/{len(self.uploads)}"})

    async def _state(self, request: web.Request) -> web.Response:
        self.states_asked += 1
        events = self._rooms.get(request.match_info["room"], [])
        return web.json_response({"state": [e for _, e in events if "state_key" in e]})

    async def _messages(self, request: web.Request) -> web.Response:
        query = request.query
        room_id, limit = request.match_info["room"], int(query["limit"])
        asked = Asked(room_id, query["dir"], query.get("from"), limit)
        self.asked.append(asked)
        if self.before is not None:
            await self.before(asked)
        if room_id in self.refused:
            return _error(*self.refused[room_id])
        if not self.admin:
            return _error(403, "M_FORBIDDEN")
        if asked.token in self.forgotten:
            return _error(400, "M_UNKNOWN")
        room = self._rooms.get(room_id)
        return _error(404, "M_NOT_FOUND") if room is None else _page(room, asked)


def _page(room: list[tuple[float, Event]], asked: Asked) -> web.Response:
    newest = room[-1][0] if room else 0.0
    if asked.direction == "b":
        start = newest + 0.001 if asked.token is None else float(asked.token[1:])
        found = [placed for placed in reversed(room) if placed[0] < start][: asked.limit]
        end = found[-1][0] if found else None
    else:
        start = float((asked.token or "t0")[1:])
        found = [placed for placed in room if placed[0] > start][: asked.limit]
        end = found[-1][0] + 0.001 if found else None
    answer: dict[str, Any] = {"chunk": [event for _, event in found], "start": f"t{start}"}
    if end is not None:
        answer["end"] = f"t{end}"
    return web.json_response(answer)


def _error(status: int, errcode: str) -> web.Response:
    return web.json_response({"errcode": errcode, "error": "as the test wants"}, status=status)


async def forever() -> None:
    """A request that is never answered."""
    await asyncio.Event().wait()
