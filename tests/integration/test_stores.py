"""Every store keeps the promise of `BlobStore`, and each has its own manners besides."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import shutil
import stat
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from archiver.db.pool import Pool, open_pool
from archiver.errors import BlobMissing, StoreUnavailable
from archiver.model import Blob, Place
from archiver.store import bucket as bucket_module
from archiver.store import filesystem
from archiver.store.base import KIB, MIB, BlobStore, Body
from archiver.store.bucket import Bucket
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.s3 import S3Store
from archiver.store.spool import Spool, SpooledBody
from tests.support.postgres import PostgresProcess
from tests.support.process import free_port
from tests.support.swift import S3Endpoint

LIMIT = 64 * KIB
PART = 5 * MIB  # the least that S3 allows
SEVERAL_PARTS = os.urandom(12 * MIB + 1)
ABSENT = hashlib.sha256(b"absent").digest()

Spooled = Callable[[bytes], AbstractAsyncContextManager[SpooledBody]]


class UnlinkedBody:
    """A body that is in no file and cannot be read beyond `good` bytes."""

    data = None

    def __init__(self, content: bytes, good: int | None = None) -> None:
        self.sha256 = hashlib.sha256(content).digest()
        self.size = len(content)
        self._content = content
        self._good = len(content) if good is None else good

    def read_at(self, offset: int, length: int) -> bytes:
        if min(offset + length, self.size) > self._good:
            raise EOFError("cut off")
        return self._content[offset : offset + length]

    def fileno(self) -> int:
        raise OSError("no file")


@pytest.fixture
def spooled(tmp_path: Path) -> Spooled:
    """Puts bytes into a body, in memory up to LIMIT."""
    spool = Spool(tmp_path / "spool", LIMIT)

    @asynccontextmanager
    async def fill(content: bytes) -> AsyncIterator[SpooledBody]:
        async with spool.body() as body:
            await body.write(content)
            await body.finish()
            yield body

    return fill


@pytest.fixture
async def postgres_store(pool: Pool) -> PostgresStore:
    return PostgresStore(pool)


@pytest.fixture
async def filesystem_store(tmp_path: Path) -> FilesystemStore:
    store = FilesystemStore(tmp_path / "objects")
    await store.open()
    return store


async def test_a_folder_is_synced_when_it_got_a_name(
    filesystem_store: FilesystemStore, spooled: Spooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut could take back is synced, once: the name of the file always, those of its
    folders where they are new, also when somebody removed them."""
    synced: list[Path] = []
    monkeypatch.setattr(filesystem, "sync_folder", synced.append)

    async def put(content: bytes) -> list[Path]:
        synced.clear()
        async with spooled(content) as body:
            await filesystem_store.put(body)
        return list(synced)

    first = b"0"
    inner = filesystem_store.path_of(hashlib.sha256(first).digest()).parent
    outer, root = inner.parent, inner.parent.parent
    near = next(  # another folder in the same one
        content
        for content in (b"%d" % number for number in itertools.count(1))
        if filesystem_store.path_of(hashlib.sha256(content).digest()).parent.parent == outer
    )
    assert await put(first) == [inner, outer, root]
    assert await put(first) == [inner]
    assert await put(near) == [
        filesystem_store.path_of(hashlib.sha256(near).digest()).parent,
        outer,
    ]
    shutil.rmtree(outer)
    assert await put(first) == [inner, outer, root]


@asynccontextmanager
async def s3_at(endpoint: S3Endpoint, bucket: str) -> AsyncIterator[S3Store]:
    parts = {"single_size": PART, "part_size": PART}
    store = S3Store(**endpoint.settings(bucket=bucket, prefix="media/", **parts))
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def bucket(s3: S3Endpoint) -> Bucket:
    """The bucket of `s3_store`, looked at from the side."""
    return Bucket(**s3.settings(name=f"test-{uuid.uuid4().hex}", prefix="media/"))


@pytest.fixture
async def s3_store(s3: S3Endpoint, bucket: Bucket) -> AsyncIterator[S3Store]:
    async with s3_at(s3, bucket.name) as store:
        await store.open()
        yield store
    bucket.close()


@pytest.fixture(params=["postgres", "filesystem", "s3"])
def store(request: pytest.FixtureRequest) -> BlobStore:
    """Each store in turn, opened and empty."""
    opened: BlobStore = request.getfixturevalue(f"{request.param}_store")
    return opened


async def read(
    store: BlobStore, sha256: bytes, start: int = 0, stop: int | None = None
) -> list[bytes]:
    return [chunk async for chunk in store.read(sha256, start, stop)]


async def keys(store: BlobStore) -> list[bytes]:
    return [one.sha256 async for page in store.pages() for one in page]


# What every store promises


async def test_all_is_listed_in_order(store: BlobStore, spooled: Spooled) -> None:
    """With its length, and when it came where that is known."""
    assert [page async for page in store.pages()] == []
    contents = {hashlib.sha256(data).digest(): data for data in (b"", b"1", b"22", b"333")}
    for data in contents.values():
        async with spooled(data) as body:
            await store.put(body)
    listed = [one for page in [page async for page in store.pages()] for one in page]
    assert [one.sha256 for one in listed] == sorted(contents)
    assert [one.size for one in listed] == [len(contents[sha256]) for sha256 in sorted(contents)]
    assert all(one.modified_at is None or one.modified_at.tzinfo for one in listed)


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, PART + 1])
async def test_a_blob_is_replaced(store: BlobStore, spooled: Spooled, size: int) -> None:
    """One of the right size that is there already too, or none at all."""
    async with spooled(SEVERAL_PARTS[:size]) as body:
        wrong = UnlinkedBody(bytes(size))
        wrong.sha256 = body.sha256
        for _ in range(2):
            await store.replace(wrong)
            assert b"".join(await read(store, body.sha256)) == bytes(size)
            await store.replace(body)
            assert b"".join(await read(store, body.sha256)) == SEVERAL_PARTS[:size]


async def test_nothing_is_left_over(store: BlobStore) -> None:
    """Where nothing crashed."""
    for remove in (False, True):
        assert await store.leftovers(remove=remove) == (0, 0)


@pytest.mark.parametrize("size", [0, 1, LIMIT, LIMIT + 1, PART, PART + 1, len(SEVERAL_PARTS)])
async def test_what_was_put_is_read(store: BlobStore, spooled: Spooled, size: int) -> None:
    """A blob comes back byte for byte, in chunks of at most 1 MiB, and its size is known."""
    async with spooled(SEVERAL_PARTS[:size]) as body:
        await store.put(body)
    chunks = await read(store, body.sha256)
    assert b"".join(chunks) == SEVERAL_PARTS[:size]
    assert all(0 < len(chunk) <= MIB for chunk in chunks)
    assert await store.size(body.sha256) == size


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (0, 1),
        (1, 2),
        (100, 100),
        (7 * MIB, 7 * MIB + 3),
        (PART - 1, PART + 1),
        (3, 9 * MIB),
        (12 * MIB, None),
        (12 * MIB, 99 * MIB),
        (12 * MIB + 1, None),
        (12 * MIB + 1, 13 * MIB),
        (99 * MIB, None),
        (10 << 40, None),
    ],
)
async def test_a_range_is_read(
    store: BlobStore, spooled: Spooled, start: int, stop: int | None
) -> None:
    """Any range gives what of it lies inside the blob, and maybe nothing."""
    async with spooled(SEVERAL_PARTS) as body:
        await store.put(body)
    assert b"".join(await read(store, body.sha256, start, stop)) == SEVERAL_PARTS[start:stop]


async def test_a_read_may_be_left(store: BlobStore, spooled: Spooled) -> None:
    """A reader that leaves early does no harm to the next one."""
    async with spooled(SEVERAL_PARTS) as body:
        await store.put(body)
    async with aclosing(store.read(body.sha256)) as chunks:
        assert SEVERAL_PARTS.startswith(await anext(chunks))
    assert b"".join(await read(store, body.sha256)) == SEVERAL_PARTS


async def test_a_second_put_changes_nothing(store: BlobStore, spooled: Spooled) -> None:
    """Putting a blob that is there is fine."""
    async with spooled(SEVERAL_PARTS) as body, spooled(SEVERAL_PARTS) as same:
        await store.put(body)
        await store.put(body)
        await store.put(same)
    assert b"".join(await read(store, body.sha256)) == SEVERAL_PARTS
    assert await keys(store) == [body.sha256]


@pytest.mark.parametrize("size", [1, len(SEVERAL_PARTS)])
async def test_eight_puts_at_once(store: BlobStore, spooled: Spooled, size: int) -> None:
    """Many may put the same blob at the same time, from one body or from several."""
    content = SEVERAL_PARTS[:size]
    async with spooled(content) as body, spooled(content) as same:
        await asyncio.gather(*(store.put(each) for each in [body, same] * 4))
    assert b"".join(await read(store, body.sha256)) == content
    assert await keys(store) == [body.sha256]


async def test_what_is_not_there(store: BlobStore) -> None:
    """A missing blob has no size, and reading it is a permanent error."""
    assert await store.size(ABSENT) is None
    with pytest.raises(BlobMissing, match=ABSENT.hex()):
        await read(store, ABSENT)
    with pytest.raises(BlobMissing):
        await read(store, ABSENT, 5, 10)


async def test_a_deleted_blob_is_gone(store: BlobStore, spooled: Spooled) -> None:
    """After a delete nothing is left; a second delete is fine; the neighbour stays."""
    async with spooled(b"goes") as goes, spooled(b"stays") as stays:
        await store.put(goes)
        await store.put(stays)
        await store.delete(goes.sha256)
        await store.delete(goes.sha256)
        assert await store.size(goes.sha256) is None
        assert await keys(store) == [stays.sha256]
        await store.put(goes)
    assert await read(store, goes.sha256) == [b"goes"]


async def test_every_key_is_listed(store: BlobStore, spooled: Spooled) -> None:
    """The list has every blob once."""
    assert await keys(store) == []
    put = []
    for number in range(20):
        async with spooled(str(number).encode()) as body:
            await store.put(body)
            put.append(body.sha256)
    assert await keys(store) == sorted(put)


@pytest.mark.parametrize("good", [0, 6 * MIB])
async def test_a_put_that_is_cut_off_leaves_nothing(store: BlobStore, good: int) -> None:
    """When the body cannot be read to its end there is no blob, and a later put succeeds."""
    broken = UnlinkedBody(SEVERAL_PARTS, good)
    with pytest.raises(EOFError):
        await store.put(broken)
    assert await store.size(broken.sha256) is None
    assert await keys(store) == []
    await store.put(UnlinkedBody(SEVERAL_PARTS))
    assert b"".join(await read(store, broken.sha256)) == SEVERAL_PARTS


async def test_a_cancelled_put_is_whole_or_nothing(store: BlobStore) -> None:
    """A worker that is stopped in the middle of a put leaves all of the blob or none of it."""
    reading, loop = asyncio.Event(), asyncio.get_running_loop()

    class Watched(UnlinkedBody):
        def read_at(self, offset: int, length: int) -> bytes:
            loop.call_soon_threadsafe(reading.set)
            return super().read_at(offset, length)

    body = Watched(SEVERAL_PARTS)
    put = asyncio.create_task(store.put(body))
    await reading.wait()
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert await store.size(body.sha256) in (None, body.size)
    await store.put(body)
    assert b"".join(await read(store, body.sha256)) == SEVERAL_PARTS


async def test_a_store_that_works_passes_its_check(store: BlobStore) -> None:
    """A check of a good store says nothing, and opening it again is fine."""
    await store.check()
    await store.open()


# A folder


async def test_a_large_body_is_linked(filesystem_store: FilesystemStore, spooled: Spooled) -> None:
    """A body spooled on the same file system gets its name without being copied."""
    async with spooled(SEVERAL_PARTS) as body:
        await filesystem_store.put(body)
        target = filesystem_store.path_of(body.sha256).stat()
        assert target.st_ino == os.fstat(body.fileno()).st_ino


@pytest.mark.parametrize("content", [b"small", SEVERAL_PARTS])
async def test_files_and_folders_are_ours_alone(
    filesystem_store: FilesystemStore, spooled: Spooled, tmp_path: Path, content: bytes
) -> None:
    """Blobs lie two folders deep, closed to others, and nothing temporary is left."""
    async with spooled(content) as body:
        await filesystem_store.put(body)
    name, root = body.sha256.hex(), tmp_path / "objects"
    path = root / name[:2] / name[2:4] / name
    assert filesystem_store.path_of(body.sha256) == path
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, root)]
    assert modes == [0o640, 0o750, 0o750]
    assert list((root / "tmp").iterdir()) == []


async def test_a_file_of_the_wrong_size_is_replaced(
    filesystem_store: FilesystemStore, spooled: Spooled
) -> None:
    """A file that something else cut short becomes whole with the next put."""
    async with spooled(b"content") as body:
        await filesystem_store.put(body)
        filesystem_store.path_of(body.sha256).write_bytes(b"cont")
        await filesystem_store.put(body)
    assert await read(filesystem_store, body.sha256) == [b"content"]


async def test_old_temporary_files_are_removed(
    filesystem_store: FilesystemStore, tmp_path: Path
) -> None:
    """Opening removes what a crash left a day ago, and nothing that may be in use."""
    old, new = (tmp_path / "objects" / "tmp" / name for name in ("old", "new"))
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (0, 0))
    await filesystem_store.open()
    assert not old.exists()
    assert new.exists()


async def test_a_vanished_disk_is_an_outage(
    filesystem_store: FilesystemStore, spooled: Spooled, tmp_path: Path
) -> None:
    """Without its folder the store is away: no blob counts as missing, and no folder is made."""
    async with spooled(b"content") as body:
        (tmp_path / "objects").rename(tmp_path / "elsewhere")
        (tmp_path / "objects").mkdir()  # the empty mount point
        for call in (
            filesystem_store.put(body),
            filesystem_store.size(body.sha256),
            filesystem_store.delete(body.sha256),
            filesystem_store.check(),
            read(filesystem_store, body.sha256),
        ):
            with pytest.raises(StoreUnavailable, match=r"mounted.*storage\.filesystem\.path"):
                await call
    assert list((tmp_path / "objects").iterdir()) == []


async def test_strange_files_are_no_blobs(
    filesystem_store: FilesystemStore, tmp_path: Path
) -> None:
    """What others put into the folder is not listed."""
    root = tmp_path / "objects"
    (root / "ab").write_bytes(b"")
    (root / "lost+found").mkdir()
    (root / "cd" / "ef").mkdir(parents=True)
    (root / "cd" / "ef" / "notes.txt").write_bytes(b"")
    (root / "cd" / "ef" / ABSENT.hex()).write_bytes(b"")
    assert await keys(filesystem_store) == []


# PostgreSQL


async def test_bytes_are_not_compressed(pool: Pool) -> None:
    """The column is external: a range is read without reading all before it."""
    storage = await pool.fetchval(
        "SELECT attstorage FROM pg_attribute WHERE attrelid = 'blob_data'::regclass"
        " AND attname = 'data'"
    )
    assert storage == b"e"


async def test_keys_come_in_pages(postgres_store: PostgresStore, pool: Pool) -> None:
    """More keys than fit into one query are all listed."""
    await pool.execute(
        "INSERT INTO blob_data SELECT sha256(int4send(n)), '' FROM generate_series(1, 2000) n"
    )
    assert len(set(await keys(postgres_store))) == 2000


async def test_a_database_that_is_away(own_postgres: PostgresProcess, spooled: Spooled) -> None:
    """The sentence tells a database without our tables from one that is down."""
    async with open_pool(own_postgres.url, 2) as pool, spooled(b"content") as body:
        store = PostgresStore(pool)
        with pytest.raises(StoreUnavailable, match="archiver migrate"):
            await store.check()
        await asyncio.to_thread(own_postgres.stop)
        for call in (store.check(), store.put(body), store.size(ABSENT), read(store, ABSENT)):
            with pytest.raises(StoreUnavailable, match=r"database\.url"):
                await call


# S3


async def test_a_presigned_url_opens_the_blob(s3_store: S3Store, spooled: Spooled) -> None:
    """Anyone who has the URL can GET the blob, and nobody with a forged signature."""
    async with spooled(b"content") as body, aiohttp.ClientSession() as session:
        await s3_store.put(body)
        url = await s3_store.presigned_url(body.sha256, 60)
        async with session.get(url) as response:
            assert await response.read() == b"content"
        forged = url[:-1] + ("0" if url[-1] != "0" else "1")
        async with session.get(forged) as response:
            assert response.status == 403


async def test_no_part_is_left_of_a_cut_off_put(s3_store: S3Store, bucket: Bucket) -> None:
    """The parts of a failed upload are dropped, so nobody pays for them."""
    with pytest.raises(EOFError):
        await s3_store.put(UnlinkedBody(SEVERAL_PARTS, PART))
    listed = await asyncio.to_thread(bucket.client.list_multipart_uploads, Bucket=bucket.name)
    assert listed.get("Uploads", []) == []


async def test_uploads_of_a_crash_are_dropped(
    s3_store: S3Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening drops an upload that was begun long ago, and no other."""

    def uploads() -> int:
        return len(bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []))

    await asyncio.to_thread(bucket.begin, ABSENT)
    await s3_store.open()
    assert await asyncio.to_thread(uploads) == 1
    monkeypatch.setattr(bucket_module, "STALE", timedelta(minutes=-1))
    await s3_store.open()
    assert await asyncio.to_thread(uploads) == 0


async def test_keys_of_others_are_no_blobs(s3_store: S3Store, bucket: Bucket) -> None:
    """What others put into the bucket is not listed."""
    for key in ("media/notes.txt", f"other/{ABSENT.hex()}", ABSENT.hex()):
        await asyncio.to_thread(bucket.client.put_object, Bucket=bucket.name, Key=key, Body=b"")
    assert await keys(s3_store) == []


async def each_call_fails(store: S3Store, body: Body, match: str) -> None:
    calls: list[Awaitable[object]] = [
        store.put(body),
        store.size(body.sha256),
        store.check(),
        read(store, body.sha256),
        keys(store),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match=match):
            await call


async def test_a_server_that_is_down(s3: S3Endpoint, spooled: Spooled) -> None:
    """Without an answer the error is retryable and names the key of the configuration."""
    nowhere = replace(s3, endpoint_url=f"http://127.0.0.1:{free_port()}")
    async with s3_at(nowhere, "any") as store, spooled(b"content") as body:
        await each_call_fails(store, body, r"does not answer.*storage\.s3\.endpoint_url")


async def test_a_wrong_secret(s3: S3Endpoint, bucket: Bucket, spooled: Spooled) -> None:
    """Refused keys are the operator's to mend: retryable, and the sentence names them."""
    wrong = replace(s3, secret_access_key="wrong")
    async with s3_at(wrong, bucket.name) as store, spooled(b"content") as body:
        await each_call_fails(store, body, r"storage\.s3\.access_key_id")


async def test_a_missing_bucket(s3: S3Endpoint, bucket: Bucket, spooled: Spooled) -> None:
    """Without its bucket the store is away: no blob counts as missing."""
    async with s3_at(s3, bucket.name) as store, spooled(b"content") as body:
        await each_call_fails(store, body, r"storage\.s3\.bucket")


@asynccontextmanager
async def server_answering(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], s3: S3Endpoint
) -> AsyncIterator[S3Endpoint]:
    app = web.Application(client_max_size=32 * MIB)
    app.router.add_route("*", "/{any:.*}", handler)
    async with TestServer(app) as server:
        yield replace(s3, endpoint_url=str(server.make_url("")).rstrip("/"))


@pytest.mark.parametrize("knows_ranges", [False, True])
async def test_ranges_without_the_status(s3: S3Endpoint, knows_ranges: bool) -> None:
    """A server may ignore ranges, or give them with a 200: the wanted bytes come out."""
    content = SEVERAL_PARTS[:MIB]

    async def ok(request: web.Request) -> web.Response:
        if not knows_ranges:
            return web.Response(body=content)
        wanted = request.http_range
        where = {"Content-Range": f"bytes {wanted.start}-{(wanted.stop or MIB) - 1}/{MIB}"}
        return web.Response(body=content[wanted], headers=where)

    async with server_answering(ok, s3) as endpoint, s3_at(endpoint, "any") as store:
        for start, stop in [(0, 10), (300_000, 700_001), (MIB - 1, None)]:
            assert b"".join(await read(store, ABSENT, start, stop)) == content[start:stop]


async def test_a_hanging_server_holds_nobody(s3: S3Endpoint) -> None:
    """Who gives up on a call, as a readiness probe does, need not wait for the server."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        asked.set()
        await answer.wait()
        return web.Response()

    async with server_answering(hang, s3) as endpoint, s3_at(endpoint, "any") as store:
        check = asyncio.create_task(store.check())
        await asked.wait()
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check
        answer.set()


async def test_a_redirect_is_not_followed(s3: S3Endpoint) -> None:
    """A signed request goes to the configured server and nowhere else."""
    seen = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.path)
        raise web.HTTPTemporaryRedirect("/somewhere")

    async with server_answering(elsewhere, s3) as endpoint, s3_at(endpoint, "any") as store:
        with pytest.raises(StoreUnavailable, match=r"storage\.s3\.endpoint_url"):
            await read(store, ABSENT)
    assert "/somewhere" not in seen


async def test_a_short_answer_is_no_blob(s3: S3Endpoint) -> None:
    """A connection that ends before the announced length is an outage, never a short blob."""

    async def short(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"only this")
        assert request.transport is not None
        request.transport.close()
        return response

    async with server_answering(short, s3) as endpoint, s3_at(endpoint, "any") as store:
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await read(store, ABSENT)


@pytest.mark.parametrize("size", [MIB, len(SEVERAL_PARTS)])
async def test_changed_bytes_are_refused(
    s3: S3Endpoint, s3_store: S3Store, bucket: Bucket, size: int
) -> None:
    """When a byte changes on its way to the server there is no blob."""

    async with aiohttp.ClientSession() as session:

        async def corrupt(request: web.Request) -> web.Response:
            content = bytearray(await request.read())
            if content and request.method == "PUT":
                content[-1] ^= 1
            headers = request.headers.copy()
            headers.popall("Expect", None)
            url = s3.endpoint_url + request.raw_path
            async with session.request(
                request.method, url, headers=headers, data=bytes(content) or None
            ) as answer:
                kept = {k: v for k, v in answer.headers.items() if k in ("ETag", "Content-Type")}
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)

        async with (
            server_answering(corrupt, s3) as endpoint,
            s3_at(endpoint, bucket.name) as through,
        ):
            await through.check()
            body = UnlinkedBody(SEVERAL_PARTS[:size])
            with pytest.raises(StoreUnavailable, match="answered"):
                await through.put(body)
    assert await s3_store.size(body.sha256) is None


# Both together


async def test_the_limit_decides_the_place(
    postgres_store: PostgresStore, filesystem_store: FilesystemStore, spooled: Spooled
) -> None:
    """Up to the limit the caller gets the bytes to commit; above it the object is durable."""
    store = HybridStore(postgres_store, filesystem_store, inline_limit=10)
    async with spooled(b"x" * 10) as small, spooled(b"x" * 11) as large:
        assert store.place_for(small.size) is Place.INLINE
        assert await store.settle(small) == b"x" * 10
        assert store.place_for(large.size) is Place.OBJECT
        assert await store.settle(large) is None
    assert await keys(postgres_store) == []
    assert await keys(filesystem_store) == [large.sha256]


async def test_a_spooled_file_may_be_inline(
    postgres_store: PostgresStore, filesystem_store: FilesystemStore, spooled: Spooled
) -> None:
    """The limit decides the place, not where the body happened to wait."""
    store = HybridStore(postgres_store, filesystem_store, inline_limit=MIB)
    async with spooled(SEVERAL_PARTS[:MIB]) as body:
        assert body.data is None
        assert await store.settle(body) == SEVERAL_PARTS[:MIB]


async def test_another_limit_breaks_nothing(
    postgres_store: PostgresStore, filesystem_store: FilesystemStore, spooled: Spooled
) -> None:
    """A blob is read from where it was put, whatever the limit is today."""
    async with spooled(b"inline") as inline, spooled(b"object") as outside:
        await postgres_store.put(inline)
        await filesystem_store.put(outside)
    for limit in (0, 100):
        store = HybridStore(postgres_store, filesystem_store, limit)
        for body, place in ((inline, Place.INLINE), (outside, Place.OBJECT)):
            chunks = store.read(Blob(body.sha256, body.size, place), 2, 4)
            assert [chunk async for chunk in chunks] == [place.value[2:4].encode()]


async def test_an_object_alone_is_deleted(
    postgres_store: PostgresStore, filesystem_store: FilesystemStore, spooled: Spooled
) -> None:
    """Inline bytes of the same name are left: they go with their rows."""
    store = HybridStore(postgres_store, filesystem_store, inline_limit=1)
    async with spooled(b"both") as body:
        await postgres_store.put(body)
        await store.settle(body)
    await store.delete_object(body.sha256)
    assert await keys(filesystem_store) == []
    assert await keys(postgres_store) == [body.sha256]


async def test_a_check_covers_both(
    postgres_store: PostgresStore, filesystem_store: FilesystemStore, tmp_path: Path
) -> None:
    """One store that is away is enough to fail."""
    store = HybridStore(postgres_store, filesystem_store, LIMIT)
    await store.open()
    await store.check()
    (tmp_path / "objects").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable):
        await store.check()
