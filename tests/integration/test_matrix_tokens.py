"""Matrix access tokens: whose are good here, and that only the homeserver's word counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from archiver.base import http_session
from archiver.catalogue import tokens
from archiver.serve import matrix_tokens, remembered
from archiver.serve.access import Access
from archiver.serve.matrix_tokens import IS_ADMIN, WHOAMI, MatrixTokens
from tests.support.accounts import ABROAD, ADMIN, ALICE, BOB, GUEST, USER, Accounts
from tests.support.homeserver import SERVER_NAME, Homeserver, error, held, plain, raw, redirect
from tests.support.serving import Archive, Reader, eventually, serving

STATS = "/api/v1/stats"
READS = "/api/v1/reads"

Open = Callable[..., AbstractAsyncContextManager[Reader]]


@pytest.fixture
async def accounts() -> AsyncIterator[Accounts]:
    """A homeserver that knows four tokens."""
    async with Homeserver() as homeserver:
        yield Accounts(homeserver)


@pytest.fixture
def opened(
    archive: Archive, database_url: str, http: aiohttp.ClientSession, accounts: Accounts
) -> Open:
    """The archive's door, with the keywords of `MatrixTokens`, and somebody without a token."""

    @asynccontextmanager
    async def open_door(*, local_users: bool = False, **keywords: float) -> AsyncIterator[Reader]:
        url = accounts.homeserver.url
        async with http_session() as session:
            matrix = MatrixTokens(session, url, SERVER_NAME, local_users=local_users, **keywords)
            async with serving(archive, database_url, access=Access(matrix)) as server:
                yield Reader(http, server, "nobody")

    return open_door


async def said(reader: Reader, token: str, path: str = STATS) -> tuple[int, dict[str, Any]]:
    """Status and JSON for a reader with this token."""
    async with reader.ask(path, Authorization=f"Bearer {token}") as answer:
        return answer.status, await answer.json()


async def status(reader: Reader, token: str, path: str = STATS) -> int:
    """Status for a reader with this token."""
    return (await said(reader, token, path))[0]


@pytest.mark.parametrize(
    ("token", "admins", "local_users"),
    [(ADMIN, 200, 200), (USER, 403, 200), (GUEST, 403, 403), (ABROAD, 403, 403), ("x", 401, 401)],
)
async def test_who_may_read_is_the_configurations_choice(
    opened: Open, token: str, admins: int, local_users: int
) -> None:
    """Guests and users of other servers never; a good token of the wrong person is no bad one."""
    for rule, expected in ((False, admins), (True, local_users)):
        async with opened(local_users=rule) as reader:
            found, answer = await said(reader, token)
            assert found == expected, answer
            errcode = {200: None, 401: "M_UNKNOWN_TOKEN", 403: "M_FORBIDDEN"}[expected]
            assert answer.get("errcode") == errcode


async def test_only_administrators_have_scope_admin(opened: Open) -> None:
    """A local user reads, and sees no access log."""
    async with opened(local_users=True) as reader:
        assert await status(reader, ADMIN, READS) == 200
        assert await status(reader, USER, READS) == 403
        assert await status(reader, USER) == 200


async def test_without_matrix_no_token_is_asked_for(reader: Reader, accounts: Accounts) -> None:
    """`matrix_tokens: nobody`: the homeserver hears nothing of any token."""
    assert await status(reader, ADMIN) == 401
    assert accounts.asked() == 0


async def test_a_token_of_ours_is_never_shown_to_the_homeserver(
    archive: Archive, opened: Open, accounts: Accounts
) -> None:
    """Good or wrong."""
    secret = await archive.token()
    async with opened() as reader:
        assert await status(reader, secret) == 200
        assert await status(reader, tokens.PREFIX + "wrong") == 401
        assert accounts.homeserver.seen == []


async def test_nothing_but_the_token_is_passed_on(opened: Open, accounts: Accounts) -> None:
    """No query, so an appservice cannot come as somebody else; no header of the caller."""
    async with opened() as reader:
        path = f"{STATS}?user_id=@alice:{SERVER_NAME}&access_token={ADMIN}"
        async with reader.ask(path, Authorization=f"Bearer {USER}", Cookie="a=b") as answer:
            assert answer.status == 403
        async with reader.session.get(reader.server.make_url(path)) as answer:
            assert answer.status == 401
            assert (await answer.json())["errcode"] == "M_MISSING_TOKEN"
    for seen in accounts.homeserver.seen:
        assert "?" not in seen.target
        assert seen.headers["Authorization"] == f"Bearer {USER}"
        assert "Cookie" not in seen.headers


async def test_a_hundred_at_once_cause_one_question(opened: Open, accounts: Accounts) -> None:
    """And so do a hundred more while it is remembered; the refused are remembered as well."""
    async with opened() as reader:
        for token, path, expected in ((ADMIN, ALICE, 200), (USER, BOB, 403)):
            accounts.homeserver.seen.clear()
            for _ in range(2):
                answers = await asyncio.gather(*(status(reader, token) for _ in range(100)))
                assert set(answers) == {expected}
            assert (accounts.asked(), accounts.asked(IS_ADMIN.format(path))) == (1, 1)


async def test_a_question_outlives_who_asked_it(opened: Open, accounts: Accounts) -> None:
    """The first of two who ask leaves; the other gets the answer."""
    gate = asyncio.Event()
    accounts.instead(WHOAMI, held(gate, f'{{"user_id": "{ALICE}"}}'.encode()))
    async with opened() as reader:
        first = asyncio.create_task(status(reader, ADMIN))
        await eventually(lambda: accounts.asked() == 1)
        second = asyncio.create_task(status(reader, ADMIN))
        first.cancel()
        await asyncio.wait([first])
        gate.set()
        assert await second == 200
        assert accounts.asked() == 1


async def test_a_logout_ends_it_when_the_memory_does(opened: Open, accounts: Accounts) -> None:
    """And so does what makes an administrator a user."""
    async with opened(remember=0.2) as reader:
        assert await status(reader, ADMIN) == 200
        accounts.tokens[ADMIN].admin = False
        await reader.until(STATS, 403, Authorization=f"Bearer {ADMIN}")
        del accounts.tokens[ADMIN]
    async with opened(remember=0.2, remember_refused=0) as reader:
        assert await status(reader, ADMIN) == 401


async def test_who_becomes_an_administrator_is_let_in(opened: Open, accounts: Accounts) -> None:
    """When the refusal is forgotten."""
    async with opened(remember_refused=0.2) as reader:
        assert await status(reader, USER) == 403
        accounts.tokens[USER].admin = True
        await reader.until(STATS, 200, Authorization=f"Bearer {USER}")


async def test_a_homeserver_that_is_away_lets_nobody_in(opened: Open, accounts: Accounts) -> None:
    """503 with when to come back; who is remembered stays for that time, and not for longer."""
    async with opened(remember=1.0) as reader:
        assert await status(reader, ADMIN) == 200
        await accounts.homeserver.stop()
        await reader.until(STATS, 503, Authorization=f"Bearer {ADMIN}")
        async with reader.ask(STATS, Authorization=f"Bearer {USER}") as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "5"
            refusal = await answer.json()
        assert refusal["retry_after_ms"] == 5000
        assert "homeserver" in refusal["error"]
        await accounts.homeserver.start()
        assert await status(reader, ADMIN) == 200
        assert await status(reader, USER) == 403


async def test_a_homeserver_that_hangs_lets_nobody_in(
    opened: Open, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is limited."""
    monkeypatch.setattr(matrix_tokens, "ANSWER_SECONDS", 0.2)
    accounts.instead(WHOAMI, held(asyncio.Event(), b"{}"))
    async with opened() as reader:
        assert await status(reader, ADMIN) == 503


ODD = {
    "a server error": error(500, "M_UNKNOWN"),
    "a proxy's page": plain(502, b"<html>"),
    "a proxy's login": plain(401, b"<html>"),
    "a proxy's refusal": plain(403, b"<html>"),
    "a page that is well": plain(200, b"<html>"),
    "not found": error(404, "M_UNRECOGNIZED"),
    "a redirect": redirect(307, "/elsewhere"),
    "a list": plain(200, b"[]", "application/json"),
    "nobody": plain(200, b"{}", "application/json"),
    "no text": plain(200, b'{"user_id": 5}', "application/json"),
    "an odd guest": plain(200, f'{{"user_id": "{ALICE}", "is_guest": "no"}}'.encode()),
    "no HTTP": raw(b"SSH-2.0-OpenSSH\r\n"),
    "too much": plain(200, f'{{"user_id": "{ALICE}", "x": "{"x" * 1_000_000}"}}'.encode()),
}


@pytest.mark.parametrize("answer", list(ODD.values()), ids=list(ODD))
async def test_an_odd_answer_is_none(opened: Open, accounts: Accounts, answer: Any) -> None:
    """Nobody is let in by it, told that the token is bad, or remembered; a redirect is not
    followed, because the token would go with it."""
    accounts.instead(WHOAMI, answer)
    async with opened(local_users=True) as reader:
        found, refusal = await said(reader, ADMIN)
        assert (found, refusal["errcode"]) == (503, "M_UNKNOWN")
        assert {seen.path for seen in accounts.homeserver.seen} == {WHOAMI}
        accounts.as_before()
        assert await status(reader, ADMIN) == 200


@pytest.mark.parametrize(
    ("user_id", "expected"),
    [
        (f"@a:b:{SERVER_NAME}", 403),
        (f"@a:{SERVER_NAME}:8448", 403),
        (f"@a:{SERVER_NAME.upper()}", 403),
        ("@a:", 503),
        ("@a", 503),
        ("", 503),
        (f"alice:{SERVER_NAME}", 503),
        (f"@a\\u0000:{SERVER_NAME}", 503),
        (f"@a\\n:{SERVER_NAME}", 503),
    ],
)
async def test_an_odd_user_is_not_of_this_server(
    opened: Open, accounts: Accounts, user_id: str, expected: int
) -> None:
    """The whole of what follows the first colon is the server's name; what is no user id at all
    is no answer."""
    accounts.instead(WHOAMI, plain(200, f'{{"user_id": "{user_id}"}}'.encode()))
    async with opened(local_users=True) as reader:
        assert await status(reader, ADMIN) == expected


@pytest.mark.parametrize("refused", [400, 403, 404, 405])
async def test_without_an_admin_api_nobody_is_an_administrator(
    opened: Open, accounts: Accounts, refused: int
) -> None:
    """Another homeserver than Synapse, or a proxy that keeps it private."""
    accounts.instead(IS_ADMIN.format(ALICE), error(refused, "M_UNRECOGNIZED"))
    async with opened(local_users=True) as reader:
        assert await status(reader, ADMIN) == 200
        assert await status(reader, ADMIN, READS) == 403
    async with opened() as reader:
        assert await status(reader, ADMIN) == 403


@pytest.mark.parametrize(
    "odd",
    [plain(200, b'{"admin": "yes"}'), error(500, None), raw(b"")],
    ids=["no truth value", "a server error", "nothing"],
)
async def test_an_odd_word_on_administrators_is_none(
    opened: Open, accounts: Accounts, odd: Any
) -> None:
    """It may be one, so it is not let in with less either."""
    accounts.instead(IS_ADMIN.format(ALICE), odd)
    async with opened(local_users=True) as reader:
        assert await status(reader, ADMIN) == 503


async def test_a_soft_logout_is_passed_on(opened: Open, accounts: Accounts) -> None:
    """A client that may fetch a new token must not forget its session."""
    accounts.instead(WHOAMI, error(401, "M_UNKNOWN_TOKEN", soft_logout=True))
    async with opened() as reader:
        for _ in range(2):
            assert await said(reader, ADMIN) == (
                401,
                {
                    "errcode": "M_UNKNOWN_TOKEN",
                    "error": "the homeserver does not know this access token, or no longer",
                    "soft_logout": True,
                },
            )


async def test_a_deactivated_user_is_refused(opened: Open, accounts: Accounts) -> None:
    """Some homeservers say 403 of a suspended one."""
    accounts.instead(WHOAMI, error(403, "M_USER_SUSPENDED"))
    async with opened() as reader:
        assert await status(reader, ADMIN) == 403


async def test_a_limit_of_the_homeserver_is_passed_on(opened: Open, accounts: Accounts) -> None:
    """With its own word on when to come back, and asked again then."""
    accounts.instead(WHOAMI, error(429, "M_LIMIT_EXCEEDED", retry_after_ms=1500))
    async with opened() as reader:
        async with reader.ask(STATS, Authorization=f"Bearer {ADMIN}") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "2")
            assert (await answer.json())["retry_after_ms"] == 1500
        accounts.as_before()
        assert await status(reader, ADMIN) == 200


async def test_what_is_no_token_is_asked_nowhere(opened: Open, accounts: Accounts) -> None:
    """Spaces and what is beyond ASCII could not be sent as they came."""
    async with opened() as reader:
        for token in ("\u00e9", "a b", "a\tb"):
            assert await status(reader, token) == 401
    assert accounts.homeserver.seen == []


async def test_wrong_tokens_do_not_drive_out_good_ones(
    opened: Open, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory is bounded, and refusals have one of their own."""
    monkeypatch.setattr(remembered, "MOST_REMEMBERED", 3)
    async with opened() as reader:
        assert await status(reader, ADMIN) == 200
        for number in range(5):
            assert await status(reader, f"wrong{number}") == 401
        asked = accounts.asked()
        assert await status(reader, ADMIN) == 200
        assert await status(reader, "wrong4") == 401
        assert accounts.asked() == asked
        assert await status(reader, "wrong0") == 401
        assert accounts.asked() == asked + 1


async def test_a_flood_of_new_tokens_is_few_questions_at_a_time(
    opened: Open, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some wait, and beyond that they are sent away."""
    monkeypatch.setattr(matrix_tokens, "AT_ONCE", 2)
    monkeypatch.setattr(matrix_tokens, "MOST_WAITING", 5)
    gate = asyncio.Event()
    under_way = most = 0

    async def whoami(request: web.Request) -> web.StreamResponse:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await gate.wait()
        under_way -= 1
        return await error(401, "M_UNKNOWN_TOKEN")(request)

    accounts.instead(WHOAMI, whoami)
    async with opened() as reader:
        asking = [asyncio.create_task(status(reader, f"wrong{n}")) for n in range(8)]
        await eventually(lambda: under_way == 2 and sum(task.done() for task in asking) == 3)
        gate.set()
        assert sorted(await asyncio.gather(*asking)) == [401] * 5 + [503] * 3
    assert most == 2
