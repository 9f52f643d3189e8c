"""One media on its way into a real PostgreSQL and a real object store."""

from __future__ import annotations

import asyncio
import hashlib
import random
from base64 import b64encode
from pathlib import Path

import asyncpg
import pytest

from archiver.catalogue.queue import Completed, Job
from archiver.db.pool import Pool
from archiver.errors import BlobMissing, BodyMismatch, Excluded, MediaNotFound, StoreUnavailable
from archiver.fetch.archive import Parts, archive_one
from archiver.model import Blob, Facts, Place
from archiver.store import hybrid
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from tests.support.fetching import INLINE_LIMIT, add, claim, parts, row, someone_waits, until
from tests.support.homeserver import Homeserver, body, chunked, cut_off, mxc
from tests.support.samples import png

SMALL = random.Random(1).randbytes(INLINE_LIMIT)  # noqa: S311 -- the same in each process of a run
LARGE = random.Random(2).randbytes(INLINE_LIMIT + 1)  # noqa: S311 -- as above
HUGE = 256 << 20
ON_ITS_WAY = 32 << 20  # more than sockets and buffers between two processes ever hold


async def job(pool: Pool, name: str, *hashes: str | None) -> Job:
    """A claim on a new media, of which its senders said this."""
    await add(pool, name)
    (claimed,) = await claim(pool)
    return claimed._replace(hashes=hashes)


async def kept(store: HybridStore, blob: Blob) -> bytes:
    return b"".join([chunk async for chunk in store.read(blob)])


async def count(pool: Pool, table: str) -> int:
    statements = {"blob": "SELECT count(*) FROM blob", "data": "SELECT count(*) FROM blob_data"}
    return int(await pool.fetchval(statements[table]))


def objects(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "objects").glob("??/??/*") if path.is_file()]


def unpadded(data: bytes) -> str:
    return b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


async def test_a_small_media_rests_in_the_database(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Up to the very limit the bytes go into PostgreSQL, with what is known of them."""
    homeserver.give(mxc("cat"), body(SMALL, "image/png", Content_Disposition="inline; filename=c"))
    archived = await archive_one(await job(ours.pool, "cat"), ours)
    digest = hashlib.sha256(SMALL).digest()
    assert archived.blob == Blob(digest, INLINE_LIMIT, Place.INLINE, Facts())
    assert archived.completed == Completed(True, True)
    media = await row(ours.pool, "cat")
    assert (media["state"], media["blob_sha256"]) == ("ready", digest)
    assert (media["declared_type"], media["upload_name"]) == ("image/png", "c")
    assert await kept(ours.store, archived.blob) == SMALL
    assert objects(tmp_path) == []


async def test_a_large_media_rests_in_the_object_store(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """One byte more, and the bytes are an object; the database has its row alone."""
    homeserver.give(mxc("cat"), LARGE)
    archived = await archive_one(await job(ours.pool, "cat"), ours)
    assert archived.blob.place is Place.OBJECT
    assert (await row(ours.pool, "cat"))["state"] == "ready"
    assert await kept(ours.store, archived.blob) == LARGE
    assert [path.name for path in objects(tmp_path)] == [hashlib.sha256(LARGE).hexdigest()]
    assert await count(ours.pool, "data") == 0


@pytest.mark.parametrize("data", [SMALL, LARGE, b""], ids=["inline", "object", "empty"])
async def test_a_body_without_length(ours: Parts, homeserver: Homeserver, data: bytes) -> None:
    """A media whose length nobody announced finds its place by what came."""
    homeserver.give(mxc("cat"), chunked(data))
    archived = await archive_one(await job(ours.pool, "cat"), ours)
    assert await kept(ours.store, archived.blob) == data


async def test_facts_are_recorded(ours: Parts, homeserver: Homeserver) -> None:
    """What the bytes say of themselves is in the blob's row."""
    homeserver.give(mxc("cat"), body(png(3, 5, (1, 2, 3)), "text/html"))
    await archive_one(await job(ours.pool, "cat"), ours)
    blob = await ours.pool.fetchrow("SELECT mimetype, width, height, duration_ms FROM blob")
    assert blob is not None
    assert tuple(blob) == ("image/png", 3, 5, None)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "object"])
async def test_the_same_bytes_are_kept_once(
    ours: Parts, homeserver: Homeserver, tmp_path: Path, data: bytes
) -> None:
    """Two media with the same content share one blob."""
    for name in ("cat", "copy"):
        homeserver.give(mxc(name), data)
    first = await archive_one(await job(ours.pool, "cat"), ours)
    second = await archive_one(await job(ours.pool, "copy"), ours)
    assert first.completed == Completed(True, True)
    assert second.completed == Completed(True, False)
    assert first.blob == second.blob
    assert await count(ours.pool, "blob") == 1
    assert await count(ours.pool, "data") + len(objects(tmp_path)) == 1


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "object"])
async def test_a_race_for_the_same_bytes(
    ours: Parts, homeserver: Homeserver, tmp_path: Path, data: bytes
) -> None:
    """However many media bring the same new bytes at once, one of them makes the blob."""
    names = [f"copy{number}" for number in range(8)]
    for name in names:
        homeserver.give(mxc(name), data)
    await add(ours.pool, *names)
    jobs = await claim(ours.pool, len(names))
    archived = await asyncio.gather(*(archive_one(one, ours) for one in jobs))
    assert [one.completed.held for one in archived] == [True] * len(names)
    assert sum(one.completed.new_blob for one in archived) == 1
    assert await count(ours.pool, "blob") == 1
    assert await count(ours.pool, "data") + len(objects(tmp_path)) == 1
    assert await kept(ours.store, archived[0].blob) == data


@pytest.mark.parametrize("limits", [(10, 1_000_000), (1_000_000, 10)], ids=["up", "down"])
async def test_the_inline_limit_may_change(
    pool: Pool, homeserver: Homeserver, tmp_path: Path, limits: tuple[int, int]
) -> None:
    """A blob stays where it was first put, and media that come later find it there."""
    for name, limit in zip(("cat", "copy"), limits, strict=True):
        homeserver.give(mxc(name), SMALL)
        async with parts(pool, tmp_path, homeserver.url, inline_limit=limit) as built:
            await archive_one(await job(pool, name), built)
            assert (await row(pool, name))["state"] == "ready"
            place = Place(await pool.fetchval("SELECT place FROM blob"))
            blob = Blob(hashlib.sha256(SMALL).digest(), len(SMALL), place)
            assert await kept(built.store, blob) == SMALL
    assert await count(pool, "blob") == 1
    assert await count(pool, "data") + len(objects(tmp_path)) == 1


GOOD, BAD = unpadded(SMALL), unpadded(b"something else")


@pytest.mark.parametrize(
    "hashes", [(), (GOOD,), (GOOD + "=",), (None,), (BAD, GOOD), (BAD, None)], ids=str
)
async def test_content_that_a_sender_vouches_for(
    ours: Parts, homeserver: Homeserver, hashes: tuple[str | None, ...]
) -> None:
    """A body passes by one sender's right hash, or where one names the media without any."""
    homeserver.give(mxc("cat"), SMALL)
    archived = await archive_one(await job(ours.pool, "cat", *hashes), ours)
    assert archived.completed.held


@pytest.mark.parametrize("hashes", [(BAD,), (BAD, "x"), ("",), (GOOD.lower(),)], ids=str)
async def test_content_that_no_sender_meant(
    ours: Parts, homeserver: Homeserver, hashes: tuple[str, ...]
) -> None:
    """A body that is not what any sender encrypted is not kept."""
    homeserver.give(mxc("cat"), SMALL)
    with pytest.raises(BodyMismatch, match="hashes"):
        await archive_one(await job(ours.pool, "cat", *hashes), ours)
    assert await count(ours.pool, "blob") == await count(ours.pool, "data") == 0


async def test_a_body_that_broke_off_is_not_kept(ours: Parts, homeserver: Homeserver) -> None:
    """Half a body leaves nothing behind."""
    homeserver.give(mxc("cat"), cut_off(LARGE, len(LARGE) + 1))
    with pytest.raises(BodyMismatch):
        await archive_one(await job(ours.pool, "cat"), ours)
    assert await count(ours.pool, "blob") == 0
    assert (await row(ours.pool, "cat"))["state"] == "pending"


async def test_what_is_announced_too_large_is_not_downloaded(
    pool: Pool, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Over capture.max_size the headers are all that is asked for."""
    homeserver.give(mxc("cat"), homeserver.endless(HUGE))
    async with parts(pool, tmp_path, homeserver.url, max_size=20_000) as limited:
        with pytest.raises(Excluded, match=r"capture\.max_size: 256\.0 MiB .* 19\.5 KiB"):
            await archive_one(await job(pool, "cat"), limited)
    assert homeserver.sent < ON_ITS_WAY


async def test_what_turns_out_too_large_is_left(
    pool: Pool, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Without a length, a body is left when it passes capture.max_size, which may be reached."""
    async with parts(pool, tmp_path, homeserver.url, max_size=20_000) as limited:
        homeserver.give(mxc("cat"), chunked(bytes(20_001)))
        with pytest.raises(Excluded):
            await archive_one(await job(pool, "cat"), limited)
        homeserver.give(mxc("dog"), chunked(bytes(20_000)))
        await archive_one(await job(pool, "dog"), limited)
    assert await count(pool, "blob") == 1


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "object"])
async def test_a_lost_claim_writes_nothing(
    ours: Parts, homeserver: Homeserver, data: bytes
) -> None:
    """A worker whose lease passed to another one leaves no trace in the database."""
    homeserver.give(mxc("cat"), data)
    stale = await job(ours.pool, "cat")
    await ours.pool.execute("UPDATE media SET attempts = attempts + 1")
    archived = await archive_one(stale, ours)
    assert not archived.completed.held
    assert await count(ours.pool, "blob") == await count(ours.pool, "data") == 0
    assert (await row(ours.pool, "cat"))["state"] == "pending"


async def test_a_blob_deleted_meanwhile(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Bytes that were there at the look and gone at the commit never make a media ready."""
    for name in ("cat", "copy"):
        homeserver.give(mxc(name), LARGE)
    first = await archive_one(await job(ours.pool, "cat"), ours)
    claimed = await job(ours.pool, "copy")
    async with ours.pool.acquire() as deleter:
        async with deleter.transaction():
            # The completion of `copy` waits for this row, with its look at the blob behind it.
            await deleter.execute("SELECT FROM media WHERE media_id = 'copy' FOR UPDATE")
            task = asyncio.create_task(archive_one(claimed, ours))
            await until(lambda: someone_waits(ours.pool), "the completion waits")
            await deleter.execute("DELETE FROM media WHERE media_id = 'cat'")
            await deleter.execute("DELETE FROM blob")
        await FilesystemStore(tmp_path / "objects").delete(first.blob.sha256)
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await task
    archived = await archive_one(claimed, ours)
    assert archived.completed == Completed(True, True)
    assert await kept(ours.store, archived.blob) == LARGE


async def test_no_row_says_what_no_store_has(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """While the object store takes nothing, nothing is recorded; small media need none of it."""
    homeserver.give(mxc("large"), LARGE)
    homeserver.give(mxc("small"), SMALL)
    claimed = await job(ours.pool, "large")
    away = (tmp_path / "objects").rename(tmp_path / "away")
    with pytest.raises(StoreUnavailable, match=r"storage\.filesystem\.path"):
        await archive_one(claimed, ours)
    assert await count(ours.pool, "blob") == 0
    await archive_one(await job(ours.pool, "small"), ours)
    away.rename(tmp_path / "objects")
    with pytest.raises(BlobMissing):
        await kept(ours.store, Blob(hashlib.sha256(LARGE).digest(), len(LARGE), Place.OBJECT))


async def test_an_outage_of_the_store_is_not_found_out_by_downloading(
    ours: Parts, homeserver: Homeserver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one body in vain, large ones are left at their headers until the store is back."""
    homeserver.give(mxc("large"), homeserver.endless(HUGE))
    homeserver.give(mxc("medium"), LARGE)
    homeserver.give(mxc("chunked"), chunked(LARGE))
    away = (tmp_path / "objects").rename(tmp_path / "away")
    large, medium = await job(ours.pool, "large"), await job(ours.pool, "medium")
    with pytest.raises(StoreUnavailable):
        await archive_one(medium, ours)
    for recheck in (0, 0, 3600, 3600):
        monkeypatch.setattr(hybrid, "RECHECK_SECONDS", recheck)
        with pytest.raises(StoreUnavailable, match=r"storage\.filesystem\.path"):
            await archive_one(large, ours)
    assert homeserver.sent < ON_ITS_WAY * 4 < HUGE
    # Back, but nobody looks for an hour: a success tells as well.
    away.rename(tmp_path / "objects")
    with pytest.raises(StoreUnavailable):
        await archive_one(medium, ours)
    await archive_one(await job(ours.pool, "chunked"), ours)
    await archive_one(medium, ours)
    assert (await row(ours.pool, "medium"))["state"] == "ready"


async def test_a_spool_that_is_full_is_an_outage(
    pool: Pool, homeserver: Homeserver, tmp_path: Path
) -> None:
    """A spool folder that cannot be written makes large media wait, with the key to look at."""
    (tmp_path / "spool").write_bytes(b"")
    homeserver.give(mxc("cat"), LARGE)
    async with parts(pool, tmp_path, homeserver.url) as built:
        with pytest.raises(StoreUnavailable, match=r"storage\.spool"):
            await archive_one(await job(pool, "cat"), built)


async def test_a_refusal_passes_through(ours: Parts) -> None:
    """What the homeserver says is what the worker hears."""
    with pytest.raises(MediaNotFound):
        await archive_one(await job(ours.pool, "cat"), ours)
