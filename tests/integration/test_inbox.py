"""What comes for the bot: written with its push, claimed by one, fenced, purged at last."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any

import aiohttp
import asyncpg
import pytest
from aiohttp.test_utils import TestServer

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import inbox
from archiver.intake.transactions import Intake

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

BOT = "@archiver:example.com"
ADMIN = "@admin:example.com"
LEASE = timedelta(minutes=1)
EXPIRE = "UPDATE inbox SET due_at = now() WHERE due_at IS NOT NULL"
AGE = "UPDATE inbox SET received_at = now() - interval '2 days'"
ASK = """
INSERT INTO question (event_id, command_id, expires_at) VALUES ('$question', $1, now())
"""


def event(event_id: str, content: dict[str, Any], sender: str = ADMIN) -> dict[str, Any]:
    return {"event_id": event_id, "room_id": "!r", "sender": sender, "type": "m.room.message",
            "content": content}  # fmt: skip


def command(event_id: str, sender: str = ADMIN) -> dict[str, Any]:
    return event(event_id, {"msgtype": "m.text", "body": "!archive status"}, sender)


def image(event_id: str, sender: str = ADMIN) -> dict[str, Any]:
    url = f"mxc://example.com/{event_id[1:]}"
    return event(event_id, {"msgtype": "m.image", "body": "cat", "url": url}, sender)


class Homeserver:
    """Pushes events."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def push(self, *events: Any) -> int:
        body = BytesIO(json.dumps({"events": events}).encode())
        async with self._session.put(
            self._url, data=body, headers={"Authorization": "Bearer secret"}
        ) as response:
            return response.status


@pytest.fixture
async def homeserver(pool: Pool, http: aiohttp.ClientSession) -> AsyncIterator[Homeserver]:
    policy = CapturePolicy("example.com", bot=BOT)
    intake = Intake(pool, "secret", BOT, "!archive", policy)
    async with TestServer(intake.application()) as server:
        yield Homeserver(str(server.make_url("/_matrix/app/v1/transactions/1")), http)


@pytest.fixture
async def conn(pool: Pool) -> AsyncIterator[Connection]:
    async with pool.acquire() as acquired:
        yield acquired


async def put(conn: Connection, *event_ids: str) -> None:
    await inbox.put(conn, [(event_id, "!r", ADMIN, b"{}") for event_id in event_ids])


async def claimed(conn: Connection) -> inbox.Item:
    item = await inbox.claim(conn, LEASE)
    assert item is not None
    return item


async def ids(conn: Connection) -> list[str]:
    return [row[0] for row in await conn.fetch("SELECT event_id FROM inbox ORDER BY 1")]


async def test_a_push_brings_its_commands(homeserver: Homeserver, conn: Connection) -> None:
    """Beside what is archived; once, however often it is pushed."""
    for _ in range(2):
        assert await homeserver.push(image("$a"), command("$b"), command("$c")) == 200
    assert await ids(conn) == ["$b", "$c"]
    assert await conn.fetchval("SELECT array_agg(event_id) FROM event") == ["$a"]
    item = await claimed(conn)
    assert (item.event_id, item.room_id, item.sender) == ("$b", "!r", ADMIN)
    assert (json.loads(item.raw), item.attempts, item.reply_id) == (command("$b"), 1, None)


async def test_a_push_is_one_commit(homeserver: Homeserver, conn: Connection) -> None:
    """What the inbox does not take is not archived either: the homeserver repeats it all."""
    await conn.execute("ALTER TABLE inbox ADD CHECK (event_id <> '$b')")
    assert await homeserver.push(image("$a"), command("$b")) == 500
    assert await conn.fetchval("SELECT count(*) FROM event") == 0
    assert await ids(conn) == []


async def test_who_listens_is_told(homeserver: Homeserver, pool: Pool, conn: Connection) -> None:
    """The process that has the bot hears of a command at once, of an image it does not."""
    heard: list[str] = []
    await conn.add_listener("inbox", lambda *said: heard.append(str(said[2])))
    await homeserver.push(image("$a"))
    await conn.execute("SELECT 1")
    assert heard == []
    await homeserver.push(command("$b"))
    await conn.execute("SELECT 1")
    assert heard == ["inbox"]
    await conn.reset()


async def test_a_push_without_a_command_stays_one_statement(
    homeserver: Homeserver, pool: Pool
) -> None:
    """It is recorded in no transaction of its own; only a command needs one."""
    said: list[str] = []
    conns = [await pool.acquire() for _ in range(pool.get_max_size())]
    for conn in conns:
        conn.add_query_logger(lambda logged: said.append(logged.query.split()[0]))
        await pool.release(conn)
    await homeserver.push(image("$a"))  # for which a connection asks about types
    said.clear()
    await homeserver.push(image("$b"))
    assert said == ["WITH"]
    said.clear()
    await homeserver.push(image("$c"), command("$d"))
    assert (said[0], said[-2:]) == ("BEGIN;", ["INSERT", "COMMIT;"])


async def test_what_the_bot_says_is_neither_archived_nor_heard(
    homeserver: Homeserver, conn: Connection
) -> None:
    """Else the archive would archive what it tells of itself; others' words about it are."""
    assert await homeserver.push(image("$a", BOT), command("$b", BOT), image("$c")) == 200
    assert await conn.fetchval("SELECT array_agg(event_id) FROM event") == ["$c"]
    assert await ids(conn) == []


async def test_the_oldest_is_claimed_first_by_one(conn: Connection, pool: Pool) -> None:
    """Nobody else gets it while the lease lasts, and what is claimed is not waited for."""
    await put(conn, "$b")
    await put(conn, "$a")
    async with conn.transaction():
        assert (await claimed(conn)).event_id == "$b"
        async with pool.acquire() as other:
            assert (await claimed(other)).event_id == "$a"
            assert await inbox.claim(other, LEASE) is None


async def test_who_lost_its_lease_changes_nothing(conn: Connection) -> None:
    """The second claim counts; the first can neither finish, postpone nor prolong it."""
    await put(conn, "$a")
    late = await claimed(conn)
    await inbox.set_reply(conn, late, "$told")
    await conn.execute(EXPIRE)
    item = await claimed(conn)
    assert (item.attempts, item.reply_id) == (2, "$told")
    await inbox.set_reply(conn, late, "$late")
    await inbox.postpone(conn, late, -LEASE)
    assert not await inbox.done(conn, late)
    assert await inbox.claim(conn, LEASE) is None
    assert await conn.fetchval("SELECT reply_id FROM inbox") == "$told"
    assert await inbox.done(conn, item)
    assert not await inbox.done(conn, item)


async def test_a_lease_is_prolonged(conn: Connection) -> None:
    """As long as somebody works at it, nobody else begins."""
    await put(conn, "$a", "$b")
    held = [await claimed(conn), await claimed(conn)]
    await conn.execute(EXPIRE)
    await inbox.renew(conn, held, LEASE)
    assert await inbox.claim(conn, LEASE) is None
    assert await inbox.done(conn, held[0])
    await inbox.renew(conn, held, LEASE)
    await conn.execute(EXPIRE)
    assert (await claimed(conn)).event_id == "$b"


async def test_what_is_given_back_waits(conn: Connection) -> None:
    """Until it is due again; what came later goes first meanwhile."""
    await put(conn, "$a")
    await put(conn, "$b")
    await inbox.postpone(conn, await claimed(conn), LEASE)
    assert (await claimed(conn)).event_id == "$b"
    await conn.execute(EXPIRE)
    assert (await claimed(conn)).event_id == "$a"


async def test_what_is_dealt_with_goes_after_a_while(conn: Connection) -> None:
    """What waits stays, and so does what is young, because it may be pushed again."""
    await put(conn, "$a", "$b")
    assert await inbox.done(conn, await claimed(conn))
    assert await inbox.purge(conn, timedelta(days=1)) == 0
    await conn.execute(AGE)
    assert await inbox.purge(conn, timedelta(days=1)) == 1
    assert await ids(conn) == ["$b"]


@pytest.mark.parametrize(
    ("answer", "done", "stays"),
    [
        (None, False, True), ("ok", False, True), ("ok", True, False),
        ("cancel", False, False), ("expired", False, False),
    ],
)  # fmt: skip
async def test_a_command_stays_while_its_question_is_open(
    conn: Connection, answer: str | None, done: bool, stays: bool
) -> None:
    """Until it is answered, and if that was OK, carried out."""
    await put(conn, "$a")
    assert await inbox.done(conn, await claimed(conn))
    await conn.execute(ASK, "$a")
    await conn.execute(
        "UPDATE question SET answer = $1, done_at = CASE WHEN $2 THEN now() END", answer, done
    )
    await conn.execute(AGE)
    assert await inbox.purge(conn, timedelta(days=1)) == (0 if stays else 1)


async def test_a_claim_reads_what_waits_alone(conn: Connection) -> None:
    """However many dealt with ones lie there."""
    await conn.execute(
        "INSERT INTO inbox (event_id, room_id, sender, raw, due_at)"
        " SELECT 'e' || n, '!r', '@a', '', NULL FROM generate_series(1, 5000) AS n"
    )
    await put(conn, "$a")
    await conn.execute("ANALYZE inbox")
    plan = "\n".join(
        row[0] for row in await conn.fetch("EXPLAIN " + inbox.CLAIM.replace("$1", "'1 min'"))
    )
    assert "inbox_due" in plan
    assert "Seq Scan" not in plan


async def test_no_identifier_is_refused_by_the_database(
    homeserver: Homeserver, conn: Connection
) -> None:
    """What comes with odd names is passed over, so that no push is refused for ever."""
    odd = [{**command("$a"), field: "\0"} for field in ("event_id", "room_id", "sender")]
    assert await homeserver.push(*odd, command("$b")) == 200
    assert await ids(conn) == ["$b"]


async def test_events_twice_in_one_push_are_one(homeserver: Homeserver, conn: Connection) -> None:
    """However a homeserver repeats itself."""
    assert await homeserver.push(command("$a"), command("$a")) == 200
    assert await ids(conn) == ["$a"]
    with pytest.raises(asyncpg.UniqueViolationError):
        await conn.execute(
            "INSERT INTO inbox (event_id, room_id, sender, raw) VALUES ('$a', '', '', '')"
        )
