"""Repair: damaged bytes are fetched again from whoever still has them, or it is told why not."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from archiver.catalogue import repairs, verification
from archiver.errors import HomeserverUnavailable
from archiver.fetch.again import again
from archiver.fetch.archive import Parts
from archiver.keep.moving import Mover, Sizes
from archiver.keep.quarantine import OURSELVES
from archiver.keep.repair import Repairer
from archiver.keep.verify import Finding, Verdict, Verifier
from archiver.store.base import key_of
from archiver.store.bucket import Bucket
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.s3 import S3Store
from tests.support.fetching import INLINE_LIMIT, parts
from tests.support.homeserver import Homeserver, body, cut_off, error
from tests.support.keeping import ADMIN, archive, blob_of, custody, file_of, read
from tests.support.redacting import image, mxc, push
from tests.support.swift import S3Endpoint

if TYPE_CHECKING:
    from archiver.db.pool import Pool

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)
FLIP = "UPDATE blob_data SET data = set_byte(data, 7, get_byte(data, 7) # 1)"

Harm = Callable[[Parts, Path], Awaitable[None]]


@pytest.fixture
async def ours(ours: Parts, homeserver: Homeserver) -> Parts:
    """An archive with a small and a large media."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    return ours


async def verified(ours: Parts) -> list[Finding]:
    """What hashing everything finds."""
    pages = [page async for page in Verifier(ours.pool, ours.store, ADMIN).everything()]
    return [found for page in pages for found in page.findings]


def repairer(ours: Parts, store: HybridStore | None = None) -> Repairer:
    return Repairer(ours.pool, store or ours.store, ours.spool, again(ours))


async def known(pool: Pool) -> list[verification.Known]:
    async with pool.acquire() as conn:
        return await verification.known_damaged(conn, 10)


async def flip_inline(ours: Parts, _folder: Path) -> None:
    await ours.pool.execute(FLIP)


async def lose_inline(ours: Parts, _folder: Path) -> None:
    await ours.pool.execute("DELETE FROM blob_data")


async def flip_file(ours: Parts, folder: Path) -> None:
    file = file_of(folder, (await blob_of(ours.pool, "dog")).sha256)
    data = bytearray(file.read_bytes())
    data[7] ^= 1
    file.write_bytes(data)


async def lose_file(ours: Parts, folder: Path) -> None:
    file_of(folder, (await blob_of(ours.pool, "dog")).sha256).unlink()


HARMS = [
    (flip_inline, "cat", SMALL), (lose_inline, "cat", SMALL),
    (flip_file, "dog", LARGE), (lose_file, "dog", LARGE),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "name", "data"), HARMS)
async def test_what_the_homeserver_has_is_mended(
    ours: Parts, tmp_path: Path, harm: Harm, name: str, data: bytes
) -> None:
    """In its place, and for ever: the next verification finds nothing."""
    await harm(ours, tmp_path)
    [found] = await verified(ours)
    assert await repairer(ours).work()
    assert not await repairer(ours).work()
    assert await read(ours, name) == data
    assert await known(ours.pool) == []
    assert await verified(ours) == []
    lines = await custody(ours.pool)
    assert lines[-1] == (*OURSELVES, "repaired", found.sha256.hex(), {"source": str(mxc(name))})
    async with ours.pool.acquire() as conn:
        standing = await verification.standing(conn)
    assert (standing.damaged, standing.repaired) == (0, 1)


@pytest.mark.parametrize(("harm", "name", "_data"), HARMS)
async def test_what_the_homeserver_has_not_is_told(
    ours: Parts, homeserver: Homeserver, tmp_path: Path, harm: Harm, name: str, _data: bytes
) -> None:
    """With the reason; it is tried again, less and less often."""
    await harm(ours, tmp_path)
    await verified(ours)
    homeserver.give(mxc(name), body(b"other"))
    assert await repairer(ours).work()
    [damaged] = await known(ours.pool)
    assert damaged.reason == f"{mxc(name)}: the homeserver has other bytes by now"
    assert not await repairer(ours).work()  # not before its time
    waits = []
    for _ in range(12):
        await ours.pool.execute("UPDATE blob SET repair_due = now() WHERE damaged_at IS NOT NULL")
        assert await repairer(ours).work()
        waits.append(await ours.pool.fetchval("SELECT max(repair_due - now()) FROM blob"))
    assert waits[0] <= timedelta(minutes=2)
    assert timedelta(hours=6) < waits[-1] <= timedelta(hours=12)
    assert [line[2] for line in await custody(ours.pool)] == ["verify"]


async def test_what_the_homeserver_hides_is_mended_where_it_trusts_us(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Synapse gives what it has in quarantine to administrators who ask for it; who is none is
    told what everybody is told."""
    trusted = False

    async def hides(request: web.Request) -> web.StreamResponse:
        if "admin_unsafely_bypass_quarantine" not in request.query:
            return await error(404, "M_NOT_FOUND")(request)
        return await (body(SMALL) if trusted else error(400, "M_UNKNOWN"))(request)

    await flip_inline(ours, tmp_path)
    await verified(ours)
    homeserver.give(mxc("cat"), hides)
    assert await repairer(ours).work()
    [damaged] = await known(ours.pool)
    assert str(damaged.reason).startswith(f"{mxc('cat')}: 404")
    trusted = True
    await ours.pool.execute("UPDATE blob SET repair_due = now() WHERE damaged_at IS NOT NULL")
    assert await repairer(ours).work()
    assert await read(ours, "cat") == SMALL
    assert await known(ours.pool) == []


async def test_more_than_there_was_is_not_taken(ours: Parts, homeserver: Homeserver) -> None:
    """Nor is what breaks off."""
    await ours.pool.execute(FLIP)
    await verified(ours)
    homeserver.give(mxc("cat"), body(SMALL + b"1"), cut_off(SMALL[:9], len(SMALL)))
    assert await repairer(ours).work()
    [damaged] = await known(ours.pool)
    assert "more than the 10000 bytes" in (damaged.reason or "")
    await ours.pool.execute("UPDATE blob SET repair_due = now()")
    assert await repairer(ours).work()
    [damaged] = await known(ours.pool)
    assert "broke off" in (damaged.reason or "")


async def test_any_of_its_media_will_do(ours: Parts, homeserver: Homeserver) -> None:
    """One is gone from the homeserver, the other has the same bytes."""
    await push(ours.pool, image("$c", "tom"))
    await archive(ours, homeserver, tom=SMALL)
    await ours.pool.execute(FLIP)
    await verified(ours)
    homeserver.give(mxc("cat"), body(b"other"))
    assert await repairer(ours).work()
    assert await read(ours, "tom") == SMALL
    assert (await custody(ours.pool))[-1][4] == {"source": str(mxc("tom"))}


async def test_a_homeserver_that_is_away_is_nobodys_fault(
    ours: Parts, homeserver: Homeserver
) -> None:
    """It is tried again as if it had never been."""
    await ours.pool.execute(FLIP)
    await verified(ours)
    await homeserver.stop()
    with pytest.raises(HomeserverUnavailable):
        await repairer(ours).work()
    [damaged] = await known(ours.pool)
    assert damaged.reason is None
    await homeserver.start()
    assert await repairer(ours).work()
    assert await read(ours, "cat") == SMALL


async def test_what_is_right_again_is_not_fetched(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """A backup may have been restored."""
    await lose_file(ours, tmp_path)
    blob = await blob_of(ours.pool, "dog")
    await verified(ours)
    file_of(tmp_path, blob.sha256).write_bytes(LARGE)
    asked = homeserver.asked(mxc("dog"))
    assert await repairer(ours).work()
    assert homeserver.asked(mxc("dog")) == asked
    assert (await custody(ours.pool))[-1][4] == {"source": "itself"}


async def test_what_was_deleted_meanwhile_is_not_brought_back(ours: Parts, tmp_path: Path) -> None:
    """The bytes of an object that came too late are garbage, inline ones are not written."""
    for name, harm in (("dog", lose_file), ("cat", lose_inline)):
        await harm(ours, tmp_path)
        await verified(ours)
        blob = await blob_of(ours.pool, name)
        fetch = again(ours)
        gone = "UPDATE media SET state = 'deleted', blob_sha256 = NULL WHERE media_id = $1"

        async with fetch(mxc(name), blob.size) as got:
            await ours.pool.execute(gone, name)
            await ours.pool.execute("DELETE FROM blob WHERE sha256 = $1", blob.sha256)
            mending = repairer(ours)
            await mending._put(blob, got)
            await mending._mended(blob, str(mxc(name)))
    assert await ours.pool.fetchval("SELECT count(*) FROM blob_data") == 0
    assert await ours.pool.fetchval("SELECT count(*) FROM garbage") == 1


async def test_several_share_the_work(ours: Parts, homeserver: Homeserver, tmp_path: Path) -> None:
    """Nothing is fetched twice."""
    await flip_file(ours, tmp_path)
    await flip_inline(ours, tmp_path)
    await verified(ours)
    asked = len(homeserver.downloads)
    done = await asyncio.gather(*(repairer(ours).work() for _ in range(4)))
    assert sorted(done) == [False, False, True, True]
    assert len(homeserver.downloads) == asked + 2


@pytest.mark.parametrize("age", ["2 days", "1 hour"])
async def test_a_damaged_thumbnail_is_made_again(ours: Parts, tmp_path: Path, age: str) -> None:
    """Nobody can be asked for it: it goes, once nobody can be about to store the same one."""
    await lose_file(ours, tmp_path)
    thumbnail, of = await blob_of(ours.pool, "dog"), await blob_of(ours.pool, "cat")
    await ours.pool.execute(
        "UPDATE media SET state = 'deleted', blob_sha256 = NULL WHERE media_id = 'dog'"
    )
    insert = "INSERT INTO variant VALUES ($1, 'r', $2, 1, 1)"
    await ours.pool.execute(insert, of.sha256, thumbnail.sha256)
    made = "UPDATE blob SET processing = 'ready', created_at = now() - $1::text::interval"
    await ours.pool.execute(made, age)
    await verified(ours)
    assert await repairer(ours).work()
    left = await ours.pool.fetchval("SELECT count(*) FROM variant")
    processing = "SELECT processing FROM blob WHERE sha256 = $1"
    if age == "2 days":
        assert (left, await known(ours.pool)) == (0, [])
        assert await ours.pool.fetchval(processing, of.sha256) == "pending"
        assert await ours.pool.fetchval(processing, thumbnail.sha256) is None
    else:
        [damaged] = await known(ours.pool)
        assert left == 1
        assert "thumbnail" in (damaged.reason or "")


async def test_objects_of_a_bucket_are_mended(
    pool: Pool, tmp_path: Path, homeserver: Homeserver, s3: S3Endpoint
) -> None:
    """A flipped byte is found there, mended while the homeserver has it, and told when not."""
    bucket = Bucket(**s3.settings(name=f"test-{uuid.uuid4().hex}", prefix="media/"))
    store = S3Store(**s3.settings(bucket=bucket.name, prefix="media/"))
    try:
        async with parts(pool, tmp_path, homeserver.url, objects=store) as ours:
            await push(pool, image("$b", "dog"))
            await archive(ours, homeserver, dog=LARGE)
            blob = await blob_of(pool, "dog")
            flipped = bytes([LARGE[0] ^ 1]) + LARGE[1:]
            key = f"media/{blob.sha256.hex()[:2]}/{blob.sha256.hex()[2:4]}/{blob.sha256.hex()}"

            async def flip() -> None:
                put = bucket.client.put_object
                await asyncio.to_thread(put, Bucket=bucket.name, Key=key, Body=flipped)
                assert [found.verdict for found in await verified(ours)] == [Verdict.DIFFERENT]
                assert await repairer(ours).work()

            await flip()
            assert await verified(ours) == []
            assert await read(ours, "dog") == LARGE
            homeserver.give(mxc("dog"), body(b"other"))
            await flip()
            assert [found.verdict for found in await verified(ours)] == [Verdict.DIFFERENT]
            [damaged] = await known(pool)
            assert "other bytes" in (damaged.reason or "")
    finally:
        bucket.close()
        await store.close()


# What moves leave behind

EVERYTHING = Sizes(-1, 1 << 62)


async def in_another_folder(ours: Parts, folder: Path) -> HybridStore:
    """Objects are kept there from now on; they were where they are until now."""
    here = FilesystemStore(folder / "here")
    await here.open()
    former = FilesystemStore(folder / "objects")
    return HybridStore(PostgresStore(ours.pool), here, INLINE_LIMIT, former)


async def found_damaged(ours: Parts, store: HybridStore, name: str) -> None:
    """Verification finds this one."""
    blob = await blob_of(ours.pool, name)
    checked = await Verifier(ours.pool, store, ADMIN).check([blob])
    assert [found.sha256 for found in checked.findings] == [blob.sha256]


async def mended_from(ours: Parts, store: HybridStore, name: str, source: str) -> bytes:
    """The bytes, once a repair is done and has said this source."""
    assert await repairer(ours, store).work()
    assert await known(ours.pool) == []
    blob = await blob_of(ours.pool, name)
    told = {"source": source}
    assert (await custody(ours.pool))[-1] == (*OURSELVES, "repaired", blob.sha256.hex(), told)
    return b"".join([chunk async for chunk in store.read(blob)])


async def test_the_former_store_is_asked_before_the_homeserver(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """A copy that was damaged since it was moved is mended from where it came from."""
    store, asked = await in_another_folder(ours, tmp_path), len(homeserver.downloads)
    async for _ in Mover(ours.pool, store, ours.spool, ADMIN).from_former(
        "filesystem", EVERYTHING
    ):
        pass
    moved = tmp_path / "here" / key_of((await blob_of(ours.pool, "dog")).sha256)
    moved.write_bytes(bytes(len(LARGE)))
    await found_damaged(ours, store, "dog")
    assert await mended_from(ours, store, "dog", "filesystem") == LARGE
    assert moved.read_bytes() == LARGE
    assert len(homeserver.downloads) == asked


async def test_wrong_bytes_of_another_store_are_not_taken(ours: Parts, tmp_path: Path) -> None:
    """The homeserver is asked then."""
    store = await in_another_folder(ours, tmp_path)
    await flip_file(ours, tmp_path)
    await found_damaged(ours, store, "dog")
    assert await mended_from(ours, store, "dog", str(mxc("dog"))) == LARGE
    moved = tmp_path / "here" / key_of((await blob_of(ours.pool, "dog")).sha256)
    assert moved.read_bytes() == LARGE


async def test_a_store_that_is_away_keeps_nobody_from_asking_the_homeserver(
    ours: Parts, tmp_path: Path
) -> None:
    """Only what asks the former store for its part waits."""
    nowhere = FilesystemStore(tmp_path / "nowhere")
    here = FilesystemStore(tmp_path / "objects")
    store = HybridStore(PostgresStore(ours.pool), here, INLINE_LIMIT, nowhere)
    await flip_file(ours, tmp_path)
    await found_damaged(ours, store, "dog")
    assert await mended_from(ours, store, "dog", str(mxc("dog"))) == LARGE


@pytest.mark.parametrize("to", ["object", "inline"])
async def test_what_a_move_within_the_archive_left_is_asked_first(
    ours: Parts, homeserver: Homeserver, tmp_path: Path, to: str
) -> None:
    """Inline bytes that are an object now, or the other way, while they are not deleted yet."""
    homeserver.give(mxc("cat"), body(b"other"))
    mover = Mover(ours.pool, ours.store, ours.spool, ADMIN)
    async for _ in mover.to_objects(EVERYTHING):
        pass
    if to == "object":
        file_of(tmp_path, (await blob_of(ours.pool, "cat")).sha256).unlink()
    else:
        async for _ in mover.to_inline(EVERYTHING):
            pass
        await ours.pool.execute("DELETE FROM blob_data")
    await found_damaged(ours, ours.store, "cat")
    source = "inline" if to == "object" else "filesystem"
    assert await mended_from(ours, ours.store, "cat", source) == SMALL


async def test_a_patient_is_given_to_one(ours: Parts) -> None:
    """Until its lease runs out."""
    await ours.pool.execute("UPDATE blob SET damaged_at = now() WHERE place = 'object'")
    async with ours.pool.acquire() as conn:
        first = await repairs.claim(conn, timedelta(hours=1))
        assert first is not None
        assert await repairs.claim(conn, timedelta(hours=1)) is None
        await repairs.give_back(conn, first)
        assert await repairs.claim(conn, timedelta(hours=1)) == first
