"""The access log of people: who read what, when, and for how long that is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest
from yarl import URL

from archiver.catalogue import readers, signing_keys
from archiver.catalogue.readers import After
from archiver.db.migrate import migrate
from archiver.db.pool import open_pool
from archiver.model import Mxc, Scope
from archiver.serve import readers as readings
from archiver.serve.access import Access
from archiver.serve.matrix_tokens import MatrixTokens
from archiver.serve.readers import Reader as Who
from archiver.serve.readers import Readings
from tests.integration.test_query_plans import assert_lean, plan
from tests.integration.test_signed_urls import asked_to_sign, content, said, url
from tests.support.accounts import ADMIN, ALICE, Accounts
from tests.support.custody import tamper
from tests.support.homeserver import SERVER_NAME, Homeserver
from tests.support.postgres import PostgresProcess
from tests.support.serving import Archive, Reader, member, serving

if TYPE_CHECKING:
    from archiver.db.pool import Pool

DATA = b"some text"
READS = "/api/v1/reads"
SOMEBODY = Who("token:somebody", Scope.READ)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are short here."""
    monkeypatch.setattr(readings, "FLUSH_SECONDS", 0.05)


@pytest.fixture
async def admin(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> AsyncIterator[Reader]:
    """Somebody with scope admin."""
    secret = await archive.token("boss", Scope.ADMIN)
    async with serving(archive, database_url) as server:
        yield Reader(http, server, secret)


async def logged(admin: Reader, number: int, query: str = "") -> list[dict[str, Any]]:
    """The log, once it has so many entries."""
    async with asyncio.timeout(20):
        while True:
            reads: list[dict[str, Any]] = (await admin.json(READS + query))["reads"]
            if len(reads) >= number:
                return reads
            await asyncio.sleep(0.01)


async def read(
    reader: Reader, path: str, secret: str, expected: int = 200, **headers: str
) -> None:
    """Reads to the end."""
    async with reader.ask(path, Authorization=f"Bearer {secret}", **headers) as answer:
        assert answer.status == expected
        await answer.read()


async def test_whoever_reads_is_recorded(archive: Archive, admin: Reader) -> None:
    """By name, with the media and the time; many reads in a moment are one entry."""
    before = datetime.now(UTC)
    mxc = await archive.put(DATA, "text/plain")
    secret = await archive.token("panel")
    for _ in range(3):
        await read(admin, content(mxc), secret)
    async with asyncio.timeout(20):
        while sum(entry["times"] for entry in await logged(admin, 1)) < 3:
            pass
    for entry in await logged(admin, 1):
        assert (entry["reader"], entry["via"], entry["mxc"]) == ("token:panel", None, str(mxc))
        first, last = (datetime.fromisoformat(entry[key]) for key in ("first_at", "last_at"))
        assert before <= first <= last <= datetime.now(UTC)


async def test_every_way_to_bytes_is_recorded(archive: Archive, admin: Reader) -> None:
    """A part is enough to be one, wherever it begins; a face is, too."""
    secret = await archive.token("panel")
    ways = {
        "{}/name": {},
        "{}": {"Range": "bytes=1-2"},
        "/api/v1/media/{s}/{i}/content": {},
        "/api/media/download/{s}/{i}": {},
        "/api/v1/users/@alice:archive.test/avatar": {},
    }
    for number, (way, headers) in enumerate(ways.items()):
        mxc = await archive.put(DATA, "text/plain")
        await archive.record(member("@alice:archive.test", number, avatar_url=str(mxc)))
        path = way.format(content(mxc), s=mxc.server_name, i=mxc.media_id)
        await read(admin, path, secret, 206 if headers else 200, **headers)
        assert len(await logged(admin, 1, f"?media={mxc}")) == 1


async def test_what_gives_no_bytes_is_not_recorded(archive: Archive, admin: Reader) -> None:
    """Headers, what the browser has already, what is not there, and who was refused."""
    mxc, waits = await archive.put(DATA, "text/plain"), await archive.put_state("pending", None)
    secret = await archive.token("panel")
    async with admin.ask(content(mxc), "HEAD") as answer:
        etag = answer.headers["ETag"]
    await read(admin, content(mxc), secret, 304, If_None_Match=etag)
    await read(admin, content(waits), secret, 504)
    await read(admin, content(mxc), "mma_wrong", 401)
    await read(admin, f"/api/v1/media/{mxc.server_name}/{mxc.media_id}", secret)
    last = await archive.put(DATA, "text/plain")
    await read(admin, content(last), secret)
    assert [entry["mxc"] for entry in await logged(admin, 1)] == [str(last)]


async def test_a_matrix_user_is_recorded_by_his_id(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """Also when he reads by a URL that the archive signed for him."""
    mxc = await archive.put(DATA, "text/plain")
    async with Homeserver() as homeserver:
        Accounts(homeserver)
        matrix = MatrixTokens(http, homeserver.url, SERVER_NAME, local_users=False)
        async with serving(archive, database_url, access=Access(matrix)) as server:
            alice = Reader(http, server, ADMIN)
            await read(alice, content(mxc), ADMIN)
            signed = URL((await asked_to_sign(alice, mxc, {}, ADMIN))[1]["url"]).relative()
            assert (await said(alice, str(signed)))[0] == 200
            entries = await logged(alice, 2, f"?reader={quote(f'user:{ALICE}')}")
    assert [entry["via"] for entry in entries] == ["archive", None]


@pytest.mark.parametrize(
    ("behalf", "name"),
    [([], "key:panel"), ([("for", "@mod:a.test")], "key:panel for @mod:a.test")],
    ids=["for itself", "for somebody"],
)
async def test_a_key_is_recorded_by_its_name(
    archive: Archive, admin: Reader, behalf: list[tuple[str, str]], name: str
) -> None:
    """With whom it says that it signed for: its own word, and shown as such."""
    mxc = await archive.put(DATA, "text/plain")
    async with archive.pool.acquire() as conn:
        key = await signing_keys.create(conn, "panel", Scope.READ, None)
    assert (await said(admin, url(key, content(mxc), parameters=behalf)))[0] == 200
    [entry] = await logged(admin, 1)
    assert (entry["reader"], entry["via"]) == (name, "panel")


async def test_only_administrators_see_it(archive: Archive, admin: Reader) -> None:
    """Scope read is refused, with the reason."""
    secret = await archive.token("panel")
    async with admin.ask(READS, Authorization=f"Bearer {secret}") as answer:
        assert answer.status == 403
        assert "scope admin" in (await answer.json())["error"]


async def fill(pool: Pool, number: int = 10) -> list[Mxc]:
    """A read a minute since noon, by two readers in turn, each of another media."""
    await pool.execute(
        "INSERT INTO reading (reader, server_name, media_id, times, first_at, last_at)"
        " SELECT 'token:' || (array['a', 'b'])[n % 2 + 1], 'remote.example', 'm' || n / 2, 1, t, t"
        " FROM generate_series(0, $1 - 1) AS n,"
        " LATERAL (SELECT timestamptz '2025-01-01T12:00Z' + n * interval '1 min' AS t) AS at",
        number,
    )
    return [Mxc("remote.example", f"m{n // 2}") for n in range(number)]


@pytest.mark.parametrize(
    ("query", "minutes"),
    [
        ("", [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("?reader=token:b", [9, 7, 5, 3, 1]),
        ("?reader=token:nobody", []),
        ("?media=mxc://remote.example/m1", [3, 2]),
        ("?media=remote.example/m1&reader=token:a", [2]),
        ("?since=2025-01-01T12:07:00Z", [9, 8, 7]),
        ("?until=2025-01-01T12:02:00%2B00:00", [1, 0]),
        ("?until=2025-01-01T13:02:00+01:00", [1, 0]),
        ("?since=2025-01-01T12:03:00Z&until=2025-01-01T12:05:00&reader=token:b", [3]),
        ("?since=2025-01-02", []),
        ("?until=9999-12-31&since=0001-01-02&limit=2", [9, 8]),
    ],
)
async def test_the_log_is_filtered(
    archive: Archive, admin: Reader, query: str, minutes: list[int]
) -> None:
    """By reader, by media and by time, newest first."""
    await fill(archive.pool)
    reads = (await admin.json(READS + query))["reads"]
    assert [datetime.fromisoformat(entry["last_at"]).minute for entry in reads] == minutes


async def test_pages_are_stable(archive: Archive, admin: Reader) -> None:
    """Each entry once, though more are written meanwhile, and many at the same moment."""
    await fill(archive.pool)
    await tamper(archive.pool, "UPDATE reading SET last_at = '2025-01-01'")
    found = []
    cursor: str | None = ""
    while cursor is not None:
        page = await admin.json(f"{READS}?limit=3{cursor and f'&from={cursor}'}")
        found += [(entry["mxc"], entry["reader"]) for entry in page["reads"]]
        cursor = page["next"]
        async with archive.pool.acquire() as conn:
            now = datetime.now(UTC)
            extra = readers.Read("token:new", None, Mxc("a.test", "b"))
            await readers.add(conn, {extra: readers.Reads(1, now, now)})
    assert len(found) == len(set(found)) == 10


@pytest.mark.parametrize(
    "query",
    ["media=x", "media=mxc://a/b/c", "since=yesterday", "until=2025-13-01", "limit=0", "from=x",
     "from=WyIyMDI1LTAxLTAxVDAwOjAwOjAwWiIsdHJ1ZV0", "reader=%00",
     "since=0001-01-01T00:00%2B14:00"],
)  # fmt: skip
async def test_a_wrong_filter_is_a_sentence(admin: Reader, query: str) -> None:
    """That names it."""
    async with admin.ask(f"{READS}?{query}") as answer:
        assert answer.status == 400
        refusal = await answer.json()
    assert refusal["errcode"] == "M_INVALID_PARAM"
    assert refusal["error"].startswith(query.partition("=")[0])


async def test_nothing_is_recorded_where_it_is_not_wanted(pool: Pool) -> None:
    """`keep_reads: 0 d`."""
    log = Readings(pool, timedelta(0))
    log.add(SOMEBODY, Mxc("a.test", "b"))
    await log.flush()
    assert await pool.fetchval("SELECT count(*) FROM reading") == 0


@pytest.mark.parametrize(("keep", "left"), [(timedelta(days=3), 3), (None, 10)])
async def test_old_entries_are_deleted_in_small_batches(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, keep: timedelta | None, left: int
) -> None:
    """What is older than `keep_reads`, and nothing else; null keeps all."""
    monkeypatch.setattr(readings, "TIDY_AT_ONCE", 2)
    await fill(pool)
    age = "UPDATE reading SET last_at = now() - interval '1 day' * (id - 1) - interval '1 h'"
    await tamper(pool, age)
    tidying = asyncio.create_task(Readings(pool, keep).tidy())
    async with asyncio.timeout(20):
        while await pool.fetchval("SELECT count(*) FROM reading") > left:
            pass
    done, _ = await asyncio.wait([tidying], timeout=0.05)
    assert bool(done) is (keep is None)
    assert await pool.fetchval("SELECT count(*) FROM reading") == left
    tidying.cancel()
    await asyncio.wait([tidying])


async def test_an_outage_loses_no_reads(own_postgres: PostgresProcess) -> None:
    """What cannot be written waits, and is written with what came since."""
    conn = await asyncpg.connect(own_postgres.url)
    await migrate(conn)
    await conn.close()
    async with open_pool(own_postgres.url, 2) as pool:
        log = Readings(pool, None)
        log.add(SOMEBODY, Mxc("a.test", "b"))
        await asyncio.to_thread(own_postgres.stop)
        await log.flush()
        log.add(SOMEBODY, Mxc("a.test", "b"))
        log.add(SOMEBODY, Mxc("a.test", "c"))
        await log.flush()
        await asyncio.to_thread(own_postgres.start)
        await log.flush()
        await log.flush()
        rows = await pool.fetch("SELECT media_id, times FROM reading ORDER BY media_id")
        assert [tuple(row) for row in rows] == [("b", 2), ("c", 1)]


async def test_what_is_gathered_is_bounded(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond that, entries that are there are counted, and no new ones begin."""
    monkeypatch.setattr(readings, "MOST_READS", 2)
    log = Readings(pool, None)
    for media_id in ("a", "b", "c", "a"):
        log.add(SOMEBODY, Mxc("a.test", media_id))
    await log.flush()
    rows = await pool.fetch("SELECT media_id, times FROM reading ORDER BY media_id")
    assert [tuple(row) for row in rows] == [("a", 2), ("b", 1)]


async def test_the_last_reads_are_written_at_the_end(
    archive: Archive,
    database_url: str,
    http: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that is stopped in good order loses none."""
    monkeypatch.setattr(readings, "FLUSH_SECONDS", 3600)
    mxc = await archive.put(DATA, "text/plain")
    secret = await archive.token("panel")
    async with serving(archive, database_url) as server:
        await read(Reader(http, server, secret), content(mxc), secret)
    assert await archive.pool.fetchval("SELECT sum(times) FROM reading") == 1


@pytest.mark.parametrize("analyzed", [True, False])
async def test_a_page_is_read_by_its_index(pool: Pool, analyzed: bool) -> None:
    """Nothing is sorted and no table read whole, whatever is asked for."""
    await fill(pool, 20_000)
    if analyzed:
        await pool.execute("ANALYZE reading")
    since = datetime(2025, 1, 1, tzinfo=UTC)
    within = (since, None, *After(datetime(2025, 1, 5, tzinfo=UTC), 5), 50)
    asked: dict[str, tuple[Any, ...]] = {
        readers.PAGE: within,
        readers.PAGE_OF_READER: (*within, "token:a"),
        readers.PAGE_OF_MEDIA: (*within, "remote.example", "m5"),
        readers.PAGE_OF_BOTH: (*within, "remote.example", "m5", "token:a"),
    }
    for statement, arguments in asked.items():
        found = await plan(pool, statement, *arguments)
        assert_lean(found)
        if analyzed:
            assert "Sort" not in {node["Node Type"] for node in found}, statement
    assert_lean(await plan(pool, readers.DELETE_OLD, timedelta(days=90), 1000))
