"""Bytes move between the stores while the archive runs, and none is lost or left behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from archiver.catalogue import moves
from archiver.catalogue.moves import PAGE
from archiver.errors import BlobMissing, StoreUnavailable
from archiver.fetch.archive import Parts
from archiver.keep.deletion import Deletion
from archiver.keep.erasure import Erasure
from archiver.keep.moving import Moved, Mover, Sizes
from archiver.model import Blob, Place
from archiver.store.base import MIB, Body
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.s3 import S3Store
from archiver.store.spool import Spool
from tests.support.fetching import INLINE_LIMIT, parts, someone_waits, until
from tests.support.homeserver import Homeserver
from tests.support.keeping import ADMIN, archive, blob_of, custody, file_of, media, read, tables
from tests.support.redacting import image, push
from tests.support.serving import Archive, Reader, serving
from tests.support.swift import S3Endpoint

if TYPE_CHECKING:
    from archiver.db.pool import Pool

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)
ALL = Sizes(-1, 1 << 62)


class Gate(FilesystemStore):
    """Waits before it puts, or loses its disk, as a test wants it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.waits: asyncio.Event | None = None
        self.reached = asyncio.Event()
        self.puts_left: int | None = None

    async def put(self, body: Body) -> None:
        self.reached.set()
        if self.waits:
            await self.waits.wait()
        if self.puts_left == 0:
            raise StoreUnavailable("as the test wants it")
        if self.puts_left:
            self.puts_left -= 1
        await super().put(body)


@pytest.fixture
def objects(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "objects")


@pytest.fixture
async def ours(
    pool: Pool, tmp_path: Path, homeserver: Homeserver, objects: Gate
) -> AsyncIterator[Parts]:
    """An archive with a small and a large media."""
    async with parts(pool, tmp_path, homeserver.url, objects=objects) as built:
        await push(pool, image("$a", "cat"), image("$b", "dog"))
        await archive(built, homeserver, cat=SMALL, dog=LARGE)
        yield built


def mover(ours: Parts, store: HybridStore | None = None) -> Mover:
    return Mover(ours.pool, store or ours.store, ours.spool, ADMIN)


async def to_objects(ours: Parts, sizes: Sizes = ALL) -> Moved:
    return [Moved(), *[moved async for moved in mover(ours).to_objects(sizes)]][-1]


async def to_inline(ours: Parts, sizes: Sizes = ALL) -> Moved:
    return [Moved(), *[moved async for moved in mover(ours).to_inline(sizes)]][-1]


async def from_folder(ours: Parts, store: HybridStore) -> Moved:
    return await from_former(ours, store, "filesystem")


async def from_former(ours: Parts, store: HybridStore, name: str) -> Moved:
    steps = mover(ours, store).from_former(name, ALL)
    return [Moved(), *[moved async for moved in steps]][-1]


async def a_day_later(ours: Parts, store: HybridStore | None = None) -> None:
    """What was left behind goes."""
    await ours.pool.execute("UPDATE garbage SET due_at = now()")
    await ours.pool.execute("UPDATE leftover SET due_at = now()")
    await Deletion(ours.pool, store or ours.store, None).work()


async def leftovers(pool: Pool) -> list[tuple[bytes, str]]:
    rows = await pool.fetch("SELECT sha256, store FROM leftover ORDER BY store, sha256")
    return [(row[0], row[1]) for row in rows]


async def test_into_the_object_store_and_back(ours: Parts, tmp_path: Path) -> None:
    """The bytes are to be had all the time, and what they leave behind goes after a day."""
    blob = await blob_of(ours.pool, "cat")
    file = file_of(tmp_path, blob.sha256)
    assert await to_objects(ours) == Moved(1, len(SMALL))
    assert (await blob_of(ours.pool, "cat")).place is Place.OBJECT
    assert (await read(ours, "cat"), file.read_bytes()) == (SMALL, SMALL)
    assert await tables(ours.pool) == {"blob": 2, "data": 1, "garbage": 0}
    await a_day_later(ours)
    assert await tables(ours.pool) == {"blob": 2, "data": 0, "garbage": 0}
    assert await to_inline(ours, Sizes(-1, INLINE_LIMIT + 1)) == Moved(1, len(SMALL))
    assert (await blob_of(ours.pool, "cat")).place is Place.INLINE
    assert await tables(ours.pool) == {"blob": 2, "data": 1, "garbage": 1}
    await a_day_later(ours)
    assert (await read(ours, "cat"), file.exists()) == (SMALL, False)
    assert await tables(ours.pool) == {"blob": 2, "data": 1, "garbage": 0}
    name = blob.sha256.hex()
    assert await custody(ours.pool) == [
        (*ADMIN, "storage move", to, {"blobs": [name]}) for to in ("objects", "inline")
    ]


async def test_only_what_is_asked_for_moves_and_once(ours: Parts) -> None:
    """A second run has nothing to do."""
    size = len(SMALL)
    assert await to_objects(ours, Sizes(size, 1 << 62)) == Moved()
    assert await to_objects(ours, Sizes(-1, size)) == Moved()
    assert await to_objects(ours, Sizes(size - 1, size + 1)) == Moved(1, size)
    assert await to_objects(ours) == Moved()
    assert await to_inline(ours) == Moved(2, len(SMALL) + len(LARGE))
    assert await to_inline(ours) == Moved()


async def test_there_and_back_within_the_day(ours: Parts, tmp_path: Path) -> None:
    """Nothing that was left behind on the way is taken from where it rests again."""
    for _ in range(2):
        await to_objects(ours)
        await to_inline(ours)
    await a_day_later(ours)
    assert (await read(ours, "cat"), await read(ours, "dog")) == (SMALL, LARGE)
    assert await tables(ours.pool) == {"blob": 2, "data": 2, "garbage": 0}
    await to_inline(ours)
    await to_objects(ours)
    await a_day_later(ours)
    assert (await read(ours, "cat"), await read(ours, "dog")) == (SMALL, LARGE)
    assert await tables(ours.pool) == {"blob": 2, "data": 0, "garbage": 0}
    assert file_of(tmp_path, (await blob_of(ours.pool, "cat")).sha256).exists()


async def test_who_reads_goes_on_reading(
    pool: Pool, tmp_path: Path, homeserver: Homeserver
) -> None:
    """From where the bytes were when they began."""
    data = os.urandom(3 * MIB)
    async with parts(pool, tmp_path, homeserver.url, inline_limit=4 * MIB) as ours:
        await push(pool, image("$a", "cat"))
        await archive(ours, homeserver, cat=data)
        for move in (to_objects, to_inline):
            blob = await blob_of(pool, "cat")
            async with aclosing(ours.store.read(blob)) as chunks:
                got = await anext(chunks)
                assert await move(ours) == Moved(1, len(data))
                await Deletion(pool, ours.store, None).work()
                got += b"".join([chunk async for chunk in chunks])
            assert got == data
            assert b"".join([chunk async for chunk in ours.store.read(blob)]) == data


async def test_a_download_goes_on_over_two_moves(
    pool: Pool, tmp_path: Path, database_url: str, http: aiohttp.ClientSession
) -> None:
    """Of far more than any buffer on the way holds."""
    there, data = Archive(pool, tmp_path, 64 * MIB), os.urandom(32 * MIB)
    await there.store.open()
    mxc = await there.put(data)
    moving = Mover(pool, there.store, Spool(tmp_path / "moving", MIB), ADMIN)
    async with serving(there, database_url) as server:
        reader = Reader(http, server, await there.token())
        async with reader.get(mxc) as response:
            got = bytearray(await response.content.readexactly(MIB))
            for move in (moving.to_objects, moving.to_inline):
                assert [moved.damaged async for moved in move(ALL)] == [()]
            await Deletion(pool, there.store, None).work()
            got += await response.content.read()
        assert got == data
        async with reader.get(mxc) as response:
            assert await response.read() == data


async def test_an_outage_stops_it_and_it_goes_on(ours: Parts, objects: Gate) -> None:
    """What was moved is moved, the rest where it was; nothing is half."""
    blobs = [os.urandom(100) for _ in range(20)]
    for data in blobs:
        await _inline(ours.pool, data)
    objects.puts_left = 13
    with pytest.raises(StoreUnavailable):
        await to_objects(ours)
    places = "SELECT count(*) FILTER (WHERE place = 'inline') FROM blob"
    left = await ours.pool.fetchval(places)
    assert 0 < left < 21
    objects.puts_left = None
    assert (await to_objects(ours)).blobs == left
    await a_day_later(ours)
    for data in blobs:
        blob = Blob(hashlib.sha256(data).digest(), len(data), Place.OBJECT)
        assert b"".join([chunk async for chunk in ours.store.read(blob)]) == data
    assert (await tables(ours.pool))["data"] == 0


async def test_what_is_deleted_meanwhile_goes(ours: Parts, objects: Gate, tmp_path: Path) -> None:
    """Also the copy that was just made of it."""
    blob = await blob_of(ours.pool, "cat")
    objects.waits, objects.reached = asyncio.Event(), asyncio.Event()
    moving = asyncio.create_task(to_objects(ours))
    await objects.reached.wait()
    async for _ in Erasure(ours.pool, media("cat"), ADMIN).run():
        pass
    objects.waits.set()
    assert await moving == Moved()
    assert file_of(tmp_path, blob.sha256).exists()
    await a_day_later(ours)
    assert not file_of(tmp_path, blob.sha256).exists()
    assert await tables(ours.pool) == {"blob": 1, "data": 0, "garbage": 0}


async def test_what_is_deleted_after_it_was_moved_leaves_nothing(
    ours: Parts, tmp_path: Path
) -> None:
    """The row in the database goes at once, the object after its day."""
    blob = await blob_of(ours.pool, "cat")
    await to_objects(ours)
    async for _ in Erasure(ours.pool, media("cat"), ADMIN).run():
        pass
    assert await tables(ours.pool) == {"blob": 1, "data": 0, "garbage": 1}
    assert await leftovers(ours.pool) == []
    await a_day_later(ours)
    assert not file_of(tmp_path, blob.sha256).exists()


async def test_the_same_bytes_come_again_while_their_old_object_is_garbage(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """The object goes all the same, the media has the inline bytes."""
    await to_inline(ours)
    dog = await blob_of(ours.pool, "dog")
    await push(ours.pool, image("$c", "copy"))
    await archive(ours, homeserver, copy=LARGE)
    await a_day_later(ours)
    assert not file_of(tmp_path, dog.sha256).exists()
    assert await read(ours, "copy") == LARGE


@pytest.mark.parametrize(
    "harm", ["UPDATE blob_data SET data = '\\x00'", "DELETE FROM blob_data"], ids=["other", "gone"]
)
async def test_what_is_damaged_stays_and_is_told(ours: Parts, harm: str) -> None:
    """Wrong bytes get no place under a name that is not theirs."""
    await ours.pool.execute(harm)
    blob = await blob_of(ours.pool, "cat")
    assert await to_objects(ours) == Moved(damaged=(blob.sha256,))
    assert (await blob_of(ours.pool, "cat")).place is Place.INLINE


async def test_what_somebody_has_locked_is_waited_for(ours: Parts) -> None:
    """And the others go first."""
    blob = await blob_of(ours.pool, "cat")
    other = await _inline(ours.pool, b"another")
    async with ours.pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT FROM blob WHERE sha256 = $1 FOR UPDATE", blob.sha256)
        moving = asyncio.create_task(to_objects(ours))
        await until(lambda: someone_waits(ours.pool), "the move waits")
        place = await ours.pool.fetchval("SELECT place FROM blob WHERE sha256 = $1", other)
        assert place == "object"
    assert (await moving).blobs == 2


async def test_several_may_move_at_once(ours: Parts) -> None:
    """Each blob is moved by one of them."""
    for number in range(50):
        await _inline(ours.pool, str(number).encode())
    moved = await asyncio.gather(*(to_objects(ours) for _ in range(3)))
    assert sum(one.blobs for one in moved) == 51
    assert {one.damaged for one in moved} == {()}
    await a_day_later(ours)
    assert (await tables(ours.pool))["data"] == 0


async def test_from_a_folder_into_a_bucket(ours: Parts, s3: S3Endpoint, tmp_path: Path) -> None:
    """Read from the folder until they are moved, and from the bucket afterwards."""
    bucket = await _bucket(s3)
    folder = FilesystemStore(tmp_path / "objects")
    store = HybridStore(PostgresStore(ours.pool), bucket, INLINE_LIMIT, folder)
    try:
        blob = await blob_of(ours.pool, "dog")
        assert await store.link(blob, 60, "image/png", "inline", "no-store") is None
        assert b"".join([chunk async for chunk in store.read(blob, 5)]) == LARGE[5:]
        file = await store.open_file(blob)
        assert file is not None
        with file:
            assert file.read() == LARGE
        assert await from_folder(ours, store) == Moved(1, len(LARGE))
        assert b"".join([chunk async for chunk in bucket.read(blob.sha256)]) == LARGE
        assert await store.link(blob, 60, "image/png", "inline", "no-store")
        assert await leftovers(ours.pool) == [(blob.sha256, "filesystem")]
        assert await from_folder(ours, store) == Moved()
        await a_day_later(ours, store)
        assert not file_of(tmp_path, blob.sha256).exists()
        assert b"".join([chunk async for chunk in store.read(blob)]) == LARGE
        assert await from_folder(ours, store) == Moved()
    finally:
        await bucket.close()


async def test_from_a_bucket_into_a_folder(
    pool: Pool, tmp_path: Path, homeserver: Homeserver, s3: S3Endpoint, objects: Gate
) -> None:
    """Cancelled, and stopped by a full disk, it goes on; all is to be had all the time."""
    bucket = await _bucket(s3)
    posted = {f"dog{number}": os.urandom(INLINE_LIMIT + 1 + number) for number in range(12)}
    async with parts(pool, tmp_path, homeserver.url, objects=bucket) as there:
        await push(pool, *(image(f"${name}", name) for name in posted))
        await archive(there, homeserver, **posted)
        store = HybridStore(PostgresStore(pool), objects, INLINE_LIMIT, bucket)
        await store.open()

        async def all_is_there() -> bool:
            for name, data in posted.items():
                blob = await blob_of(pool, name)
                assert b"".join([chunk async for chunk in store.read(blob)]) == data
                file = await store.open_file(blob)
                if file is not None:
                    with file:
                        assert file.read() == data
            return True

        objects.waits = asyncio.Event()
        moving = asyncio.create_task(from_former(there, store, "s3"))
        await objects.reached.wait()
        moving.cancel()
        await asyncio.wait([moving])
        assert (moving.cancelled(), await leftovers(pool), await all_is_there()) == (
            True,
            [],
            True,
        )
        objects.waits, objects.puts_left = None, 9
        with pytest.raises(StoreUnavailable):
            await from_former(there, store, "s3")
        moved = len(await leftovers(pool))
        assert 0 < moved < len(posted)
        assert await all_is_there()
        await a_day_later(there, store)
        in_bucket = [one.sha256 async for page in bucket.pages() for one in page]
        assert (len(in_bucket), await all_is_there()) == (len(posted) - moved, True)
        objects.puts_left = None
        assert (await from_former(there, store, "s3")).blobs == len(posted) - moved
        assert await from_former(there, store, "s3") == Moved()
        await a_day_later(there, store)
        assert [page async for page in bucket.pages()] == []
        assert await all_is_there()
        assert sorted([one.sha256 async for page in objects.pages() for one in page]) == sorted(
            hashlib.sha256(data).digest() for data in posted.values()
        )
    await bucket.close()


async def test_a_wrong_copy_in_the_bucket_does_not_cost_the_right_one(
    ours: Parts, s3: S3Endpoint, tmp_path: Path
) -> None:
    """What is there already is hashed before the other goes."""
    bucket, folder = await _bucket(s3), FilesystemStore(tmp_path / "objects")
    store = HybridStore(PostgresStore(ours.pool), bucket, INLINE_LIMIT, folder)
    try:
        blob = await blob_of(ours.pool, "dog")
        await bucket.put(Wrong(blob.sha256, bytes(blob.size)))
        assert await from_folder(ours, store) == Moved(1, len(LARGE))
        assert b"".join([chunk async for chunk in bucket.read(blob.sha256)]) == LARGE
    finally:
        await bucket.close()


class Keeping(FilesystemStore):
    """Deletes nothing."""

    async def delete(self, sha256: bytes) -> None:
        raise AssertionError(sha256.hex())


async def test_a_wrong_copy_is_replaced_in_its_place(ours: Parts, tmp_path: Path) -> None:
    """There is no moment without it: somebody may be about to read it."""
    here = Keeping(tmp_path / "here")
    await here.open()
    store = HybridStore(
        PostgresStore(ours.pool), here, INLINE_LIMIT, FilesystemStore(tmp_path / "objects")
    )
    blob = await blob_of(ours.pool, "dog")
    await here.put(Wrong(blob.sha256, bytes(blob.size)))
    assert await from_folder(ours, store) == Moved(1, len(LARGE))
    assert b"".join([chunk async for chunk in here.read(blob.sha256)]) == LARGE


async def test_what_is_deleted_goes_from_both(ours: Parts, tmp_path: Path) -> None:
    """No copy stays in the store that objects were in before."""
    here = FilesystemStore(tmp_path / "here")
    await here.open()
    store = HybridStore(
        PostgresStore(ours.pool), here, INLINE_LIMIT, FilesystemStore(tmp_path / "objects")
    )
    blob = await blob_of(ours.pool, "dog")
    await from_folder(ours, store)
    async for _ in Erasure(ours.pool, media("dog"), ADMIN).run():
        pass
    await a_day_later(ours, store)
    assert not file_of(tmp_path, blob.sha256).exists()
    assert await here.size(blob.sha256) is None


async def test_a_copy_stays_while_its_blob_is_nowhere_else(ours: Parts, tmp_path: Path) -> None:
    """Whatever the table says."""
    here = FilesystemStore(tmp_path / "here")
    await here.open()
    store = HybridStore(
        PostgresStore(ours.pool), here, INLINE_LIMIT, FilesystemStore(tmp_path / "objects")
    )
    blob = await blob_of(ours.pool, "dog")
    await from_folder(ours, store)
    await here.delete(blob.sha256)
    await a_day_later(ours, store)
    assert file_of(tmp_path, blob.sha256).exists()


async def test_pages_pass_over_what_is_not_wanted(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the names, each blob once."""
    monkeypatch.setattr(moves, "PIECE", 3)
    names = sorted([await _inline(pool, str(number).encode() * 9) for number in range(10)])
    found = [blob.sha256 async for page in moves.pages(pool, Place.INLINE, 8, 10) for blob in page]
    assert found == names
    assert not [blob async for page in moves.pages(pool, Place.INLINE, 9, 99) for blob in page]
    plan = await pool.fetchval("EXPLAIN (FORMAT JSON) " + PAGE, b"", 3, "inline", 8, 10)
    assert "blob_pkey" in plan


class Wrong:
    """A body that is not what its name says."""

    def __init__(self, sha256: bytes, data: bytes) -> None:
        self.sha256 = sha256
        self.data: bytes | None = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return (self.data or b"")[offset : offset + length]

    def fileno(self) -> int:
        raise OSError


async def _inline(pool: Pool, data: bytes) -> bytes:
    sha256 = hashlib.sha256(data).digest()
    await pool.execute(
        "INSERT INTO blob (sha256, size, place) VALUES ($1, $2, 'inline')", sha256, len(data)
    )
    await pool.execute("INSERT INTO blob_data VALUES ($1, $2)", sha256, data)
    return sha256


async def _bucket(s3: S3Endpoint) -> S3Store:
    """A new one."""
    store = S3Store(**s3.settings(bucket=f"test-{uuid.uuid4().hex}", prefix=""))
    await store.open()
    return store


class Vanishing(FilesystemStore):
    """Loses an object while it is read."""

    async def read(
        self, sha256: bytes, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        async for chunk in super().read(sha256, start, start + 5):
            yield chunk
        raise BlobMissing("as the test wants it")


async def test_what_the_new_store_gave_is_not_given_again(ours: Parts, tmp_path: Path) -> None:
    """The former one goes on where the new one left off."""
    former, now = FilesystemStore(tmp_path / "objects"), Vanishing(tmp_path / "new")
    store = HybridStore(PostgresStore(ours.pool), now, INLINE_LIMIT, former)
    await store.open()
    blob = await blob_of(ours.pool, "dog")
    shutil.copytree(tmp_path / "objects", tmp_path / "new", dirs_exist_ok=True)
    async with aclosing(store.read(blob, 3, 20)) as chunks:
        assert b"".join([chunk async for chunk in chunks]) == LARGE[3:20]
