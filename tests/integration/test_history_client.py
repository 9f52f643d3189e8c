"""Rooms are read as our bot and as nobody else, by the door that is open to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from archiver.base import http_session
from archiver.errors import (
    FetchFailed,
    HomeserverUnavailable,
    RateLimited,
    Retryable,
    RoomUnreadable,
)
from archiver.matrix.history import History
from tests.support.homeserver import (
    BOT,
    TOKEN,
    Answer,
    Homeserver,
    body,
    cut_off,
    error,
    plain,
    raw,
    redirect,
)

ADMIN, CLIENT, CLIENT_V1 = "/_synapse/admin/v1", "/_matrix/client/v3", "/_matrix/client/v1"
IS_ADMIN = f"{ADMIN}/users/{BOT}/admin"
MESSAGES = "/rooms/!a/messages"
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def answer(document: Any) -> Answer:
    return body(orjson.dumps(document), "application/json")


@pytest.fixture
async def homeserver() -> AsyncIterator[Homeserver]:
    """Its bot is no administrator."""
    async with Homeserver() as server:
        server.give(IS_ADMIN, error(403, "M_FORBIDDEN"))
        yield server


@pytest.fixture
async def history(homeserver: Homeserver) -> AsyncIterator[History]:
    async with http_session() as session:
        yield History(session, homeserver.url, TOKEN, BOT)


async def test_an_administrator_reads_by_the_admin_api(
    homeserver: Homeserver, history: History
) -> None:
    """As the bot, with the registration's token; whether it is one is asked once."""
    homeserver.give(IS_ADMIN, answer({"admin": True}))
    homeserver.give(ADMIN + MESSAGES, answer({"chunk": []}))
    assert await history.messages("!a", "b", None, 7) == b'{"chunk":[]}'
    assert await history.messages("!a", "f", "t1+2&x", 7) == b'{"chunk":[]}'
    asked, first, second = homeserver.seen
    assert asked.path == IS_ADMIN
    assert first.query == {"dir": "b", "limit": "7", "user_id": BOT}
    assert second.query == {"dir": "f", "limit": "7", "from": "t1+2&x", "user_id": BOT}
    assert {seen.headers["Authorization"] for seen in homeserver.seen} == {f"Bearer {TOKEN}"}


async def test_another_bot_reads_as_a_member(homeserver: Homeserver, history: History) -> None:
    """By the client API, in the rooms that it is in."""
    homeserver.give(f"{CLIENT}/joined_rooms", answer({"joined_rooms": ["!a", 7, "!b"]}))
    homeserver.give(CLIENT + MESSAGES, answer({"chunk": []}))
    assert await history.rooms() == ["!a", "!b"]
    assert await history.messages("!a", "b", None, 7) == b'{"chunk":[]}'


async def test_a_homeserver_without_admin_api_is_read_as_a_member(
    homeserver: Homeserver, history: History
) -> None:
    """As behind a proxy that lets nobody through to it."""
    homeserver.give(IS_ADMIN, error(404, "M_UNRECOGNIZED"))
    assert not await history.is_admin()


async def test_who_is_no_administrator_any_longer_reads_as_a_member(
    homeserver: Homeserver, history: History
) -> None:
    """At once, not when it is asked again."""
    homeserver.give(IS_ADMIN, answer({"admin": True}), answer({"admin": False}))
    homeserver.give(ADMIN + MESSAGES, error(403, "M_FORBIDDEN"))
    homeserver.give(CLIENT + MESSAGES, answer({"chunk": []}))
    assert await history.messages("!a", "b", None, 7) == b'{"chunk":[]}'


async def test_all_rooms_are_listed(homeserver: Homeserver, history: History) -> None:
    """Page after page, each room once, odd entries left out."""
    homeserver.give(IS_ADMIN, answer({"admin": True}))
    homeserver.give(
        f"{ADMIN}/rooms",
        answer({"rooms": [{"room_id": "!a"}, {"room_id": "!b"}, {}, 7], "next_batch": 2}),
        answer({"rooms": [{"room_id": "!b"}, {"room_id": "!c"}], "next_batch": 4}),
        answer({"rooms": []}),
    )
    assert await history.rooms() == ["!a", "!b", "!c"]
    assert [seen.query["from"] for seen in homeserver.seen[1:]] == ["0", "2", "4"]


async def test_a_room_id_is_one_segment_of_a_path(
    homeserver: Homeserver, history: History
) -> None:
    """Whatever is in it: nobody chooses another address by naming a room."""
    with pytest.raises(RoomUnreadable):
        await history.messages("!a/../b?c=d#e%2F", "b", None, 7)
    target = homeserver.seen[-1].target
    assert "/rooms/%21a%2F..%2Fb%3Fc%3Dd%23e%252F/messages?" in target


@pytest.mark.parametrize(
    ("given", "expected", "words"),
    [
        (error(403, "M_FORBIDDEN"), RoomUnreadable, "make the bot an administrator"),
        (error(404, "M_NOT_FOUND"), RoomUnreadable, "does not have it"),
        (error(429, "M_LIMIT_EXCEEDED", retry_after_ms=1500), RateLimited, "M_LIMIT"),
        (error(401, "M_UNKNOWN_TOKEN"), HomeserverUnavailable, "registration.yaml"),
        (error(500, "M_UNKNOWN"), FetchFailed, "500"),
        (error(413, "M_TOO_LARGE"), FetchFailed, "M_TOO_LARGE"),
        (plain(502, b"<html>"), HomeserverUnavailable, "proxy"),
        (redirect(302, "http://127.0.0.1:1/"), FetchFailed, "302"),
        (cut_off(b"{", 100), HomeserverUnavailable, "does not answer"),
        (raw(b"hello\r\n\r\n"), HomeserverUnavailable, "not answer"),
    ],
)
async def test_what_a_homeserver_says_is_understood(
    homeserver: Homeserver,
    history: History,
    given: Answer,
    expected: type[Exception],
    words: str,
) -> None:
    """It is worth another try, or the room cannot be read and the reason says what to do."""
    homeserver.give(CLIENT + MESSAGES, given)
    with pytest.raises(expected, match=words):
        await history.messages("!a", "b", None, 7)


async def test_a_homeserver_that_is_away_is_told_from_a_bot_without_power(
    homeserver: Homeserver, history: History
) -> None:
    """Nobody answers: that says nothing about whether the bot is an administrator."""
    await homeserver.stop()
    with pytest.raises(HomeserverUnavailable):
        await history.is_admin()
    homeserver.give(IS_ADMIN, answer({"admin": True}))
    await homeserver.start()
    assert await history.is_admin()


@pytest.mark.parametrize("odd", [b"[]", b"<html>", b"{", b'"x"'])
async def test_answers_of_another_kind_are_worth_another_try(
    homeserver: Homeserver, history: History, odd: bytes
) -> None:
    """Where JSON with a meaning was to come, not as an exception that nobody foresees."""
    homeserver.give(IS_ADMIN, body(odd))
    with pytest.raises(Retryable):
        await history.rooms()


async def test_state_is_a_list_under_a_name(homeserver: Homeserver, history: History) -> None:
    """The client API's bare list and the admin API's object read alike."""
    homeserver.give(f"{CLIENT}/rooms/!a/state", body(b' [{"type":"x"}]'))
    assert orjson.loads(await history.state("!a")) == {"state": [{"type": "x"}]}
    homeserver.give(f"{CLIENT}/rooms/!a/state", body(b' {"state":[]}'))
    assert orjson.loads(await history.state("!a")) == {"state": []}


async def test_an_alias_names_a_room(homeserver: Homeserver, history: History) -> None:
    """And one that nobody has is said to be none."""
    homeserver.give(f"{CLIENT}/directory/room/#a:b", answer({"room_id": "!a"}))
    homeserver.give(f"{CLIENT}/directory/room/#odd:b", answer({"room_id": 7}))
    assert await history.room_id("#a:b") == "!a"
    for alias in ("#odd:b", "#none:b"):
        with pytest.raises(RoomUnreadable):
            await history.room_id(alias)


@pytest.mark.parametrize("admin", [True, False])
async def test_a_time_is_found_in_a_room(
    homeserver: Homeserver, history: History, admin: bool
) -> None:
    """The token lies behind the first event from then on; None where nobody can tell."""
    homeserver.give(IS_ADMIN, answer({"admin": admin}))
    finder = f"{ADMIN if admin else CLIENT_V1}/rooms/!a/timestamp_to_event"
    homeserver.give(finder, answer({"event_id": "$e/1", "origin_server_ts": 1}))
    context = f"{ADMIN if admin else CLIENT}/rooms/!a/context/$e/1"
    homeserver.give(context, answer({"start": "t1", "end": "t2"}))
    assert await history.token_at("!a", NOON) == "t2"
    assert homeserver.seen[1].query["ts"] == str(int(NOON.timestamp() * 1000))
    assert homeserver.seen[1].query["dir"] == "f"
    homeserver.give(context, answer({"end": None}))
    assert await history.token_at("!a", NOON) is None
    homeserver.give(finder, error(404, "M_NOT_FOUND"), error(500, "M_UNKNOWN"))
    assert await history.token_at("!a", NOON) is None
    assert await history.token_at("!a", NOON) is None


async def test_an_original_is_asked_for_as_an_administrator_only(
    homeserver: Homeserver, history: History
) -> None:
    """None without the power, and for what the homeserver does not have any more."""
    homeserver.give(f"{ADMIN}/fetch_event/$a", answer({"event": {}}))
    assert await history.original("$a") is None
    homeserver.give(IS_ADMIN, answer({"admin": True}))
    async with http_session() as session:
        administrator = History(session, homeserver.url, TOKEN, BOT)
        assert await administrator.original("$a") == b'{"event":{}}'
        assert await administrator.original("$gone") is None
