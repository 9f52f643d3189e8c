"""Sweeping: bytes that no row knows go, and rows without their bytes are noted."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import tracemalloc
import uuid
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from archiver.catalogue import sweeping
from archiver.errors import OperationError
from archiver.fetch.archive import Parts
from archiver.keep import sweep as sweep_module
from archiver.keep.abreast import abreast
from archiver.keep.deletion import Deletion
from archiver.keep.sweep import Heap, Sweep, Swept
from archiver.store.base import Stored
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.s3 import S3Store
from tests.support.fetching import INLINE_LIMIT, parts, until
from tests.support.homeserver import Homeserver
from tests.support.keeping import ADMIN, archive, blob_of, custody, file_of
from tests.support.redacting import image, mxc, push
from tests.support.swift import S3Endpoint

if TYPE_CHECKING:
    from archiver.db.pool import Pool

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)
RIGHT = Heap(2, len(SMALL) + len(LARGE))
LONG_AGO = timedelta(days=2)


@pytest.fixture
async def ours(ours: Parts, homeserver: Homeserver) -> Parts:
    """An archive with a small and a large media."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    return ours


async def swept(ours: Parts, *, delete: bool = False) -> Swept:
    """Goes through everything."""
    return await _swept(Sweep(ours.pool, ours.store, ADMIN, delete=delete))


async def _swept(sweep: Sweep) -> Swept:
    return [swept async for swept in sweep.run()][-1]


def old(file: Path) -> None:
    """As if it had come days ago."""
    then = time.time() - LONG_AGO.total_seconds()
    os.utime(file, (then, then))


def stray(folder: Path, data: bytes = b"stray") -> Path:
    """An object that no row knows."""
    file = file_of(folder, hashlib.sha256(data).digest())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    old(file)
    return file


async def test_nothing_is_wrong(ours: Parts) -> None:
    """Then nothing is changed, not even when it may be."""
    for delete in (False, True):
        assert await swept(ours, delete=delete) == Swept(RIGHT)
    assert await custody(ours.pool) == []


async def test_an_object_without_a_row_goes_a_day_later(ours: Parts, tmp_path: Path) -> None:
    """It is told first; whoever stores the same bytes meanwhile keeps them."""
    file = stray(tmp_path)
    digest = bytes.fromhex(file.name)
    for _ in range(2):
        assert await swept(ours) == Swept(RIGHT, objects=Heap(1, 5))
    assert await ours.pool.fetchval("SELECT count(*) FROM garbage") == 0
    assert await swept(ours, delete=True) == Swept(RIGHT, objects=Heap(1, 5))
    assert await swept(ours) == Swept(RIGHT)  # it is on its way out
    told = {"sha256": [file.name], "rested": "object", "bytes": 5}
    assert await custody(ours.pool) == [(*ADMIN, "sweep", None, told)]
    collector = Deletion(ours.pool, ours.store, None)
    await collector.work()
    assert file.exists()
    await ours.pool.execute("UPDATE garbage SET due_at = now() WHERE sha256 = $1", digest)
    await collector.work()
    assert not file.exists()


async def test_what_just_came_is_left_alone(ours: Parts, tmp_path: Path) -> None:
    """Its row may be about to be written."""
    file = stray(tmp_path)
    os.utime(file)
    assert await swept(ours, delete=True) == Swept(RIGHT)
    assert await ours.pool.fetchval("SELECT count(*) FROM garbage") == 0


async def test_foreign_files_are_nobodys_business(ours: Parts, tmp_path: Path) -> None:
    """What has no name of ours is neither counted nor removed."""
    file = tmp_path / "objects" / "ab" / "cd" / "note.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"mine")
    old(file)
    assert await swept(ours, delete=True) == Swept(RIGHT)
    assert file.exists()


async def test_a_row_without_its_object_is_noted(ours: Parts, tmp_path: Path) -> None:
    """Without being asked to delete, it is only told."""
    blob = await blob_of(ours.pool, "dog")
    file_of(tmp_path, blob.sha256).unlink()
    found = Swept(Heap(1, len(SMALL)), lost=Heap(1, len(LARGE)))
    damaged = "SELECT count(*) FROM blob WHERE damaged_at IS NOT NULL"
    assert await swept(ours) == found
    assert await ours.pool.fetchval(damaged) == 0
    for _ in range(2):
        assert await swept(ours, delete=True) == found
    assert await ours.pool.fetchval(damaged) == 1
    told = {"found": "missing", "media": [str(mxc("dog"))]}
    assert await custody(ours.pool) == [(*ADMIN, "sweep", blob.sha256.hex(), told)]


async def test_an_object_of_another_length_is_noted(ours: Parts, tmp_path: Path) -> None:
    """The list of the store tells it, without a byte being read."""
    blob = await blob_of(ours.pool, "dog")
    file_of(tmp_path, blob.sha256).write_bytes(LARGE[:-1])
    assert (await swept(ours, delete=True)).lost == Heap(1, len(LARGE))
    [line] = await custody(ours.pool)
    assert line[4]["found"] == "different"


async def test_an_object_folder_that_is_away_damages_nothing(ours: Parts, tmp_path: Path) -> None:
    """An unmounted disk must not look as if all were lost."""
    (tmp_path / "objects").rename(tmp_path / "elsewhere")
    (tmp_path / "objects").mkdir()
    with pytest.raises(Exception, match="cannot use the object folder"):
        await swept(ours, delete=True)
    assert await ours.pool.fetchval("SELECT count(*) FROM blob WHERE damaged_at IS NOT NULL") == 0


async def test_inline_bytes_and_rows_belong_together(ours: Parts) -> None:
    """Bytes without a row go at once, a row without bytes is damaged."""
    blob = await blob_of(ours.pool, "cat")
    await ours.pool.execute("DELETE FROM blob_data")
    await ours.pool.execute("INSERT INTO blob_data VALUES (sha256('stray'), 'stray')")
    found = Swept(Heap(1, len(LARGE)), inline=Heap(1, 5), lost=Heap(1, len(SMALL)))
    for delete in (False, True):
        assert await swept(ours, delete=delete) == found
    assert await ours.pool.fetchval("SELECT count(*) FROM blob_data") == 0
    assert await ours.pool.fetchval("SELECT count(*) FROM blob") == 2
    damaged = await ours.pool.fetch("SELECT sha256 FROM blob WHERE damaged_at IS NOT NULL")
    assert [row["sha256"] for row in damaged] == [blob.sha256]


async def test_whoever_records_stray_bytes_meanwhile_has_them(ours: Parts) -> None:
    """The sweep waits for a blob that is being recorded, and then lets its bytes be."""
    name = hashlib.sha256(b"stray").digest()
    await ours.pool.execute("INSERT INTO blob_data VALUES ($1, 'stray')", name)
    record = "INSERT INTO blob (sha256, size, place) VALUES ($1, 5, 'inline')"
    async with ours.pool.acquire() as conn:
        other = conn.transaction()
        await other.start()
        await conn.execute(record, name)
        sweeping_it = asyncio.create_task(swept(ours, delete=True))

        async def is_waiting() -> bool:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            waits += " AND datname = current_database()"
            return bool(await ours.pool.fetchval(waits))

        await until(is_waiting, "the sweep waits for who records the blob")
        await other.commit()
    assert (await sweeping_it).inline == Heap()
    assert await ours.pool.fetchval("SELECT count(*) FROM blob_data WHERE sha256 = $1", name) == 1


async def test_what_was_left_half_written_goes(ours: Parts, tmp_path: Path) -> None:
    """After a day, and not before."""
    young, forgotten = tmp_path / "objects/tmp/young", tmp_path / "objects/tmp/forgotten"
    young.write_bytes(b"1")
    forgotten.write_bytes(b"22")
    old(forgotten)
    for delete in (False, True):
        assert (await swept(ours, delete=delete)).leftovers == Heap(1, 2)
    assert young.exists()
    assert not forgotten.exists()


async def test_what_is_still_in_the_former_store_is_not_lost(
    pool: Pool, tmp_path: Path, ours: Parts
) -> None:
    """While objects move, a blob is in either of two stores; a stray goes from both."""
    now = FilesystemStore(tmp_path / "new")
    await now.open()
    former = FilesystemStore(tmp_path / "objects")
    stray(tmp_path)
    both = HybridStore(PostgresStore(pool), now, INLINE_LIMIT, former)
    last = await _swept(Sweep(pool, both, ADMIN, delete=True))
    assert (last.lost, last.objects) == (Heap(), Heap(1, 5))


async def test_a_bucket_is_swept_as_well(
    pool: Pool,
    tmp_path: Path,
    homeserver: Homeserver,
    s3: S3Endpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its list comes in pages, and in the order of the names."""
    store = S3Store(**s3.settings(bucket=f"test-{uuid.uuid4().hex}", prefix="media/"))
    try:
        async with parts(pool, tmp_path, homeserver.url, objects=store) as ours:
            names = ["cow", "dog", "hen", "pig"]
            await push(pool, *(image(f"${name}", name) for name in names))
            bodies = {name: os.urandom(INLINE_LIMIT + 1) for name in names}
            await archive(ours, homeserver, **bodies)
            listed = [one.sha256 async for page in store.pages() for one in page]
            assert listed == sorted(hashlib.sha256(data).digest() for data in bodies.values())
            gone, lost = await blob_of(pool, "hen"), await blob_of(pool, "pig")
            await pool.execute(
                "UPDATE media SET blob_sha256 = NULL, state = 'deleted' WHERE blob_sha256 = $1",
                gone.sha256,
            )
            await pool.execute("DELETE FROM blob WHERE sha256 = $1", gone.sha256)
            await store.delete(lost.sha256)
            assert (await swept(ours, delete=True)).objects == Heap()  # it came just now
            monkeypatch.setattr(sweep_module, "BYTES_AFTER", -LONG_AGO)
            found = await swept(ours, delete=True)
            size = INLINE_LIMIT + 1
            assert found == Swept(Heap(2, 2 * size), objects=Heap(1, size), lost=Heap(1, size))
            garbage = await pool.fetch("SELECT sha256 FROM garbage")
            assert [row["sha256"] for row in garbage] == [gone.sha256]
    finally:
        await store.close()


async def test_memory_does_not_grow_with_the_archive(pool: Pool, tmp_path: Path) -> None:
    """However many rows and bytes there are, a page of each is held."""
    await pool.execute(
        "INSERT INTO blob (sha256, size, place) SELECT sha256(n::text::bytea), 3,"
        " CASE WHEN n % 2 = 0 THEN 'inline' ELSE 'object' END FROM generate_series(1, 60000) AS n"
    )
    await pool.execute(
        "INSERT INTO blob_data SELECT sha256(n::text::bytea), 'abc' FROM"
        " generate_series(1, 60000) AS n WHERE n % 2 = 0 AND n <= 50000"
    )
    rows = await pool.fetch("SELECT sha256 FROM blob WHERE place = 'object' ORDER BY sha256")
    digests = [row["sha256"] for row in rows]

    class Objects(FilesystemStore):
        """As if a folder had them all."""

        async def pages(self) -> AsyncGenerator[list[Stored], None]:
            """In pages as they come from a bucket."""
            for start in range(0, len(digests), 1000):
                yield [Stored(d, 3, datetime.now(UTC)) for d in digests[start : start + 1000]]

    folder = Objects(tmp_path / "objects")
    await folder.open()
    store = HybridStore(PostgresStore(pool), folder, INLINE_LIMIT)
    tracemalloc.start()
    try:
        last = await _swept(Sweep(pool, store, ADMIN, delete=False))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert last == Swept(Heap(55_000, 165_000), lost=Heap(5_000, 15_000))
    assert most < 4 * 1024 * 1024


async def _pages(*pages: list[int]) -> AsyncGenerator[list[Stored], None]:
    for page in pages:
        yield [Stored(bytes([number]), number) for number in page]


async def test_two_lists_abreast() -> None:
    """Whatever their pages are, what is in both comes in the same stretch."""
    seen = []
    async for left, right in abreast(_pages([1, 2], [], [3, 9]), _pages([2, 3, 4, 5], [8], [9])):
        seen.append(([one.size for one in left], [one.size for one in right]))
    assert [n for left, _ in seen for n in left] == [1, 2, 3, 9]
    assert [n for _, right in seen for n in right] == [2, 3, 4, 5, 8, 9]
    assert all((left[-1:] == [2]) == (right[:1] == [2]) for left, right in seen)
    both = [set(left) & set(right) for left, right in seen]
    assert set().union(*both) == {2, 3, 9}


async def test_a_list_in_no_order_is_not_believed() -> None:
    """A kind of bucket that lists as it likes would make everything look lost."""
    with pytest.raises(OperationError, match="order of the names"):
        async for _ in abreast(_pages([1, 2]), _pages([2, 1])):
            pass


async def test_rows_are_found_along_the_key(pool: Pool) -> None:
    """In pages, each once."""
    await pool.execute(
        "INSERT INTO blob (sha256, size, place) SELECT sha256(n::text::bytea), n, 'object'"
        " FROM generate_series(1, $1::integer) AS n",
        sweeping.AT_ONCE + 5,
    )
    seen = [blob.sha256 async for page in sweeping.rows(pool) for blob in page]
    assert len(seen) == sweeping.AT_ONCE + 5
    assert seen == sorted(set(seen))
