"""Hot media: no question to the database, and never a byte that anybody took away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import pytest
from multidict import CIMultiDict
from prometheus_client import REGISTRY

from archiver.catalogue import tokens
from archiver.catalogue.accesses import Accesses, add
from archiver.catalogue.media import CHANGED
from archiver.db import listen
from archiver.db.pool import open_pool
from archiver.model import Mxc, Scope
from archiver.serve import remembered
from tests.integration.test_listen import LISTENERS
from tests.support.redacting import image, push, redact, redaction
from tests.support.redacting import mxc as named
from tests.support.samples import png
from tests.support.serving import DEADLINE_SECONDS, MATRIX, Archive, Reader, eventually, serving

if TYPE_CHECKING:
    from datetime import datetime

    from archiver.db.pool import Pool

DATA, OTHER = b"some text", b"another text"
THUMBNAIL = "/_matrix/client/v1/media/thumbnail"


@pytest.fixture
async def both(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> AsyncIterator[list[Reader]]:
    """Readers of two servers that hide what was redacted."""
    secret = await archive.token()
    async with (
        serving(archive, database_url, hides_redacted=True) as one,
        serving(archive, database_url, hides_redacted=True) as other,
    ):
        yield [Reader(http, one, secret), Reader(http, other, secret)]


def at(mxc: Mxc, name: str = "") -> str:
    return f"{MATRIX}/{mxc.server_name}/{mxc.media_id}{name}"


async def read(reader: Reader, path: str, status: int = 200, **headers: str) -> bytes:
    async with reader.ask(path, **headers) as answer:
        body = await answer.read()
        assert answer.status == status, body
        return body


async def until_hot(reader: Reader, path: str) -> int:
    """Reads it until that came from memory, and returns how often. What was just archived may
    still be told as changed, and is not kept before that."""

    def from_memory() -> float:
        return REGISTRY.get_sample_value("archiver_reads_total", {"source": "memory"}) or 0

    before, reads = from_memory(), 0
    async with asyncio.timeout(DEADLINE_SECONDS):
        while from_memory() == before:
            await read(reader, path)
            reads += 1
    return reads


def without_date(answer: aiohttp.ClientResponse) -> CIMultiDict[str]:
    headers = answer.headers.copy()
    del headers["Date"]
    return headers


@asynccontextmanager
async def nobody_is_told(pool: Pool) -> AsyncIterator[None]:
    """Until the end of the block, every question about media or tokens has to wait."""
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("LOCK TABLE media, blob, variant, token IN ACCESS EXCLUSIVE MODE")
        yield


async def test_what_was_read_once_asks_nothing(archive: Archive, reader: Reader) -> None:
    """Neither whole, nor in part, nor its headers alone, nor to hear that nothing changed."""
    mxc = await archive.put(DATA, "text/plain", "a.txt")
    await until_hot(reader, at(mxc))
    async with reader.get(mxc) as answer:
        first = without_date(answer)
    async with asyncio.timeout(5), nobody_is_told(archive.pool):
        async with reader.get(mxc) as answer:
            assert await answer.read() == DATA
            again = without_date(answer)
        async with reader.ask(at(mxc), "HEAD") as answer:
            assert without_date(answer) == first
        assert await read(reader, at(mxc), 206, Range="bytes=5-") == b"text"
        await read(reader, at(mxc), 304, If_None_Match=first["ETag"])
        await read(reader, at(mxc), 416, Range="bytes=99-")
    assert again == first


async def test_names_and_thumbnails_are_hot_by_themselves(
    archive: Archive, reader: Reader
) -> None:
    """Each is asked for once. A thumbnail is, once it is kept."""
    mxc = await archive.put(png(64, 64, (1, 2, 3)))
    small = f"{THUMBNAIL}/{mxc.server_name}/{mxc.media_id}?width=32&height=32"
    paths = [at(mxc), at(mxc, "/b.png"), small]
    for path in paths:
        await until_hot(reader, path)
    async with asyncio.timeout(5), nobody_is_told(archive.pool):
        answers = []
        for path in paths:
            async with reader.ask(path) as answer:
                answers.append((await answer.read(), answer.headers["Content-Disposition"]))
                assert answer.headers["X-Cache"] == "HIT"
    (whole, _), (same, name), (picture, _) = answers
    assert whole == same != picture
    assert name == 'inline; filename="b.png"'


async def test_a_hot_read_is_a_read(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """It counts, and it is told who it was."""
    mxc = await archive.put(DATA)
    secret = await archive.token()
    async with serving(archive, database_url) as server:
        for _ in range(3):
            await read(Reader(http, server, secret), at(mxc))
    assert await archive.pool.fetchval("SELECT sum(times) FROM reading") == 3
    assert await archive.pool.fetchval("SELECT access_count FROM media") == 3


async def test_it_is_counted_whence_readers_get_it(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """From a store first and then from memory; yesterday's reads are recent, those of a year ago
    are not, and a reader of `stats` sees both."""
    mxc = await archive.put(DATA)
    secret = await archive.token()
    add_day = "INSERT INTO served VALUES ((now() AT TIME ZONE 'UTC')::date - $1::int, 'store', $2)"
    for days, count in ((1, 10), (365, 100)):
        await archive.pool.execute(add_day, days, count)

    async with serving(archive, database_url) as server:
        reads = await until_hot(Reader(http, server, secret), at(mxc))
    async with serving(archive, database_url) as server:
        served = (await Reader(http, server, secret).json("/api/v1/stats"))["served"]
    assert served == {
        "ever": {"memory": 1, "store": reads - 1 + 110, "missed": 0},
        "recent": {"memory": 1, "store": reads - 1 + 10, "missed": 0},
    }


QUARANTINE = "UPDATE media SET state = 'quarantined' WHERE media_id = $1"
DELETE = "UPDATE media SET state = 'deleted', blob_sha256 = NULL WHERE media_id = $1"
GONE = "DELETE FROM media WHERE media_id = $1"
HIDDEN = "UPDATE media SET redacted_at = now() WHERE media_id = $1"  # no event names it


@pytest.mark.parametrize("statement", [QUARANTINE, DELETE, GONE, HIDDEN])
async def test_what_is_taken_away_is_gone_from_every_server(
    archive: Archive, both: list[Reader], statement: str
) -> None:
    """Whole, in part and as a picture, whoever took it away and how."""
    mxc = await archive.put(png(64, 64, (1, 2, 3)))
    small = f"{THUMBNAIL}/{mxc.server_name}/{mxc.media_id}?width=32&height=32"
    for reader in both:
        for path in (small, small, at(mxc), at(mxc)):
            await read(reader, path)
    await archive.pool.execute(statement, mxc.media_id)
    for reader in both:
        await reader.until(at(mxc), 404)
        await reader.until(small, 404)
        await read(reader, at(mxc), 404, Range="bytes=0-1")
        await read(reader, at(mxc), 404, If_None_Match="*")


async def test_other_bytes_take_the_place_of_the_old_ones(
    archive: Archive, both: list[Reader]
) -> None:
    """With their own type and name."""
    mxc, twin = await archive.put(DATA, "text/plain"), await archive.put(OTHER, "text/plain")
    for reader in both:
        assert await read(reader, at(mxc)) == DATA
    await archive.pool.execute(
        "UPDATE media SET blob_sha256 = twin.blob_sha256, declared_type = 'text/csv',"
        " upload_name = 'b' FROM media AS twin WHERE media.media_id = $1 AND twin.media_id = $2",
        mxc.media_id,
        twin.media_id,
    )
    for reader in both:
        async with asyncio.timeout(20):
            while await read(reader, at(mxc)) != OTHER:
                pass
        async with reader.get(mxc) as answer:
            assert answer.headers["Content-Type"] == "text/csv"
            assert answer.headers["Content-Disposition"].endswith('; filename="b"')


async def test_a_redaction_hides_what_is_hot(archive: Archive, both: list[Reader]) -> None:
    """Bytes whose only event it was about, and the name that only its event gave."""
    await push(archive.pool, image("$one", "cat"), image("$two", "dog"), image("$three", "dog"))
    twin = await archive.put(DATA)
    await archive.pool.execute(
        "UPDATE reference SET filename = CASE event_id WHEN '$three' THEN NULL ELSE 'secret' END"
    )
    await archive.pool.execute(
        "UPDATE media SET state = 'ready', due_at = NULL, blob_sha256 ="
        " (SELECT blob_sha256 FROM media WHERE media_id = $1) WHERE state = 'pending'",
        twin.media_id,
    )
    for one in both:
        for media_id in ("cat", "dog"):
            async with one.get(named(media_id)) as answer:
                assert "secret" in answer.headers["Content-Disposition"]
    redactions = redaction("$r1", "$one"), redaction("$r2", "$two")
    await push(archive.pool, *redactions)
    await redact(archive.pool)
    admin = await archive.token("admin", Scope.ADMIN)
    for one in both:
        await one.until(at(named("cat")), 404)
        # What an administrator sees on purpose is for nobody else, hot or not.
        as_admin = Reader(one.session, one.server, admin)
        for _ in range(2):
            async with as_admin.ask(at(named("dog")) + "?hidden=true") as answer:
                assert "secret" in answer.headers["Content-Disposition"]
            await until_named(one, named("dog"), "attachment")
            await read(one, at(named("cat")), 404)


async def until_named(reader: Reader, mxc: Mxc, disposition: str) -> None:
    async with asyncio.timeout(20):
        while True:
            async with reader.get(mxc) as answer:
                if answer.headers["Content-Disposition"] == disposition:
                    return


async def test_a_revoked_token_opens_nothing_that_is_hot(
    archive: Archive, both: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The door comes first, at every server."""
    monkeypatch.setattr(remembered, "REMEMBER_SECONDS", 3600)
    mxc = await archive.put(DATA)
    for reader in both:
        await read(reader, at(mxc))
    async with archive.pool.acquire() as conn:
        assert await tokens.revoke(conn, "reader")
    for reader in both:
        await reader.until(at(mxc), 401)


@pytest.mark.parametrize("reconnect_after", [0.01, 3600.0], ids=["reconnected", "deaf"])
async def test_who_may_have_missed_a_change_asks_anew(
    archive: Archive, reader: Reader, monkeypatch: pytest.MonkeyPatch, reconnect_after: float
) -> None:
    """What nobody told is served while the connection stands, and no longer."""
    monkeypatch.setattr(listen, "RECONNECT_AFTER", reconnect_after)
    mxc, other = await archive.put(DATA), await archive.put(OTHER)
    await read(reader, at(mxc))
    await archive.pool.execute("ALTER TABLE media DISABLE TRIGGER media_changed")
    await archive.pool.execute(QUARANTINE, mxc.media_id)
    assert await read(reader, at(mxc)) == DATA
    for pid in await archive.pool.fetch(LISTENERS):
        await archive.pool.fetchval("SELECT pg_terminate_backend($1)", pid[0])
    await reader.until(at(mxc), 404)
    if reconnect_after > 1:  # and nothing is kept
        await read(reader, at(other))
        await archive.pool.execute(QUARANTINE, other.media_id)
        await read(reader, at(other), 404)


async def test_what_changes_nothing_is_not_told(pool: Pool, archive: Archive) -> None:
    """Neither reads that are counted nor media that were not ready; what is told names it."""
    mxc, waiting = await archive.put(DATA), await archive.put_state("pending", None)
    await pool.execute(DELETE, (await archive.put(OTHER)).media_id)
    told: list[object] = []
    async with pool.acquire() as conn:
        await conn.add_listener(CHANGED, lambda *call: told.append(call[3]))
        now: datetime = await conn.fetchval("SELECT now()")
        await add(conn, {mxc: Accesses(1, now), waiting: Accesses(1, now)})
        await conn.execute("UPDATE media SET state = state, upload_name = upload_name")
        await conn.execute("UPDATE media SET reason = 'late' WHERE state = 'pending'")
        await conn.execute("UPDATE media SET redacted_at = now() WHERE state <> 'ready'")
        await conn.execute(GONE, waiting.media_id)
        await conn.execute("UPDATE media SET upload_name = 'a' WHERE media_id = $1", mxc.media_id)
        await eventually(lambda: bool(told))
        await conn.reset()
    assert told == [f"{mxc.server_name}/{mxc.media_id}"]


class Proxy:
    """A way to the database on which answers can be held up."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._from: bytes | None = None
        self.held = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The URL of the database by this way."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = self._to.netloc.rpartition("@")[0]
        try:
            yield urlunsplit(self._to._replace(netloc=f"{user}@127.0.0.1:{port}"))
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @asynccontextmanager
    async def pausing(self, data: bytes) -> AsyncIterator[None]:
        """An answer with the data arrives after the block, and what comes after it.

        Those before it pass: a connection that never asked the question may be told its shape
        first.
        """
        self._from = data
        self._open.clear()
        yield
        self._from = None
        self._open.set()

    async def _connected(self, up: asyncio.StreamReader, down: asyncio.StreamWriter) -> None:
        server = await asyncio.open_connection(self._to.hostname, self._to.port)
        ways = ((up, server[1], self._pass), (server[0], down, self._answer))
        for reader, writer, way in ways:
            task = asyncio.create_task(self._pump(reader, writer, way))
            self._tasks.add(task)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: Callable[[bytes], Awaitable[None]],
    ) -> None:
        try:
            while data := await reader.read(65536):
                await way(data)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    async def _pass(self, _data: bytes) -> None:
        """On its way up."""

    async def _answer(self, data: bytes) -> None:
        if self._from is not None and self._from in data:
            self.held.set()
            await self._open.wait()


async def test_an_answer_older_than_a_change_is_not_kept(
    archive: Archive, database_url: str, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A look that was under way may still be answered with, once."""
    mxc, hot = await archive.put(DATA), await archive.put(OTHER)
    secret = await archive.token()
    proxy = Proxy(database_url)
    async with proxy.running() as url, open_pool(url, 4) as pool:
        slow = Archive(pool, tmp_path / "slow")
        async with serving(slow, database_url) as server:
            reader = Reader(http, server, secret)
            await read(reader, at(hot))
            await eventually(lambda: held() == 1)
            async with proxy.pausing(DATA):
                asking = asyncio.create_task(read(reader, at(mxc)))
                await asyncio.wait_for(proxy.held.wait(), DEADLINE_SECONDS)
                async with archive.pool.acquire() as conn, conn.transaction():
                    await conn.execute(QUARANTINE, mxc.media_id)
                    await conn.execute(QUARANTINE, hot.media_id)
                await eventually(lambda: held() == 0)
            assert await asking == DATA
            await read(reader, at(mxc), 404)
            assert held() == 0


def held() -> float | None:
    return REGISTRY.get_sample_value("archiver_hot_entries")


async def test_the_upload_limit_is_nothing(reader: Reader) -> None:
    """Matrix clients ask for it; it is for readers, and pages may ask too."""
    async with reader.ask("/_matrix/client/v1/media/config") as answer:
        assert await answer.json() == {"m.upload.size": 0}
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    async with reader.ask("/_matrix/client/v1/media/config", "OPTIONS") as answer:
        assert answer.status == 204
    reader.headers = {}
    assert await reader.status("/_matrix/client/v1/media/config") == 401
