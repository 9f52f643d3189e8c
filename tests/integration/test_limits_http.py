"""Rate limits over HTTP: 429 with when to come back, for whom it concerns and nobody else."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import ip_network

import aiohttp
import pytest

from archiver.catalogue import signing_keys
from archiver.model import Scope
from archiver.serve.access import Access
from archiver.serve.limits import Limits
from archiver.serve.matrix_tokens import WHOAMI, MatrixTokens
from tests.integration.test_signed_urls import content, said, url
from tests.support.accounts import ADMIN, USER, Accounts
from tests.support.homeserver import SERVER_NAME, Homeserver
from tests.support.serving import Archive, Reader, serving

PATH = "/readyz"
ALMOST_NEVER = 1 / 86_400

Open = Callable[..., AbstractAsyncContextManager[Reader]]


@pytest.fixture
def opened(archive: Archive, database_url: str, http: aiohttp.ClientSession) -> Open:
    """The archive's door with limits, and somebody who may read."""

    @asynccontextmanager
    async def open_door(
        limits: Limits, matrix: MatrixTokens | None = None
    ) -> AsyncIterator[Reader]:
        secret = await archive.token()
        async with serving(archive, database_url, access=Access(matrix, limits)) as server:
            yield Reader(http, server, secret)

    return open_door


async def statuses(reader: Reader, number: int, **headers: str) -> Counter[int]:
    """How so many requests are answered."""
    return Counter([await reader.status(PATH, **headers) for _ in range(number)])


async def test_who_asks_too_much_is_told_when_to_come_back(archive: Archive, opened: Open) -> None:
    """Matrix's own error, in seconds and in milliseconds; another token is not concerned."""
    async with opened(Limits(ALMOST_NEVER, 5)) as reader:
        assert await statuses(reader, 7) == {200: 5, 429: 2}
        async with reader.ask(PATH) as answer:
            assert answer.headers["Retry-After"].isdecimal()
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            refusal = await answer.json()
        assert refusal["errcode"] == "M_LIMIT_EXCEEDED"
        assert refusal["retry_after_ms"] > 1000
        assert refusal["error"]
        another = await archive.token("another")
        assert await statuses(reader, 5, Authorization=f"Bearer {another}") == {200: 5}


async def test_at_once_is_no_more(opened: Open) -> None:
    """Fifty at the same moment are counted as fifty."""
    async with opened(Limits(ALMOST_NEVER, 5)) as reader:
        found = await asyncio.gather(*(reader.status(PATH) for _ in range(50)))
        assert Counter(found) == {200: 5, 429: 45}


async def test_time_brings_more(opened: Open) -> None:
    """Who waits is let in again."""
    async with opened(Limits(5, 1)) as reader:
        assert set(await statuses(reader, 20)) == {200, 429}
        await reader.until(PATH, 200)


async def test_without_limits_there_are_none(opened: Open) -> None:
    """`rate_limit: null`."""
    async with opened(Limits()) as reader:
        assert await statuses(reader, 100) == {200: 100}


async def test_health_and_preflight_are_not_limited(opened: Open) -> None:
    """A supervisor has no token, and a browser asks before it sends one."""
    async with opened(Limits(ALMOST_NEVER, 1, 1)) as reader:
        assert await statuses(reader, 3) == {200: 1, 429: 2}
        address = reader.server.make_url("/healthz")
        for _ in range(5):
            async with reader.session.get(address) as answer:
                assert answer.status == 200
            async with reader.session.options(reader.server.make_url("/api/v1/stats")) as answer:
                assert answer.status == 204


async def test_who_is_refused_too_often_has_to_wait(archive: Archive, opened: Open) -> None:
    """Of one address; who was let in from there is, still."""
    async with opened(Limits(failures_a_minute=3)) as reader:
        assert await reader.status(PATH) == 200
        assert await statuses(reader, 5, Authorization="Bearer mma_x") == {401: 3, 429: 2}
        for wrong in ("", "Bearer syt_other", "Basic x"):
            assert await reader.status(PATH, Authorization=wrong) == 429
        assert await statuses(reader, 10) == {200: 10}


async def test_wrong_signatures_count_as_well(archive: Archive, opened: Open) -> None:
    """Each address has so many tries."""
    mxc = await archive.put(b"x")
    async with archive.pool.acquire() as conn:
        key = await signing_keys.create(conn, "panel", Scope.READ, None)
    wrong = url(key._replace(secret="x"), content(mxc))
    async with opened(Limits(failures_a_minute=3)) as reader:
        found = [(await said(reader, wrong))[0] for _ in range(5)]
        assert found == [403, 403, 403, 429, 429]


async def test_signed_urls_are_limited_by_address(archive: Archive, opened: Open) -> None:
    """One key is many browsers'."""
    mxc = await archive.put(b"x")
    async with archive.pool.acquire() as conn:
        key = await signing_keys.create(conn, "panel", Scope.READ, None)
    signed = url(key, content(mxc))
    trusted = Limits(ALMOST_NEVER, 2, trusted_proxies=[ip_network("127.0.0.0/8")])
    async with opened(trusted) as reader:
        for address in ("203.0.113.1", "203.0.113.2"):
            found = [
                (await said(reader, signed, **{"X-Forwarded-For": address}))[0] for _ in range(3)
            ]
            assert found == [200, 200, 429]


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_proxy_that_is_trusted_tells_whom_it_asks_for(opened: Open, trusted: bool) -> None:
    """Anybody else may write what he likes: it is his own address that counts."""
    proxies = [ip_network("127.0.0.0/8")] if trusted else []
    async with opened(Limits(failures_a_minute=1, trusted_proxies=proxies)) as reader:
        found = [
            await reader.status(
                PATH, Authorization="Bearer mma_x", X_Forwarded_For=f"198.51.100.1, 203.0.113.{n}"
            )
            for n in range(3)
        ]
        assert found == ([401] * 3 if trusted else [401, 429, 429])


async def test_a_flood_of_wrong_tokens_is_none_at_the_homeserver(
    opened: Open, http: aiohttp.ClientSession
) -> None:
    """Nor does it keep out a Matrix user who was let in before."""
    async with Homeserver() as homeserver:
        accounts = Accounts(homeserver)
        matrix = MatrixTokens(http, homeserver.url, SERVER_NAME, local_users=False)
        async with opened(Limits(failures_a_minute=3), matrix) as reader:
            assert await reader.status(PATH, Authorization=f"Bearer {ADMIN}") == 200
            for number in range(20):
                await reader.status(PATH, Authorization=f"Bearer wrong{number}")
            assert accounts.asked(WHOAMI) == 1 + 3
            assert await reader.status(PATH, Authorization=f"Bearer {ADMIN}") == 200


async def test_users_of_the_homeserver_are_no_strangers(
    opened: Open, http: aiohttp.ClientSession
) -> None:
    """Behind a proxy each who misses a picture asks here with the own token, and may not read."""
    async with Homeserver() as homeserver:
        Accounts(homeserver)
        matrix = MatrixTokens(http, homeserver.url, SERVER_NAME, local_users=False)
        async with opened(Limits(failures_a_minute=3), matrix) as reader:
            found = await statuses(reader, 10, Authorization=f"Bearer {USER}")
            assert found == {403: 10}
            assert await reader.status(PATH, Authorization=f"Bearer {ADMIN}") == 200


async def test_what_is_refused_elsewhere_is_no_failure(opened: Open) -> None:
    """A good token that asks for what is not there is none of a stranger's tries."""
    async with opened(Limits(failures_a_minute=1)) as reader:
        assert await reader.status("/api/v1/reads") == 403
        assert await reader.status("/api/v1/reads") == 403
        assert await reader.status("/nowhere") == 404
        assert await reader.status(PATH, Authorization="Bearer mma_x") == 401
