"""`serve.redirect_objects`: large media is fetched from the bucket itself, on our terms."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from yarl import URL

from archiver.model import Mxc, Scope
from archiver.serve.access import Access
from archiver.serve.redirect import HIDDEN_SECONDS, LINK_SECONDS
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.s3 import S3Store
from tests.support.samples import png
from tests.support.serving import DEADLINE_SECONDS, INLINE_LIMIT, MATRIX, Archive, Reader, serving
from tests.support.swift import S3Endpoint

SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
FORGED = ("X-Amz-Expires", "86400"), ("response-content-disposition", "inline")


@pytest.fixture
async def bucket(s3: S3Endpoint) -> AsyncIterator[S3Store]:
    """A new bucket, made and open."""
    store = S3Store(**s3.settings(bucket=f"test-{uuid.uuid4().hex}", prefix="media/"))
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def in_bucket(archive: Archive, bucket: S3Store) -> Archive:
    """The archive, with its large media in a bucket."""
    archive.store = HybridStore(PostgresStore(archive.pool), bucket, INLINE_LIMIT)
    return archive


@pytest.fixture
async def sent_on(
    in_bucket: Archive, database_url: str, http: aiohttp.ClientSession
) -> AsyncIterator[Reader]:
    """Somebody who reads that archive, and is redirected."""
    secret = await in_bucket.token()
    async with serving(in_bucket, database_url, access=Access(redirects=True)) as server:
        yield Reader(http, server, secret)


def path_of(mxc: Mxc, more: str = "") -> str:
    """Where it is downloaded."""
    return f"{MATRIX}/{mxc.server_name}/{mxc.media_id}{more}"


def large(start: bytes = png(4, 3, (1, 2, 3))) -> bytes:
    """What begins so and is too large to be inline."""
    return start + secrets.token_bytes(INLINE_LIMIT)


async def link_to(reader: Reader, path: str, **headers: str) -> URL:
    """Where a GET is sent to."""
    asked = {**reader.headers, **headers}
    async with reader.session.get(
        reader.server.make_url(path), headers=asked, allow_redirects=False
    ) as answer:
        assert answer.status == 307, await answer.text()
        return URL(answer.headers["Location"], encoded=True)


async def test_a_large_media_is_fetched_from_the_bucket(
    in_bucket: Archive, sent_on: Reader, s3: S3Endpoint
) -> None:
    """The bytes, type and name are the same as ours, and nobody keeps the way to them."""
    data = large()
    mxc = await in_bucket.put(data, upload_name='a "cat" 🐈.png')
    async with sent_on.session.get(
        sent_on.server.make_url(path_of(mxc)), headers=sent_on.headers
    ) as answer:
        assert answer.status == 200
        assert str(answer.url).startswith(s3.endpoint_url)
        assert await answer.read() == data
        assert answer.headers["Content-Type"] == "image/png"
        disposition = answer.headers["Content-Disposition"]
        assert answer.headers["Cache-Control"] == "private, max-age=31536000, immutable"
        (first,) = answer.history
    async with sent_on.ask(path_of(mxc), "HEAD") as ours:
        assert disposition == ours.headers["Content-Disposition"]
    assert first.status == 307
    assert first.headers["Cache-Control"] == "private, no-store"
    assert first.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert first.headers["Access-Control-Allow-Origin"] == "*"
    assert first.headers["Content-Length"] == "0"
    assert "ETag" not in first.headers


async def test_a_range_goes_along(in_bucket: Archive, sent_on: Reader) -> None:
    """The client asks the bucket for the part that it wants; what is outside is told by us."""
    data = large()
    mxc = await in_bucket.put(data)
    async with sent_on.get(mxc, Range="bytes=1000-1999") as answer:
        assert answer.status == 206
        assert len(answer.history) == 1
        assert answer.headers["Content-Range"] == f"bytes 1000-1999/{len(data)}"
        assert await answer.read() == data[1000:2000]
    async with sent_on.get(mxc, Range=f"bytes={len(data)}-") as answer:
        assert (answer.status, answer.history) == (416, ())


@pytest.mark.parametrize(
    ("start", "declared"),
    [(SVG, "image/svg+xml"), (b"<html><script>", "text/html"), (b"<html>", "image/png"),
     (SVG, None), (b"%PDF-1.7\n", "application/pdf")],
    ids=["svg", "html", "lies", "nothing declared", "pdf"],
)  # fmt: skip
async def test_what_no_page_may_show_is_a_download_there_too(
    in_bucket: Archive, sent_on: Reader, start: bytes, declared: str | None
) -> None:
    """The bucket says what we would have said."""
    mxc = await in_bucket.put(large(start), declared, "page.html")
    async with sent_on.ask(path_of(mxc), "HEAD") as ours, sent_on.get(mxc) as answer:
        assert len(answer.history) == 1
        for name in ("Content-Type", "Content-Disposition"):
            assert answer.headers[name] == ours.headers[name]
    assert answer.headers["Content-Disposition"].startswith("attachment")


async def test_the_link_is_for_a_short_while_and_for_this_alone(
    in_bucket: Archive, sent_on: Reader
) -> None:
    """It expires soon, and the bucket refuses it with anything changed."""
    mxc = await in_bucket.put(large(SVG), "image/svg+xml")
    link = await link_to(sent_on, path_of(mxc))
    assert link.query["X-Amz-Expires"] == str(LINK_SECONDS)
    assert LINK_SECONDS <= 600
    for name, value in FORGED:
        forged = link.update_query({name: value})
        async with sent_on.session.get(forged) as answer:
            assert answer.status == 403


async def test_a_link_expires(in_bucket: Archive, bucket: S3Store, sent_on: Reader) -> None:
    """After its time the bucket refuses it."""
    mxc = await in_bucket.put(large())
    digest = await in_bucket.pool.fetchval(
        "SELECT blob_sha256 FROM media WHERE media_id = $1", mxc.media_id
    )
    link = URL(await bucket.presigned_url(digest, 1), encoded=True)

    async def status() -> int:
        async with sent_on.session.get(link) as answer:
            return answer.status

    async with asyncio.timeout(DEADLINE_SECONDS):
        while await status() == 200:  # noqa: ASYNC110  # nobody tells us, so we have to ask
            await asyncio.sleep(0.05)
    assert await status() == 403


async def test_hidden_media_is_linked_for_seconds(in_bucket: Archive, sent_on: Reader) -> None:
    """Only for who may see it, and the bucket's answer is in no cache."""
    mxc = await in_bucket.put(large())
    await in_bucket.pool.execute(
        "UPDATE media SET state = 'quarantined' WHERE media_id = $1", mxc.media_id
    )
    assert await sent_on.status(path_of(mxc)) == 404
    admin = await in_bucket.token("admin", Scope.ADMIN)
    path = path_of(mxc, "?hidden=true")
    link = await link_to(sent_on, path, Authorization=f"Bearer {admin}")
    assert link.query["X-Amz-Expires"] == str(HIDDEN_SECONDS)
    async with sent_on.session.get(link) as answer:
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "private, no-store"


async def test_what_needs_no_bytes_of_the_bucket_stays_here(
    in_bucket: Archive, sent_on: Reader
) -> None:
    """HEAD, what is known already, and what is inline."""
    big, small = await in_bucket.put(large()), await in_bucket.put(png(4, 3, (1, 2, 3)))
    async with sent_on.ask(path_of(big), "HEAD") as answer:
        assert (answer.status, answer.history) == (200, ())
        etag = answer.headers["ETag"]
    async with sent_on.get(big, If_None_Match=etag) as answer:
        assert (answer.status, answer.history) == (304, ())
    async with sent_on.get(small) as answer:
        assert (answer.status, answer.history) == (200, ())
        assert answer.headers["Content-Security-Policy"].startswith("sandbox")


async def test_a_redirect_is_a_read(in_bucket: Archive, sent_on: Reader) -> None:
    """It is in the access log once the process wrote it."""
    mxc = await in_bucket.put(large())
    await link_to(sent_on, path_of(mxc))
    await sent_on.server.close()
    read = await in_bucket.pool.fetchrow(
        "SELECT access_count FROM media WHERE media_id = $1", mxc.media_id
    )
    assert read
    assert read["access_count"] == 1
    assert await in_bucket.pool.fetchval("SELECT sum(times) FROM reading") == 1


async def test_it_is_off_by_default(
    in_bucket: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """Then the bytes of a bucket come through us."""
    data = large()
    mxc = await in_bucket.put(data)
    secret = await in_bucket.token()
    async with (
        serving(in_bucket, database_url) as server,
        Reader(http, server, secret).get(mxc) as answer,
    ):
        assert (answer.status, answer.history) == (200, ())
        assert await answer.read() == data


async def test_a_directory_has_no_links(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """Without a bucket the setting changes nothing."""
    data = large()
    mxc = await archive.put(data)
    secret = await archive.token()
    async with (
        serving(archive, database_url, access=Access(redirects=True)) as server,
        Reader(http, server, secret).get(mxc) as answer,
    ):
        assert (answer.status, answer.history) == (200, ())
        assert await answer.read() == data


async def test_the_token_is_not_in_the_link(in_bucket: Archive, sent_on: Reader) -> None:
    """Nor is a signature of ours: the bucket learns nothing that opens the archive."""
    mxc = await in_bucket.put(large())
    link = await link_to(sent_on, path_of(mxc))
    secret = sent_on.headers["Authorization"].removeprefix("Bearer ")
    assert secret not in str(link)
    assert all(name.lower().startswith(("x-amz-", "response-"))
               for name in parse_qs(urlsplit(str(link)).query))  # fmt: skip
