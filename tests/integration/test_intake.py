"""The push face over real HTTP: who may, what is refused, and that 200 means recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import aiohttp
import asyncpg
import pytest
from aiohttp.test_utils import TestServer
from yarl import URL

from archiver.capture.policy import CapturePolicy
from archiver.capture.record import RECORD
from archiver.db.migrate import migrate
from archiver.db.pool import open_pool
from archiver.intake.transactions import MAX_BODY, Intake
from tests.support.postgres import PostgresProcess

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

TOKEN = "hs-secret-é"
BOT = "@archiver:example.com"
EVENTS = "SELECT count(*) FROM event"
WAITING = "SELECT true FROM pg_locks WHERE relation = 'event'::regclass AND NOT granted"


class Homeserver:
    """Speaks to the push face as a homeserver does."""

    def __init__(self, base: URL, session: aiohttp.ClientSession) -> None:
        self._base = base
        self._session = session
        self.authorization: str | None = f"Bearer {TOKEN}"

    async def call(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        headers = {} if self.authorization is None else {"Authorization": self.authorization}
        url = self._base.join(URL(path, encoded=True))
        async with self._session.request(
            method, url, data=BytesIO(body), headers=headers
        ) as response:
            return response.status, await response.json(content_type=None)

    async def push(self, body: bytes, txn_id: str = "1") -> tuple[int, Any]:
        return await self.call("PUT", f"/_matrix/app/v1/transactions/{txn_id}", body)


def image(event_id: str) -> dict[str, Any]:
    content = {"msgtype": "m.image", "body": "cat", "url": f"mxc://example.com/{event_id[1:]}"}
    return {"event_id": event_id, "room_id": "!r", "type": "m.room.message", "content": content}


def transaction(*events: Any, **others: Any) -> bytes:
    return json.dumps({"events": events, **others}).encode()


def server(pool: Pool) -> TestServer:
    return TestServer(
        Intake(pool, TOKEN, BOT, "!archive", CapturePolicy("example.com")).application()
    )


@asynccontextmanager
async def own_pool(process: PostgresProcess) -> AsyncIterator[Pool]:
    """Connections to a migrated database on a server that the test takes away."""
    async with open_pool(process.url, 5) as pool:
        async with pool.acquire() as conn:
            await migrate(conn)
        yield pool


@pytest.fixture
async def homeserver(pool: Pool, http: aiohttp.ClientSession) -> AsyncIterator[Homeserver]:
    async with server(pool) as running:
        yield Homeserver(running.make_url("/"), http)


async def test_a_push_is_recorded_and_acknowledged(homeserver: Homeserver, pool: Pool) -> None:
    """200 with a JSON body, and the events are there."""
    assert await homeserver.push(transaction(image("$a"), image("$b"))) == (200, {})
    assert await pool.fetchval(EVENTS) == 2


@pytest.mark.parametrize(
    "authorization",
    [
        None, "", "Bearer", "Bearer ", "Bearer wrong", TOKEN, f"Basic {TOKEN}",
        f"Bearer {TOKEN}x", f"Bearer  {TOKEN}", f"bearer {TOKEN[:-1]}",
        "Bearer hs-secret-ü", "Bearer 秘密",
    ],
    ids=range(12),
)  # fmt: skip
async def test_who_has_not_the_token_is_refused(
    homeserver: Homeserver, pool: Pool, authorization: str | None
) -> None:
    """403 on every route, whatever bytes the header holds, and nothing is stored."""
    homeserver.authorization = authorization
    for method, path in (
        ("PUT", "/_matrix/app/v1/transactions/1"),
        ("PUT", f"/_matrix/app/v1/transactions/1?access_token={URL(TOKEN)}"),
        ("POST", "/_matrix/app/v1/ping"),
        ("GET", f"/_matrix/app/v1/users/{BOT}"),
        ("GET", "/nowhere"),
    ):
        status, answer = await homeserver.call(method, path, transaction(image("$a")))
        assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    assert await pool.fetchval(EVENTS) == 0


@pytest.mark.parametrize("header", [b"Bearer hs-secret-\xe9", b"Bearer \xff\xfe", b"\xc3"])
async def test_a_header_of_any_bytes_is_refused(pool: Pool, header: bytes) -> None:
    """What is no UTF-8 is just a wrong token."""
    async with server(pool) as running:
        reader, writer = await asyncio.open_connection(running.host, running.port)
        writer.write(b"POST /_matrix/app/v1/ping HTTP/1.1\r\nHost: h\r\nAuthorization: ")
        writer.write(header + b"\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 403 Forbidden\r\n"
        writer.close()


@pytest.mark.parametrize("body", [b"", b"hello", b"[]", b'{"events": 5}', b'{"events": ["\xff"]}'])
async def test_what_is_no_transaction_is_refused(
    homeserver: Homeserver, pool: Pool, body: bytes
) -> None:
    """400 with Matrix's own word for it, and nothing is stored."""
    status, answer = await homeserver.push(body)
    assert (status, answer["errcode"]) == (400, "M_NOT_JSON")
    assert await pool.fetchval(EVENTS) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        transaction(),
        transaction(None, 5, "x", [], {}),
        transaction(ephemeral=[{"type": "m.typing"}], **{"de.sorunome.msc2409.to_device": [{}]}),
        transaction({"type": "m.room.message", "content": {"body": "hello"}}),
    ],
    ids=["nothing", "no events", "no objects", "ephemeral", "text"],
)
async def test_what_does_not_concern_us_is_acknowledged(
    homeserver: Homeserver, pool: Pool, body: bytes
) -> None:
    """200, so that the homeserver goes on, and nothing is stored."""
    assert await homeserver.push(body) == (200, {})
    assert await pool.fetchval(EVENTS) == 0


async def test_a_large_transaction_is_accepted(homeserver: Homeserver, pool: Pool) -> None:
    """A hundred events of 64 KiB are more than many a default allows."""
    events = [image(f"${n}") for n in range(100)]
    for event in events:
        event["content"]["odd"] = "x" * 64_000
    assert await homeserver.push(transaction(*events)) == (200, {})
    assert await pool.fetchval(EVENTS) == 100


async def test_beyond_any_homeserver_a_body_is_refused(homeserver: Homeserver, pool: Pool) -> None:
    """Over 64 MiB: 413, as a Matrix error, and nothing is stored."""
    body = transaction(image("$a")).ljust(MAX_BODY + 1)
    status, answer = await homeserver.push(body)
    assert (status, answer["errcode"]) == (413, "M_TOO_LARGE")
    assert await pool.fetchval(EVENTS) == 0
    assert await homeserver.push(body[:MAX_BODY]) == (200, {})
    assert await pool.fetchval(EVENTS) == 1


async def test_the_other_routes_answer(homeserver: Homeserver) -> None:
    """The ping is echoed, our bot is the one user, and there are no rooms."""
    base = "/_matrix/app/v1"
    ping = await homeserver.call("POST", f"{base}/ping", b'{"transaction_id": "x"}')
    assert ping == (200, {})
    assert await homeserver.call("GET", f"{base}/users/%40archiver%3Aexample.com") == (200, {})
    for path in ("users/@other:example.com", "rooms/%23room%3Aexample.com"):
        status, answer = await homeserver.call("GET", f"{base}/{path}")
        assert (status, answer["errcode"]) == (404, "M_NOT_FOUND")


async def test_the_same_transaction_may_come_many_times(
    homeserver: Homeserver, pool: Pool
) -> None:
    """Retries while the first is still running, with other events under the same id: all 200."""
    bodies = [transaction(image("$a"), image("$b")), transaction(image("$b"), image("$c"))] * 8
    answers = await asyncio.gather(*(homeserver.push(body) for body in bodies))
    assert answers == [(200, {})] * 16
    assert await pool.fetchval(EVENTS) == 3


@pytest.mark.parametrize("size", [1, 100])
async def test_a_transaction_costs_one_statement(
    database_url: str, http: aiohttp.ClientSession, size: int
) -> None:
    """However many events it holds, and none at all when nothing is to be kept."""
    statements: list[str] = []

    async def watch(conn: Connection) -> None:
        conn.add_query_logger(lambda said: statements.append(said.query))

    body = transaction(*(image(f"${n}") for n in range(size)))
    text = transaction({"type": "m.room.message", "content": {"body": "hello"}})
    async with (
        asyncpg.create_pool(database_url, min_size=1, max_size=1, init=watch) as pool,
        server(pool) as running,
    ):
        homeserver = Homeserver(running.make_url("/"), http)
        assert await homeserver.push(transaction(image("$first"))) == (200, {})
        statements.clear()  # of a new connection the first statement is preceded by asyncpg's own
        assert await homeserver.push(text) == (200, {})
        assert await homeserver.push(body) == (200, {})
    assert [statement for statement in statements if "UNLISTEN" not in statement] == [RECORD]


async def test_nothing_is_acknowledged_before_it_is_recorded(
    homeserver: Homeserver, pool: Pool
) -> None:
    """As long as the database has not committed, the homeserver gets no answer."""
    async with pool.acquire() as conn:
        async with conn.transaction():
            await conn.execute("LOCK TABLE event IN EXCLUSIVE MODE")
            pushing = asyncio.create_task(homeserver.push(transaction(image("$a"))))
            async with asyncio.timeout(20):
                while not await conn.fetchval(WAITING):  # noqa: ASYNC110 -- only asking tells
                    await asyncio.sleep(0.01)
            assert not pushing.done()
        assert await pushing == (200, {})
        assert await conn.fetchval(EVENTS) == 1


async def test_without_a_database_the_homeserver_is_told_to_repeat(
    own_postgres: PostgresProcess, http: aiohttp.ClientSession
) -> None:
    """503 while it is away; when it is back, the retry is recorded."""
    async with own_pool(own_postgres) as pool, server(pool) as running:
        homeserver = Homeserver(running.make_url("/"), http)
        assert await homeserver.push(transaction(image("$a"))) == (200, {})
        await asyncio.to_thread(own_postgres.stop)
        for _ in range(3):
            status, answer = await homeserver.push(transaction(image("$b")))
            assert (status, answer["errcode"]) == (503, "M_UNKNOWN")
        await asyncio.to_thread(own_postgres.start)
        assert await homeserver.push(transaction(image("$b"))) == (200, {})
        assert await pool.fetchval(EVENTS) == 2


async def test_what_was_acknowledged_survives_a_crash(
    own_postgres: PostgresProcess, http: aiohttp.ClientSession
) -> None:
    """PostgreSQL is killed right after the 200; the rows are there when it has recovered."""
    async with own_pool(own_postgres) as pool, server(pool) as running:
        homeserver = Homeserver(running.make_url("/"), http)
        pushes = [homeserver.push(transaction(image(f"${n}"))) for n in range(20)]
        assert await asyncio.gather(*pushes) == [(200, {})] * 20
        await asyncio.to_thread(own_postgres.kill)
        await asyncio.to_thread(own_postgres.start)
    conn = await asyncpg.connect(own_postgres.url)
    assert await conn.fetchval(EVENTS) == 20
    await conn.close()


async def test_a_crash_in_the_middle_is_repeated(
    own_postgres: PostgresProcess, http: aiohttp.ClientSession
) -> None:
    """A database that dies under a running push makes it 503, and nothing of it is there twice."""
    async with own_pool(own_postgres) as pool, server(pool) as running:
        homeserver = Homeserver(running.make_url("/"), http)
        blocker = await asyncpg.connect(own_postgres.url)
        await blocker.execute("BEGIN; LOCK TABLE event IN EXCLUSIVE MODE")
        pushing = asyncio.create_task(homeserver.push(transaction(image("$a"))))
        async with asyncio.timeout(20):
            while not await blocker.fetchval(WAITING):  # noqa: ASYNC110 -- only asking tells
                await asyncio.sleep(0.01)
        await asyncio.to_thread(own_postgres.kill)
        status, answer = await pushing
        assert (status, answer["errcode"]) == (503, "M_UNKNOWN")
        await asyncio.to_thread(own_postgres.start)
        assert await homeserver.push(transaction(image("$a"))) == (200, {})
        assert await pool.fetchval(EVENTS) == 1
        blocker.terminate()
