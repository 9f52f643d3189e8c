"""Repair: damaged bytes are fetched again from whoever still has them, or it is told why not."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY

from archiver.catalogue import repairs, verification
from archiver.errors import HomeserverUnavailable
from archiver.fetch.again import again
from archiver.fetch.archive import Parts
from archiver.keep import rounds as rounds_module
from archiver.keep.repair import OURSELVES, Repairer
from archiver.keep.rounds import Rounds
from archiver.keep.verify import Finding, Verdict, Verifier
from archiver.store.bucket import Bucket
from archiver.store.s3 import S3Store
from tests.support.fetching import INLINE_LIMIT, parts, until
from tests.support.homeserver import Homeserver, body, cut_off
from tests.support.keeping import ADMIN, archive, blob_of, custody, file_of, read
from tests.support.redacting import image, mxc, push
from tests.support.swift import S3Endpoint

if TYPE_CHECKING:
    from archiver.db.pool import Pool

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)
MONTH = timedelta(days=30)
FLIP = "UPDATE blob_data SET data = set_byte(data, 7, get_byte(data, 7) # 1)"

Harm = Callable[[Parts, Path], Awaitable[None]]


@pytest.fixture
async def homeserver() -> AsyncIterator[Homeserver]:
    async with Homeserver() as server:
        yield server


@pytest.fixture
async def ours(pool: Pool, tmp_path: Path, homeserver: Homeserver) -> AsyncIterator[Parts]:
    """An archive with a small and a large media."""
    async with parts(pool, tmp_path, homeserver.url) as built:
        await push(pool, image("$a", "cat"), image("$b", "dog"))
        await archive(built, homeserver, cat=SMALL, dog=LARGE)
        yield built


async def verified(ours: Parts) -> list[Finding]:
    """What hashing everything finds."""
    pages = [page async for page in Verifier(ours.pool, ours.store, ADMIN).everything()]
    return [found for page in pages for found in page.findings]


def repairer(ours: Parts) -> Repairer:
    return Repairer(ours.pool, ours.store, again(ours))


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
            await mending._mended(blob, mxc(name))
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
    name, keys = f"test-{uuid.uuid4().hex}", (s3.access_key_id, s3.secret_access_key)
    store = S3Store(
        endpoint_url=s3.endpoint_url, region=s3.region, bucket=name, prefix="media/",
        access_key_id=keys[0], secret_access_key=keys[1], addressing_style="path",
    )  # fmt: skip
    bucket = Bucket(s3.endpoint_url, s3.region, name, "media/", *keys, "path")
    try:
        async with parts(pool, tmp_path, homeserver.url, objects=store) as ours:
            await push(pool, image("$b", "dog"))
            await archive(ours, homeserver, dog=LARGE)
            blob = await blob_of(pool, "dog")
            flipped = bytes([LARGE[0] ^ 1]) + LARGE[1:]
            key = f"media/{blob.sha256.hex()[:2]}/{blob.sha256.hex()[2:4]}/{blob.sha256.hex()}"

            async def flip() -> None:
                put = bucket.client.put_object
                await asyncio.to_thread(put, Bucket=name, Key=key, Body=flipped)
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


# Verification by itself


def rounds(ours: Parts, rate: int = 10**9) -> Rounds:
    return Rounds(ours.pool, ours.store, rate, MONTH)


async def test_a_round_verifies_what_is_due(ours: Parts, tmp_path: Path) -> None:
    """And finds what is damaged; what was verified within the month is passed over."""
    before = REGISTRY.get_sample_value("archiver_verified_bytes_total") or 0
    await rounds(ours).once()
    after = REGISTRY.get_sample_value("archiver_verified_bytes_total") or 0
    assert after - before == len(SMALL) + len(LARGE)
    await lose_file(ours, tmp_path)
    await rounds(ours).once()
    assert await known(ours.pool) == []
    await ours.pool.execute("UPDATE blob SET verified_at = now() - interval '31 days'")
    await rounds(ours).once()
    [damaged] = await known(ours.pool)
    assert damaged.sha256 == (await blob_of(ours.pool, "dog")).sha256
    [line] = await custody(ours.pool)
    assert line[:3] == (*OURSELVES, "verify")
    assert await repairer(ours).work()
    assert await known(ours.pool) == []


async def test_a_round_is_one_processs(ours: Parts) -> None:
    """The others leave it to that one."""
    async with ours.pool.acquire() as conn:
        await conn.execute(rounds_module.TRY_LOCK, rounds_module.LOCK)
        await rounds(ours).once()
        never = "SELECT count(*) FROM blob WHERE verified_at IS NULL"
        assert await ours.pool.fetchval(never) == 2
        await conn.execute(rounds_module.UNLOCK, rounds_module.LOCK)
    await rounds(ours).once()
    assert await ours.pool.fetchval(never) == 0


async def test_a_round_keeps_its_pace(ours: Parts) -> None:
    """However fast the disk is: so many bytes a second."""
    slow = rounds(ours, rate=1)
    working = asyncio.create_task(slow.once())

    async def owes() -> bool:
        return slow._free_at > time.monotonic() + INLINE_LIMIT / 2

    await until(owes, "what was hashed is paid for")
    assert not working.done()
    working.cancel()
    await asyncio.wait([working])


async def test_a_patient_is_given_to_one(ours: Parts) -> None:
    """Until its lease runs out."""
    await ours.pool.execute("UPDATE blob SET damaged_at = now() WHERE place = 'object'")
    async with ours.pool.acquire() as conn:
        first = await repairs.claim(conn, timedelta(hours=1))
        assert first is not None
        assert await repairs.claim(conn, timedelta(hours=1)) is None
        await repairs.give_back(conn, first)
        assert await repairs.claim(conn, timedelta(hours=1)) == first
