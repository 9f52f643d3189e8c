"""A homeserver on which our bot joins rooms and speaks, over HTTP; it misbehaves on demand."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote

from aiohttp import web

from tests.support.homeserver import SERVER_NAME
from tests.support.process import LOOPBACK, free_port

Content = dict[str, Any]


class Said(NamedTuple):
    """An event that the bot sent."""

    event_id: str
    room_id: str
    kind: str
    content: Content
    txn: str

    @property
    def body(self) -> str:
        """What a message says; of an edit, what it says now."""
        content = self.content.get("m.new_content", self.content)
        return str(content.get("body", ""))

    @property
    def edits(self) -> str | None:
        """The message that this one takes the place of."""
        relation = self.content.get("m.relates_to", {})
        return relation["event_id"] if relation.get("rel_type") == "m.replace" else None

    @property
    def sign(self) -> tuple[str, str] | None:
        """A reaction: under which event, and what."""
        if self.kind != "m.reaction":
            return None
        relation = self.content["m.relates_to"]
        return relation["event_id"], relation["key"]


class Talk:
    """What the bot said is in `said`, each transaction once. While `away`, every answer is 502;
    `refuses` are rooms in which the bot may not speak; `deaf` is how often the next sends are
    carried out and answered with 502 all the same."""

    def __init__(self) -> None:
        self.url = f"http://{LOOPBACK}:{free_port()}"
        self.said: list[Said] = []
        self.joined: set[str] = set()
        self.joins = 0
        self.aliases: dict[str, str] = {}
        self.state: dict[tuple[str, str], Content] = {}
        self.members: dict[str, list[str]] = {}
        self.away = False
        self.asked_while_away = 0
        self.deaf = 0
        self.refuses: set[str] = set()
        self._account: dict[str, Content] = {}
        self._runner: web.AppRunner | None = None

    def messages(self, room_id: str | None = None) -> list[Said]:
        """The messages that the bot sent, without edits."""
        return [
            said
            for said in self.said
            if said.kind == "m.room.message"
            and said.edits is None
            and room_id in (None, said.room_id)
        ]

    def signs(self, event_id: str) -> list[str]:
        """What the bot put under an event."""
        return [said.sign[1] for said in self.said if said.sign and said.sign[0] == event_id]

    def edits(self, event_id: str) -> list[str]:
        """What took the place of a message, in turn."""
        return [said.body for said in self.said if said.edits == event_id]

    async def __aenter__(self) -> Talk:
        app = web.Application(middlewares=[self._misbehave])
        client = "/_matrix/client/v3"
        app.router.add_put(client + "/rooms/{room}/send/{kind}/{txn}", self._send)
        app.router.add_post(client + "/rooms/{room}/join", self._join)
        app.router.add_get(client + "/rooms/{room}/state/{kind}{rest:/?}", self._state)
        app.router.add_get(client + "/rooms/{room}/members", self._members)
        app.router.add_get(client + "/joined_rooms", self._joined)
        app.router.add_get(client + "/directory/room/{alias}", self._alias)
        app.router.add_post(client + "/createRoom", self._create)
        app.router.add_get(client + "/user/{user}/account_data/{kind}", self._read_account)
        app.router.add_put(client + "/user/{user}/account_data/{kind}", self._write_account)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, int(self.url.rpartition(":")[2])).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.away:
            self.asked_while_away += 1
            return _error(502, "M_UNKNOWN")
        answer: web.StreamResponse = await handler(request)
        if self.deaf and request.method == "PUT":
            self.deaf -= 1
            return _error(502, "M_UNKNOWN")
        return answer

    async def _send(self, request: web.Request) -> web.Response:
        room_id, kind, txn = (unquote(request.match_info[n]) for n in ("room", "kind", "txn"))
        if room_id not in self.joined or room_id in self.refuses:
            return _error(403, "M_FORBIDDEN")
        content = await request.json()
        for said in self.said:
            if said.txn == txn:
                return web.json_response({"event_id": said.event_id})
        said = Said(f"$said-{len(self.said)}", room_id, kind, content, txn)
        self.said.append(said)
        return web.json_response({"event_id": said.event_id})

    async def _join(self, request: web.Request) -> web.Response:
        self.joins += 1
        self.joined.add(request.match_info["room"])
        return web.json_response({"room_id": request.match_info["room"]})

    async def _state(self, request: web.Request) -> web.Response:
        content = self.state.get((request.match_info["room"], request.match_info["kind"]))
        return _error(404, "M_NOT_FOUND") if content is None else web.json_response(content)

    async def _members(self, request: web.Request) -> web.Response:
        members = self.members.get(request.match_info["room"], [])
        content = {"membership": "join"}
        return web.json_response(
            {"chunk": [{"state_key": m, "content": content} for m in members]}
        )

    async def _joined(self, _request: web.Request) -> web.Response:
        return web.json_response({"joined_rooms": sorted(self.joined)})

    async def _alias(self, request: web.Request) -> web.Response:
        room_id = self.aliases.get(request.match_info["alias"])
        if room_id is None:
            return _error(404, "M_NOT_FOUND")
        return web.json_response({"room_id": room_id, "servers": []})

    async def _create(self, request: web.Request) -> web.Response:
        await request.read()
        room_id = f"!made-{len(self.joined)}:{SERVER_NAME}"
        self.joined.add(room_id)
        return web.json_response({"room_id": room_id})

    async def _read_account(self, request: web.Request) -> web.Response:
        content = self._account.get(request.match_info["kind"])
        return _error(404, "M_NOT_FOUND") if content is None else web.json_response(content)

    async def _write_account(self, request: web.Request) -> web.Response:
        self._account[request.match_info["kind"]] = await request.json()
        return web.json_response({})


def _error(status: int, errcode: str) -> web.Response:
    return web.json_response({"errcode": errcode, "error": "as the test wants"}, status=status)
