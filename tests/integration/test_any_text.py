"""Whatever people write where the bot hears it: it is dealt with, and the bot answers no bot."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from archiver.capture.policy import CapturePolicy
from archiver.config import Config
from archiver.control.asked import Means
from archiver.control.outcome import FAULT
from archiver.control.registry import COMMANDS
from archiver.control.room import ControlRoom
from archiver.intake.summons import summoned
from archiver.intake.transactions import Intake
from archiver.matrix.history import History
from archiver.matrix.registration import Registration
from archiver.matrix.speech import Speech
from tests.support.serving import Archive

SERVER = "archive.test"
BOT, ANN, EVE = (f"@{name}:{SERVER}" for name in ("archiver", "ann", "eve"))
ROOM, ELSEWHERE = f"!control:{SERVER}", f"!garden:{SERVER}"
PREFIX = "!archive"
TOKEN = "the-hs-token"
CAT = f"mxc://{SERVER}/cat"
LAST = "the bot's last message"
WAITING = "SELECT event_id FROM inbox WHERE due_at IS NOT NULL"
# No TRUNCATE, which locks whole tables: the bot looks at them all the time, in another order.
FORGET = """
DELETE FROM inbox; DELETE FROM reference; DELETE FROM event; DELETE FROM media; DELETE FROM hold;
"""
LARGEST_EVENT = 65_536
AT_ONCE = 20
DEADLINE_SECONDS = 30

Event = dict[str, Any]


class Homeserver:
    """Hears what the bot says, in one room that it is in. While it `refuses`, it takes nothing."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, Event]] = []
        self.refuses = False
        self._txns: dict[str, str] = {}
        self._last = "$none"

    def application(self) -> web.Application:
        """Answers on every path."""
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    def answered(self, event_id: str) -> bool:
        """True when the bot said or put something about an event."""
        return any(json.dumps(event_id) in json.dumps(content) for _, _, content in self.said)

    @property
    def last_message(self) -> str:
        """The id of what the bot said last."""
        return self._last

    def forget(self) -> None:
        """Nothing was said yet."""
        self.said.clear()
        self._txns.clear()

    async def _answer(self, request: web.Request) -> web.Response:
        path = [unquote(part) for part in request.path.split("/")]
        body = await request.read()
        if request.method == "PUT" and "send" in path:
            return self._sent(path, body)
        known: dict[str, Any] = {
            "joined_rooms": {"joined_rooms": [ROOM]},
            "createRoom": {"room_id": f"!direct:{SERVER}"},
            "members": {"chunk": []},
            "upload": {"content_uri": f"mxc://{SERVER}/copy"},
            "m.room.power_levels": {"users": {ANN: 100}},
            "versions": {"versions": ["v1.11"]},
        }
        if path[-1] in known or request.method != "GET":
            return web.json_response(known.get(path[-1], {}))
        return web.json_response({"errcode": "M_NOT_FOUND", "error": "no"}, status=404)

    def _sent(self, path: list[str], body: bytes) -> web.Response:
        content = orjson.loads(body)
        room_id, kind, txn = path[-4], path[-2], path[-1]
        if self.refuses or len(body) > LARGEST_EVENT:
            return web.json_response({"errcode": "M_FORBIDDEN", "error": "no"}, status=403)
        if txn not in self._txns:
            self._txns[txn] = f"$bot{len(self._txns)}"
            self.said.append((room_id, kind, content))
            if kind == "m.room.message" and "m.new_content" not in content:
                self._last = self._txns[txn]
        return web.json_response({"event_id": self._txns[txn]})


class Room:
    """A control room that runs, and the door at which a homeserver pushes to it."""

    def __init__(
        self, archive: Archive, homeserver: Homeserver, door: TestServer, bot: ControlRoom
    ) -> None:
        self.homeserver = homeserver
        self._archive, self._door, self._bot = archive, door, bot
        self._txns = itertools.count()

    async def push(self, session: aiohttp.ClientSession, events: list[Any]) -> None:
        """Pushes events, and waits until all of them are dealt with; what takes long is
        cancelled. Raises TimeoutError."""
        url = self._door.make_url(f"/_matrix/app/v1/transactions/{next(self._txns)}")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        body = io.BytesIO(json.dumps({"events": events}).encode())  # sent in pieces
        async with session.put(url, data=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
        self._bot.wake()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while waiting := await self._archive.pool.fetch(WAITING):
                for row in waiting:
                    self._bot.cancel(row["event_id"])
                await asyncio.sleep(0.002)

    async def echo(self, session: aiohttp.ClientSession) -> None:
        """The homeserver tells of what the bot said, and somebody who commands repeats it."""
        said = list(self.homeserver.said)
        events = [
            {"type": kind, "room_id": room_id, "content": content, "event_id": f"{sender}{n}"}
            | {"sender": sender}
            for n, (room_id, kind, content) in enumerate(said)
            for sender in (BOT, ANN)
            if sender == BOT or kind == "m.room.message"
        ]
        await self.push(session, events)
        assert self.homeserver.said == said

    async def forget(self) -> None:
        """Nothing was said yet, and one picture was posted."""
        self.homeserver.forget()
        await self._archive.pool.execute(FORGET)
        content = {"msgtype": "m.image", "body": "cat.png", "url": CAT}
        event = {"event_id": "$event", "room_id": ROOM, "sender": EVE, "type": "m.room.message"}
        await self._archive.record({**event, "origin_server_ts": 1, "content": content})


@asynccontextmanager
async def control_room(archive: Archive, session: aiohttp.ClientSession) -> AsyncIterator[Room]:
    """The control room of an archive, at a homeserver of its own."""
    homeserver = Homeserver()
    away = TestServer(homeserver.application())
    await away.start_server()
    url = str(away.make_url("")).rstrip("/")
    config = Config.model_validate(
        {
            "homeserver": {"url": url, "server_name": SERVER},
            "storage": {"spool": str(archive.folder / "spool")},
            "bot": {"control_room": ROOM, "admins": [ANN], "prefix": PREFIX},
        }
    )
    registration = Registration("archiver", "the-as-token", TOKEN, BOT, f"@_archiver:{SERVER}")
    policy = CapturePolicy(SERVER, bot=BOT)
    history = History(session, url, registration.as_token, BOT)
    speech = Speech(session, url, registration)
    bot = ControlRoom(
        Means(config, archive.pool, archive.store, history, speech, policy),
        COMMANDS,
        timedelta(seconds=DEADLINE_SECONDS),
    )
    door = TestServer(Intake(archive.pool, TOKEN, BOT, PREFIX, policy).application())
    await door.start_server()
    running = asyncio.create_task(bot.run())
    try:
        yield Room(archive, homeserver, door, bot)
        assert not running.done(), running
    finally:
        running.cancel()
        await asyncio.wait([running])
        await door.close()
        await away.close()


TEXTS = st.text(st.characters(exclude_categories=[]), max_size=8) | st.sampled_from(
    ["\0", "\ud800", "\u202e", '[]{}\\"', "$id", "x" * 300]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXTS
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
NAMES = st.sampled_from([one.name for one in COMMANDS])
WORDS = st.sampled_from(sorted({word for one in COMMANDS for word in one.name.split()}))
ODD = (
    "\0", "a\0b", "\u202e", CAT,
    "mxc://other.example/" + "b" * 200, "$event", ROOM, ANN, BOT,
    f"#garden:{SERVER}", f"https://matrix.to/#/{ROOM}/$event?via={SERVER}", "matrix:u/ann:a",
    "https://matrix.to/#/%00", "matrix:roomid/%FF/e/x", "--all", "—all", "--scope", "--scope=read",
    "--expires", "--since", "--until", "--json", "--help", "30d", "999999999d", "0.0001s",
    "2026-05-31", "0001-01-01", "9999-12-31T23:59-23:59", "all", "failed", "room", "user:",
    "type:", "since:30d", "since:9999999d", "user:@ann", "room:#",
    "'a b'", "“a b”", '"', "-", "--", "%", "%s", "\\",
)  # fmt: skip
ARGUMENTS = TEXTS | WORDS | st.sampled_from(ODD)
FORMS_OF_ODD = {
    "hold": (f"{CAT} …",),
    "quarantine": (f"{CAT} …",),
    "backfill": (f"{ROOM} --since …", f"{ROOM} --until …"),
    "token create": ("… --scope read", "name --scope read --expires …"),
    "find": ("user …", "user:…", "type:…", "since:…", "room:…"),
}
TOO_LONG = ("x" * 30_000, "mxc://a/" + "b" * 30_000, f"{ANN} {'y' * 30_000}", "-" * 30_000)
PREFIXES = st.sampled_from([PREFIX] * 4 + ["!Archive", f" {PREFIX}\n", f"{PREFIX}s", ""])


SENSIBLE = st.sampled_from([
    *(f"{PREFIX} {name} {target}" for name in ("delete", "quarantine", "release", "show", "unhold")
      for target in (CAT, ROOM, EVE, "$event")),
    f"{PREFIX} hold {CAT} evidence", f"{PREFIX} retry {CAT}", f"{PREFIX} verify --all",
    f"{PREFIX} backfill {ROOM}", f"{PREFIX} reconcile {ROOM}", f"{PREFIX} find cat",
])  # fmt: skip


@st.composite
def lines(draw: st.DrawFn) -> str:
    """Commands as people may give them, some of them longer than anybody reads."""
    words = draw(st.lists(ARGUMENTS, max_size=4)) * draw(st.sampled_from([1] * 9 + [3000]))
    names = draw(st.integers(1, 10).flatmap(lambda n: WORDS | TEXTS if n == 7 else NAMES))
    return " ".join([draw(PREFIXES), names, *words])[:20_000]


def mostly(usual: st.SearchStrategy[Any], other: st.SearchStrategy[Any] = JSON) -> Any:
    """One in ten is another."""
    return st.integers(1, 10).flatmap(lambda n: other if n == 7 else usual)


RELATIONS = st.fixed_dictionaries(
    {
        "rel_type": st.sampled_from(["m.annotation", "m.thread", "m.replace"]),
        "event_id": mostly(st.just(LAST), st.just("$e0") | JSON),
        "key": mostly(st.sampled_from(["✅", "❌", "✅\ufe0f"])),
    },
    optional={"m.in_reply_to": JSON},
)
MESSAGES = st.fixed_dictionaries(
    {
        "msgtype": mostly(st.just("m.text"), st.just("m.notice") | JSON),
        "body": SENSIBLE | mostly(lines()),
    },
    optional={"m.relates_to": mostly(RELATIONS), "formatted_body": JSON, "m.mentions": JSON},
)
ANSWERS = st.fixed_dictionaries({"m.relates_to": mostly(RELATIONS)})
STATES = st.sampled_from(["invite", "join", "leave", "ban", "knock"])
MEMBERSHIPS = st.fixed_dictionaries({"membership": mostly(STATES)})
FORMS = {"m.room.message": MESSAGES, "m.reaction": ANSWERS, "m.room.member": MEMBERSHIPS}


@st.composite
def events(draw: st.DrawFn) -> Event:
    """What concerns the bot, or looks as if it did."""
    kind = draw(st.sampled_from(["m.room.message", "m.reaction", *FORMS]))
    event = {
        "type": draw(mostly(st.just(kind))),
        "room_id": draw(mostly(st.just(ROOM), st.just(ELSEWHERE) | JSON)),
        "sender": draw(mostly(st.just(ANN), st.sampled_from([EVE, BOT]) | JSON)),
        "content": draw(mostly(FORMS[kind])),
    }
    if kind == "m.room.member":
        event["state_key"] = draw(mostly(st.just(BOT)))
    return event


PUSHES = st.lists(st.lists(mostly(events()), min_size=1, max_size=3), min_size=2, max_size=5)


def is_command(event: Any) -> bool:
    """True for what somebody who may command says to the bot in the control room."""
    if not isinstance(event, dict) or (event.get("room_id"), event.get("sender")) != (ROOM, ANN):
        return False
    return event.get("type") == "m.room.message" and bool(summoned([event], PREFIX, BOT))


async def test_no_text_can_stop_the_bot(archive: Archive, http: aiohttp.ClientSession) -> None:
    """Whatever is pushed is taken and dealt with in time, without an error that nobody foresaw;
    every command is answered, and nothing that the bot says is taken for one."""
    loop = asyncio.get_running_loop()

    async def converse(room: Room, pushes: list[list[Any]], refuses: bool) -> None:
        await room.forget()
        room.homeserver.refuses = refuses
        numbers = itertools.count()
        with capture_logs() as logs:
            for drawn in pushes:
                named = named_anew(drawn, numbers, room.homeserver.last_message)
                await room.push(http, named)
                commands = [event["event_id"] for event in named if is_command(event)]
                unanswered = [one for one in commands if not room.homeserver.answered(one)]
                assert refuses or not unanswered
            await room.echo(http)
        assert not at_fault(logs, room)

    async with control_room(archive, http) as room:

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
        @given(PUSHES, st.sampled_from("✅❌"), st.sampled_from([False] * 4 + [True]))
        def check(pushes: list[list[Any]], sign: str, refuses: bool) -> None:
            relation = {"rel_type": "m.annotation", "event_id": LAST, "key": sign}
            answer = {"type": "m.reaction", "content": {"m.relates_to": relation}}
            all_pushes = [*pushes, [{**answer, "room_id": ROOM, "sender": ANN}]]
            asyncio.run_coroutine_threadsafe(converse(room, all_pushes, refuses), loop).result()

        await asyncio.to_thread(check)


@pytest.mark.parametrize("name", [one.name for one in COMMANDS])
async def test_no_argument_can_stop_a_command(
    archive: Archive, http: aiohttp.ClientSession, name: str
) -> None:
    """Each is answered whatever it is given, whether it works or not, and is at fault never."""
    forms = ("…", *FORMS_OF_ODD.get(name, ()))
    givens = ["", *TOO_LONG, *(form.replace("…", odd) for odd in ODD for form in forms)]
    bodies = [f"{PREFIX} {name} {given}" for given in givens]
    async with control_room(archive, http) as room:
        await room.forget()
        with capture_logs() as logs:
            pushed = [
                {"type": "m.room.message", "room_id": ROOM, "sender": ANN, "event_id": f"$e{n}"}
                | {"content": {"msgtype": "m.text", "body": body}}
                for n, body in enumerate(bodies)
            ]
            for some in batched(pushed, AT_ONCE):
                await room.push(http, some)
            unanswered = [e for e in pushed if not room.homeserver.answered(str(e["event_id"]))]
            assert not unanswered
        assert not at_fault(logs, room)


def batched(events: list[Event], size: int) -> Iterator[list[Event]]:
    """The events, so many at a time."""
    yield from (events[n : n + size] for n in range(0, len(events), size))


def at_fault(logs: list[MutableMapping[str, Any]], room: Room) -> list[object]:
    """What was logged or said about an error that nobody foresaw."""
    said = [content for _, _, content in room.homeserver.said if FAULT in json.dumps(content)]
    return [*said, *(entry for entry in logs if entry["log_level"] in ("error", "critical"))]


def named_anew(drawn: list[Any], numbers: Iterator[int], last: str) -> list[Any]:
    """The events with ids of their own, and LAST as what it stands for."""
    found = json.loads(json.dumps(drawn).replace(json.dumps(LAST), json.dumps(last)))
    for event in found:
        if isinstance(event, dict):
            event.setdefault("event_id", f"$e{next(numbers)}")
    return list(found)
