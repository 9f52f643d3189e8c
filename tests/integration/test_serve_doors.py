"""Who may read, what is open, and what the archive says of itself."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import asyncpg
import pytest

from archiver.catalogue import tokens
from archiver.db.migrate import migrate
from archiver.db.pool import open_pool
from archiver.errors import OperationError
from archiver.model import Scope
from archiver.serve import remembered
from tests.support.postgres import PostgresProcess
from tests.support.serving import MATRIX, SERVER, Archive, Reader, serving

if TYPE_CHECKING:
    pass

DATA = b"some text"


@pytest.mark.parametrize(
    "path",
    [f"{MATRIX}/{SERVER}/abc", f"/api/v1/media/{SERVER}/abc", "/api/v1/media/a/b/content",
     f"/api/media/download/{SERVER}/abc", "/api/v1/stats", "/readyz", "/metrics"],
)  # fmt: skip
async def test_nothing_is_open_without_a_token(reader: Reader, path: str) -> None:
    """Each route says which it was: none, or a wrong one."""
    for authorization, errcode in (
        (None, "M_MISSING_TOKEN"),
        ("", "M_MISSING_TOKEN"),
        ("Bearer", "M_MISSING_TOKEN"),
        ("Basic YTpi", "M_MISSING_TOKEN"),
        ("Bearer wrong", "M_UNKNOWN_TOKEN"),
        ("Bearer mma_\u00e9", "M_UNKNOWN_TOKEN"),
        ("bearer " + "x" * 5000, "M_UNKNOWN_TOKEN"),
    ):
        headers = {"Authorization": authorization} if authorization is not None else {}
        url = reader.server.make_url(path)
        async with reader.session.get(url, headers=headers) as answer:
            assert answer.status == 401
            assert (await answer.json())["errcode"] == errcode


async def test_a_token_in_the_query_is_none(reader: Reader) -> None:
    """Only the header counts: addresses end up in logs."""
    secret = reader.headers["Authorization"].partition(" ")[2]
    url = reader.server.make_url(f"/api/v1/stats?access_token={secret}")
    async with reader.session.get(url) as answer:
        assert answer.status == 401


@pytest.mark.parametrize("scope", list(Scope))
async def test_either_scope_may_read(archive: Archive, reader: Reader, scope: Scope) -> None:
    """An administrator's token reads as well; the scheme's case does not matter."""
    mxc = await archive.put(DATA, "text/plain")
    secret = await archive.token("another", scope)
    async with reader.get(mxc, Authorization=f"bEARER {secret}") as answer:
        assert answer.status == 200
        assert await answer.read() == DATA


async def test_a_revoked_token_ends_at_once_at_every_server(
    archive: Archive, reader: Reader, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though both have it in memory, and would for long."""
    monkeypatch.setattr(remembered, "REMEMBER_SECONDS", 3600)
    mxc = await archive.put(DATA, "text/plain")
    async with serving(archive, database_url) as other:
        elsewhere = Reader(reader.session, other, reader.headers["Authorization"][7:])
        for at in (reader, elsewhere):
            async with at.get(mxc) as answer:
                assert answer.status == 200
        async with archive.pool.acquire() as conn:
            assert await tokens.revoke(conn, "reader")
        for at in (reader, elsewhere):
            await at.until("/api/v1/stats", 401)


async def test_an_expired_token_is_unknown(archive: Archive, reader: Reader) -> None:
    """Also when it was remembered before."""
    assert await reader.status("/api/v1/stats") == 200
    async with archive.pool.acquire() as conn:
        past = datetime.now(UTC) - timedelta(seconds=1)
        secret = await tokens.create(conn, "past", Scope.READ, past)
        soon = datetime.now(UTC) + timedelta(seconds=0.5)
        short = await tokens.create(conn, "soon", Scope.READ, soon)
    assert await reader.status("/api/v1/stats", Authorization=f"Bearer {secret}") == 401
    await reader.until("/api/v1/stats", 401, Authorization=f"Bearer {short}")


async def test_the_secret_of_a_token_is_nowhere_in_the_database(archive: Archive) -> None:
    """Its SHA-256 is; the list shows neither."""
    secret = await archive.token("panel", Scope.ADMIN)
    assert secret.startswith("mma_")
    async with archive.pool.acquire() as conn:
        assert secret not in str(await conn.fetch("SELECT * FROM token"))
        (row,) = await tokens.list_tokens(conn)
    assert (row["name"], row["scope"], row["revoked_at"]) == ("panel", "admin", None)
    assert "hash" not in dict(row)


async def test_a_name_belongs_to_one_live_token(archive: Archive) -> None:
    """It is free again once the token was revoked."""
    await archive.token("panel")
    with pytest.raises(OperationError, match="panel"):
        await archive.token("panel")
    async with archive.pool.acquire() as conn:
        assert await tokens.revoke(conn, "panel")
        assert not await tokens.revoke(conn, "panel")
    await archive.token("panel")


@pytest.mark.parametrize("path", [f"{MATRIX}/{SERVER}/abc", "/api/v1/media", "/api/nothing"])
async def test_a_preflight_needs_no_token(reader: Reader, path: str) -> None:
    """A browser asks before it sends one, and may then send it."""
    url = reader.server.make_url(path)
    async with reader.session.options(url, headers={"Origin": "https://panel.example"}) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
        assert "Range" in answer.headers["Access-Control-Allow-Headers"]
        assert "GET" in answer.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/_matrix/client/v1/media/nothing", 404),
        ("GET", "/api/v1/nothing", 404),
        ("POST", f"{MATRIX}/{SERVER}/abc", 405),
        ("DELETE", "/healthz", 405),
    ],
)
async def test_what_is_no_endpoint_is_unrecognized(
    reader: Reader, method: str, path: str, status: int
) -> None:
    """In Matrix's own words, with the methods that would do."""
    async with reader.ask(path, method) as answer:
        assert answer.status == status
        assert (await answer.json())["errcode"] == "M_UNRECOGNIZED"
        assert ("GET" in answer.headers.get("Allow", "")) == (status == 405)


async def test_a_media_is_described_with_all_that_is_known(
    archive: Archive, reader: Reader
) -> None:
    """Its state, its blob, and who posted it where, newest first."""
    mxc = await archive.put(DATA, "text/plain", upload_name="a.txt")
    older = await archive.refer(mxc, 1000, filename="b.txt", caption="look")
    newer = await archive.refer(mxc, 2000, encryption={"v": "v2"}, declared_size=9)
    async with reader.ask(f"/api/v1/media/{mxc.server_name}/{mxc.media_id}/") as answer:
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-store"
        said = await answer.json()
    assert said["mxc"] == str(mxc)
    assert (said["state"], said["upload_name"], said["access_count"]) == ("ready", "a.txt", 0)
    assert (said["blob"]["size"], said["blob"]["place"]) == (len(DATA), "inline")
    assert said["reference_count"] == 2
    assert [reference["event_id"] for reference in said["references"]] == [newer, older]
    first, second = said["references"]
    assert (first["encrypted"], first["encryption"]) == (True, {"v": "v2"})
    assert (second["encrypted"], second["encryption"]) == (False, None)
    assert second["room_id"] == "!room"
    assert second["caption"] == "look"


async def test_a_media_that_waits_is_described_too(archive: Archive, reader: Reader) -> None:
    """With when it will be tried; without a blob. What nobody named is not found."""
    mxc = await archive.put_state("pending", "the homeserver is away")
    async with reader.ask(f"/api/v1/media/{mxc.server_name}/{mxc.media_id}") as answer:
        said = await answer.json()
    assert (said["state"], said["reason"]) == ("pending", "the homeserver is away")
    assert said["due_at"]
    assert (said["blob"], said["references"]) == (None, [])
    assert await reader.status(f"/api/v1/media/{SERVER}/nothing") == 404


async def test_the_archive_is_counted(archive: Archive, reader: Reader) -> None:
    """Media by state, events by type, blobs and bytes by place."""
    mxc = await archive.put(DATA, "text/plain")
    await archive.put_state("failed", "gone")
    await archive.refer(mxc)
    async with reader.ask("/api/v1/stats") as answer:
        figures = await answer.json()
    assert figures.pop("coverage")["references"]["ready"] == 1
    assert figures.pop("totals")["bytes"] == len(DATA)
    assert len(figures.pop("growth")) == 12
    assert figures.pop("forecast")["bytes_per_day"] == len(DATA)
    assert figures.pop("counted_at")
    assert figures.pop("verified")["never"] == 1
    assert figures.pop("served")["ever"] == {"memory": 0, "store": 0, "missed": 0}
    assert figures.pop("now")["damaged"]["blobs"] == 0
    assert figures == {
        "processing": {"pending": 0, "failed": 0},
        "media": {"failed": 1, "ready": 1},
        "events": {"m.room.message": 1},
        "blobs": {"inline": {"blobs": 1, "bytes": len(DATA)}},
    }


async def test_the_archive_says_how_it_does(archive: Archive, reader: Reader) -> None:
    """Alive to anyone, ready and measured to those with a token."""
    await archive.put_state("pending", None)
    async with reader.session.get(reader.server.make_url("/healthz")) as answer:
        assert answer.status == 200
    assert await reader.status("/readyz") == 200
    async with reader.ask("/metrics") as answer:
        assert answer.status == 200
        text = await answer.text()
    assert 'archiver_media{state="pending"} 1.0' in text
    assert 'archiver_requests_total{route="/readyz",status="200"}' in text


async def test_an_object_store_that_is_away_is_named(
    archive: Archive, reader: Reader, tmp_path: Path
) -> None:
    """Not ready: what does not answer, and where to look."""
    (tmp_path / "objects").rename(tmp_path / "unmounted")
    async with reader.ask("/readyz") as answer:
        assert answer.status == 503
        said = await answer.json()
    assert list(said["away"]) == ["object store"]
    assert "storage.filesystem.path" in said["error"]


async def test_without_the_database_readers_are_asked_to_come_back(
    own_postgres: PostgresProcess, tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    """503 with Retry-After while it is away, 200 once it is back; health is known throughout."""
    conn = await asyncpg.connect(own_postgres.url)
    await migrate(conn)
    await conn.close()
    async with open_pool(own_postgres.url, 5) as pool:
        archive = Archive(pool, tmp_path)
        await archive.store.open()
        mxc = await archive.put(DATA, "text/plain")
        secret = await archive.token()
        async with serving(archive, own_postgres.url) as server:
            reader = Reader(http, server, secret)
            assert await reader.status("/api/v1/stats") == 200
            await asyncio.to_thread(own_postgres.stop)
            async with reader.get(mxc) as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"]
                assert "database" in (await answer.json())["error"]
            assert await reader.status("/api/v1/stats", Authorization="Bearer mma_new") == 503
            assert await reader.status("/healthz") == 200
            assert await reader.status("/metrics") == 200
            async with reader.ask("/readyz") as answer:
                assert answer.status == 503
                assert list((await answer.json())["away"]) == ["database"]
            await asyncio.to_thread(own_postgres.start)
            await reader.until("/readyz", 200)
            async with reader.get(mxc) as answer:
                assert await answer.read() == DATA
