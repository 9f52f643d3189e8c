"""Media is served by its mxc URI: whole, in parts, safely labelled, from wherever it rests."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from prometheus_client import REGISTRY

from archiver.model import Mxc
from tests.support.serving import (
    DEADLINE_SECONDS,
    INLINE_LIMIT,
    MATRIX,
    SERVER,
    Archive,
    Reader,
    eventually,
    serving,
)

if TYPE_CHECKING:
    from archiver.db.pool import Pool

PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR\0\0\0\x02\0\0\0\x03" + bytes(100)


def image(size: int) -> bytes:
    """A PNG by its magic number, unlike any other."""
    return PNG + secrets.token_bytes(size - len(PNG))


@pytest.mark.parametrize(
    "path",
    [
        f"{MATRIX}/%s/%s",
        f"{MATRIX}/%s/%s/",
        f"{MATRIX}/%s/%s?allow_redirect=true&admin_unsafely_bypass_quarantine=true",
        "/api/v1/media/%s/%s/content",
        "/api/media/download/%s/%s",
        "/api/media/download/%s/%s/",
    ],
)
async def test_every_path_gives_the_bytes_with_all_headers(
    archive: Archive, reader: Reader, path: str
) -> None:
    """The Matrix face, our own API and the alias of older panels answer alike."""
    mxc = await archive.put(PNG, upload_name="cat.png")
    async with reader.ask(path % mxc) as answer:
        assert answer.status == 200
        assert await answer.read() == PNG
        headers = dict(answer.headers)
    headers.pop("Date")
    headers.pop("Server")
    assert headers == {
        "Content-Type": "image/png",
        "Content-Length": str(len(PNG)),
        "Content-Disposition": 'inline; filename="cat.png"',
        "Etag": f'"{hashlib.sha256(PNG).hexdigest()}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Security-Policy": (
            "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf;"
            " style-src 'unsafe-inline'; media-src 'self'; object-src 'self';"
        ),
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Referrer-Policy": "no-referrer",
        "X-Cache": "HIT",
        "X-Content-Type-Options": "nosniff",
        "X-Robots-Tag": "noindex, nofollow, noarchive, noimageindex",
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Expose-Headers": headers["Access-Control-Expose-Headers"],
    }


@pytest.mark.parametrize("size", [len(PNG), INLINE_LIMIT, INLINE_LIMIT + 1])
async def test_head_says_what_get_would(archive: Archive, reader: Reader, size: int) -> None:
    """HEAD has the headers of the whole, a Range notwithstanding, and no body."""
    mxc = await archive.put(image(size))
    path = f"{MATRIX}/{mxc.server_name}/{mxc.media_id}"
    async with reader.get(mxc) as whole:
        expected = {**whole.headers, "Date": ""}
    async with reader.ask(path, "HEAD", Range="bytes=0-1") as answer:
        assert answer.status == 200
        assert {**answer.headers, "Date": ""} == expected
        assert await answer.read() == b""


@pytest.mark.parametrize("size", [0, 1, INLINE_LIMIT, INLINE_LIMIT + 1, 3 * 2**20 + 7])
async def test_the_bytes_are_identical(archive: Archive, reader: Reader, size: int) -> None:
    """At every size, on both sides of the inline limit."""
    data = secrets.token_bytes(size)
    mxc = await archive.put(data, "application/octet-stream")
    async with reader.get(mxc) as answer:
        assert answer.status == 200
        assert await answer.read() == data
    async with reader.get(mxc, If_None_Match='"other"') as answer:
        assert await answer.read() == data


@pytest.mark.parametrize("size", [2**20, 2**20 + 1, 3 * 2**20 + 7])
async def test_large_inline_blobs_come_in_pieces(
    pool: Pool, database_url: str, http: aiohttp.ClientSession, tmp_path: Path, size: int
) -> None:
    """Under a high limit too, the bytes and their ranges are the same, from the database alone."""
    archive = Archive(pool, tmp_path, inline_limit=4 * 2**20)
    await archive.store.open()
    data = secrets.token_bytes(size)
    mxc = await archive.put(data, "application/octet-stream")
    async with serving(archive, database_url) as server:
        reader = Reader(http, server, await archive.token())
        async with reader.get(mxc) as answer:
            assert (answer.content_length, await answer.read()) == (size, data)
        async with reader.get(mxc, Range="bytes=1000000-1048570") as answer:
            assert await answer.read() == data[1000000:1048571]
    assert await archive.objects.size(await digest_of(archive, mxc)) is None


@pytest.mark.parametrize("size", [1000, INLINE_LIMIT + 1000])
@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-99", 206, 0, 100),
        ("bytes=100-199", 206, 100, 200),
        ("bytes=-100", 206, -100, None),
        ("bytes=500-", 206, 500, None),
        ("bytes=500-99999999", 206, 500, None),
        ("bytes=99999999-", 416, 0, 0),
        ("bytes=0-0,5-9", 200, 0, None),
        ("bytes=9-5", 200, 0, None),
        ("lines=1-2", 200, 0, None),
    ],
)
async def test_one_range_is_served(
    archive: Archive, reader: Reader, size: int, asked: str, status: int, start: int,
    stop: int | None,
) -> None:  # fmt: skip
    """A part with its place in the whole; 416 past the end; the whole for anything else."""
    data = secrets.token_bytes(size)
    mxc = await archive.put(data, "application/octet-stream")
    async with reader.get(mxc, Range=asked) as answer:
        assert answer.status == status
        body = await answer.read()
        place = answer.headers.get("Content-Range")
    if status == 416:
        assert place == f"bytes */{size}"
        return
    first, past = range(size)[start:stop].start, range(size)[start:stop].stop
    assert body == data[first:past]
    assert place == (f"bytes {first}-{past - 1}/{size}" if status == 206 else None)


async def test_a_reader_who_has_the_bytes_gets_none(archive: Archive, reader: Reader) -> None:
    """If-None-Match with the ETag is answered 304, with the headers a cache renews."""
    mxc = await archive.put(PNG)
    etag = f'"{hashlib.sha256(PNG).hexdigest()}"'
    for condition in (etag, f'"x", W/{etag}', "*"):
        async with reader.get(mxc, If_None_Match=condition, Range="bytes=0-1") as answer:
            assert answer.status == 304
            assert await answer.read() == b""
            assert answer.headers["ETag"] == etag
            assert "immutable" in answer.headers["Cache-Control"]


async def test_a_part_of_other_bytes_is_not_served(archive: Archive, reader: Reader) -> None:
    """If-Range with another ETag gets the whole."""
    mxc = await archive.put(PNG)
    etag = f'"{hashlib.sha256(PNG).hexdigest()}"'
    for condition, status in ((etag, 206), ('"x"', 200)):
        async with reader.get(mxc, Range="bytes=0-1", If_Range=condition) as answer:
            assert answer.status == status


@pytest.mark.parametrize(
    ("declared", "data", "content_type", "kind"),
    [
        ("image/png", PNG, "image/png", "inline"),
        ("image/jpeg", PNG, "application/octet-stream", "attachment"),
        ("text/plain", PNG, "application/octet-stream", "attachment"),
        ("image/svg+xml", b"<svg onload='alert(1)'/>", "image/svg+xml", "attachment"),
        ("text/html", b"<script>alert(1)</script>", "text/html", "attachment"),
        ("application/pdf", b"%PDF-1.7 ", "application/pdf", "attachment"),
        ("text/plain", b"<script>alert(1)</script>", "text/plain", "inline"),
        ("application/octet-stream", PNG, "application/octet-stream", "attachment"),
        ("image/png", bytes(range(99)), "application/octet-stream", "attachment"),
        ("text/plain\r\nX-Evil: 1", b"text", "application/octet-stream", "attachment"),
    ],
)
async def test_hostile_media_is_a_download(
    archive: Archive, reader: Reader, declared: str, data: bytes, content_type: str, kind: str
) -> None:
    """Only the specification's list is inline, and only where the magic number agrees."""
    mxc = await archive.put(data, declared)
    async with reader.get(mxc) as answer:
        assert answer.headers["Content-Type"] == content_type
        assert answer.headers["Content-Disposition"] == kind
        assert "X-Evil" not in answer.headers


async def test_the_file_name_is_the_path_s_then_an_event_s_then_the_upload_s(
    archive: Archive, reader: Reader
) -> None:
    """Whoever asks may choose; else what people saw in the room counts more."""
    mxc = await archive.put(PNG, upload_name="upload.png")
    other = await archive.put(PNG, upload_name="upload.png")
    path = f"{MATRIX}/{mxc.server_name}/{mxc.media_id}"

    async def name_of(path: str) -> str:
        async with reader.ask(path) as answer:
            assert answer.status == 200
            return answer.headers["Content-Disposition"].removeprefix("inline; filename=")

    assert await name_of(f"{MATRIX}/{other.server_name}/{other.media_id}") == '"upload.png"'
    await archive.refer(mxc, role="thumbnail")
    await archive.refer(mxc, filename="event.png")
    assert await name_of(path) == '"event.png"'
    assert await name_of(f"{path}/asked.png") == '"asked.png"'
    assert await name_of(f"{path}/a%0d%0aX-Evil:%201%2F..%2Fb") == '"aX-Evil: 1_.._b"'
    assert (await name_of(f"{path}/" + "x" * 4000)).count("x") == 200


@pytest.mark.parametrize(
    ("state", "reason", "status", "errcode"),
    [
        ("pending", None, 504, "M_NOT_YET_UPLOADED"),
        ("pending", "the homeserver is away", 504, "M_NOT_YET_UPLOADED"),
        ("failed", "the homeserver forgot it", 404, "M_NOT_FOUND"),
        ("excluded", "capture.max_size", 404, "M_NOT_FOUND"),
        ("deleted", None, 404, "M_NOT_FOUND"),
        ("quarantined", "an order", 404, "M_NOT_FOUND"),
    ],
)
async def test_what_is_not_ready_says_why(
    archive: Archive, reader: Reader, state: str, reason: str | None, status: int, errcode: str
) -> None:
    """Still on its way is another answer than not to be had; both give the reason known."""
    async with reader.get(await archive.put_state(state, reason)) as answer:
        assert answer.status == status
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        error = await answer.json()
    assert error["errcode"] == errcode
    assert reason is None or reason in error["error"]


async def test_what_nobody_named_is_not_found(reader: Reader) -> None:
    """An unknown media is 404 M_NOT_FOUND."""
    async with reader.get(Mxc(SERVER, "nothing")) as answer:
        assert answer.status == 404
        assert (await answer.json())["errcode"] == "M_NOT_FOUND"


@pytest.mark.parametrize("face", [MATRIX, "/api/media/download", "/api/v1/media"])
@pytest.mark.parametrize(
    "path",
    [
        "../etc",
        "../../../../etc/passwd",
        "%2e%2e/abc",
        "%2e%2e%2fetc%2fpasswd/abc",
        "remote.example/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "remote.example/..%5c..%5cboot.ini",
        "remote.example/abc%00",
        "remote.example/abc%0a",
        "remote.example/abc%252f",
        "remote.example/",
        "/abc",
        "remote.example/" + "a" * 256,
        "a" * 256 + "/abc",
        "remote.example/%F0%9F%98%80",
        "remote.example/%ff%fe",
        "user@host/abc",
    ],
)
async def test_path_tricks_are_refused(reader: Reader, face: str, path: str) -> None:
    """What is no server name and media id is 400 M_INVALID_PARAM, however it is written."""
    if face == "/api/v1/media" and path.count("/") > 1:
        path = "../etc"
    status, error = await reader.raw(f"{face}/{path}")
    assert (status, error["errcode"]) == (400, "M_INVALID_PARAM")


async def test_several_readers_of_parts_get_theirs(archive: Archive, reader: Reader) -> None:
    """Five at once, each with its own part of one object, over and over."""
    data = secrets.token_bytes(5 * 2**20)
    mxc = await archive.put(data, "application/octet-stream")

    async def read(start: int) -> None:
        for _ in range(4):
            async with reader.get(mxc, Range=f"bytes={start}-{start + 2**20}") as answer:
                assert answer.status == 206
                assert await answer.read() == data[start : start + 2**20 + 1]

    await asyncio.gather(*(read(start * 777_777) for start in range(5)))


async def test_a_reader_who_leaves_midway_leaves_nothing_behind(
    archive: Archive, reader: Reader
) -> None:
    """The file is closed, and so is the connection; what was sent is counted all the same."""
    mxc = await archive.put(secrets.token_bytes(32 * 2**20), "application/octet-stream")
    path = f"{MATRIX}/{mxc.server_name}/{mxc.media_id}"
    before, sent_before = open_files(), sent()
    stream, writer = await reader.connect(path)
    await stream.readexactly(4 * 2**20)  # so some pieces of one MiB are counted
    assert str(archive.objects.path_of(await digest_of(archive, mxc))) in open_files()
    writer.transport.abort()
    await eventually(lambda: open_files() == before)
    assert 2 * 2**20 <= sent() - sent_before < 32 * 2**20
    async with reader.get(mxc, Range="bytes=0-9") as answer:
        assert answer.status == 206


async def test_readers_who_take_nothing_do_not_hold_up_others(
    archive: Archive, reader: Reader
) -> None:
    """Forty who stopped reading hold no thread, so another one is served."""
    mxc = await archive.put(secrets.token_bytes(16 * 2**20), "application/octet-stream")
    path = f"{MATRIX}/{mxc.server_name}/{mxc.media_id}"
    stalled = [await reader.connect(path) for _ in range(40)]
    for stream, _ in stalled:
        await stream.readexactly(1)
    async with asyncio.timeout(DEADLINE_SECONDS), reader.get(mxc) as answer:
        assert len(await answer.read()) == 16 * 2**20
    for _, writer in stalled:
        writer.transport.abort()


@pytest.mark.parametrize("size", [1000, INLINE_LIMIT + 1])
async def test_lost_bytes_are_an_error_that_is_counted(
    archive: Archive, reader: Reader, size: int
) -> None:
    """A row without bytes is neither a 404 nor an empty answer, for the whole and for a part."""
    mxc = await archive.put(image(size))
    digest = await digest_of(archive, mxc)
    await archive.pool.execute("DELETE FROM blob_data WHERE sha256 = $1", digest)
    await archive.objects.delete(digest)
    before = damages()
    for headers in ({}, {"Range": "bytes=0-9"}):
        async with reader.get(mxc, **headers) as answer:
            assert answer.status == 500
            assert (await answer.json())["errcode"] == "M_UNKNOWN"
    assert damages() == before + 2
    assert await noted(archive) == [digest]


async def test_an_object_that_lost_its_end_breaks_the_connection(
    archive: Archive, reader: Reader
) -> None:
    """The headers promised more, so the reader must not believe to have it all."""
    mxc = await archive.put(image(2**20))
    os.truncate(archive.objects.path_of(await digest_of(archive, mxc)), 2**19)
    before = damages()
    with pytest.raises(aiohttp.ClientPayloadError):
        async with reader.get(mxc) as answer:
            await answer.read()
    assert damages() == before + 1
    assert await noted(archive) == [await digest_of(archive, mxc)]


async def test_an_inline_blob_of_another_length_is_not_served(
    archive: Archive, reader: Reader
) -> None:
    """It is damage, and reported as such."""
    mxc = await archive.put(PNG)
    await archive.pool.execute("UPDATE blob_data SET data = substring(data FOR 10)")
    async with reader.get(mxc) as answer:
        assert answer.status == 500
    assert await noted(archive) == [await digest_of(archive, mxc)]


async def test_an_object_store_that_is_away_is_no_damage(
    archive: Archive, reader: Reader, tmp_path: Path
) -> None:
    """Its folder gone: 503, try again; what is inline is served meanwhile."""
    large, small = await archive.put(image(INLINE_LIMIT + 1)), await archive.put(PNG)
    (tmp_path / "objects").rename(tmp_path / "unmounted")
    before = damages()
    async with reader.get(large) as answer:
        assert answer.status == 503
        assert "Retry-After" in answer.headers
        assert str(tmp_path) not in await answer.text()
    async with reader.get(small) as answer:
        assert answer.status == 200
    assert damages() == before
    assert await noted(archive) == []


async def test_a_read_writes_nothing_until_the_flush(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """Counts and times reach the database in a batch, at the latest when the server stops."""
    mxc = await archive.put(PNG)
    secret = await archive.token()
    before = await versions(archive.pool)
    async with serving(archive, database_url) as server:
        reader = Reader(http, server, secret)
        for _ in range(5):
            async with reader.get(mxc) as answer:
                assert answer.status == 200
        async with reader.get(mxc, Range="bytes=5-") as answer:
            assert answer.status == 206
        assert await versions(archive.pool) == before
    row = await archive.pool.fetchrow("SELECT access_count, last_accessed FROM media")
    assert row
    assert row["access_count"] == 5
    assert row["last_accessed"] is not None
    assert await archive.pool.fetchval("SELECT last_used_at FROM token") is not None


async def noted(archive: Archive) -> list[bytes]:
    """What is known to be damaged, of which custody tells once."""
    rows = await archive.pool.fetch("SELECT sha256 FROM blob WHERE damaged_at IS NOT NULL")
    lines = await archive.pool.fetch("SELECT target FROM custody WHERE action = 'read'")
    assert [row["sha256"].hex() for row in rows] == [line["target"] for line in lines]
    return [row["sha256"] for row in rows]


async def digest_of(archive: Archive, mxc: Mxc) -> bytes:
    """The SHA-256 behind a media."""
    digest: bytes = await archive.pool.fetchval(
        "SELECT blob_sha256 FROM media WHERE media_id = $1", mxc.media_id
    )
    return digest


async def versions(pool: Pool) -> list[Any]:
    """Which version of each row there is: another one after any write."""
    return await pool.fetch(
        "SELECT 'media', xmin::text, ctid::text FROM media"
        " UNION ALL SELECT 'token', xmin::text, ctid::text FROM token"
        " UNION ALL SELECT 'blob', xmin::text, ctid::text FROM blob ORDER BY 1, 2, 3"
    )


def sent() -> float:
    """Bytes of objects that were served."""
    return REGISTRY.get_sample_value("archiver_served_bytes_total", {"place": "object"}) or 0.0


def damages() -> float:
    """How often bytes were found missing in this process."""
    return REGISTRY.get_sample_value("archiver_damaged_total") or 0.0


def open_files() -> list[str]:
    """What this process has open: files by their paths, sockets as such."""
    found = []
    for entry in os.scandir("/proc/self/fd"):
        try:
            target = str(Path(entry.path).readlink())
        except FileNotFoundError:
            continue
        found.append("socket" if target.startswith("socket:") else target)
    return sorted(name for name in found if "/proc/" not in name)
