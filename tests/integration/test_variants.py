"""The background maker, its queue, and how variants go with what they were made of."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
import pytest
import pyvips

from archiver.catalogue import deletion, queue, variants
from archiver.catalogue.variants import CLAIM, COUNTS, RENDERABLE
from archiver.db.migrate import available
from archiver.imaging.recipe import STANDARD
from archiver.imaging.renderer import Renderer
from archiver.model import Blob, Facts, Mxc, Place
from archiver.store.base import MIB
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.spool import Spool
from archiver.variants.background import MUCH_DUE, NEVER_ENDED, NO_COVER, TRIES, Background
from archiver.variants.maker import NO_FILMS, Maker, open_maker
from archiver.variants.recipes import MOST_KEPT, STANDARD_NAMES, name_of
from tests.integration.test_query_plans import assert_lean, nodes, plan
from tests.support.fetching import add, claim, until
from tests.support.pictures import (
    clip,
    encoded,
    png_bomb,
    quarters,
    song_with_cover,
)
from tests.support.samples import wav
from tests.support.serving import Archive

if TYPE_CHECKING:
    from archiver.db.pool import Pool

LEASE = timedelta(seconds=30)
# A helper that says hello, and dies of whatever it is given.
MORTAL = """
import socket
channel = socket.socket(fileno=0)
channel.sendall(b'{"walls": [], "works": ["probe", "render"]}\\n')
channel.recv(1)
"""
PICTURE = encoded(quarters(1000, 750), ".jpg")


@pytest.fixture
async def maker(archive: Archive) -> AsyncIterator[Maker]:
    """Makes pictures of the archive."""
    async with open_maker(archive.pool, archive.store, archive.folder / "spool", 2) as maker:
        yield maker


@asynccontextmanager
async def working(pool: Pool, maker: Maker) -> AsyncIterator[None]:
    """The background maker at work."""
    task = asyncio.create_task(Background(pool, maker).run())
    try:
        yield
        assert not task.done(), "it died"
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def put(archive: Archive, data: bytes, kind: str = "image/jpeg") -> Mxc:
    """A media whose pictures are still to be made."""
    mxc = await archive.put(data, kind)
    await archive.pool.execute(
        "UPDATE blob SET processing = 'pending', processing_due = now() WHERE sha256 = sha256($1)",
        data,
    )
    return mxc


async def blob_row(pool: Pool, data: bytes) -> asyncpg.Record:
    """The blob with these bytes."""
    row = await pool.fetchrow("SELECT * FROM blob WHERE sha256 = sha256($1)", data)
    assert row is not None
    return row


async def done(pool: Pool) -> None:
    """Waits until nothing is to be made any more."""

    async def nothing_waits() -> bool:
        return not await pool.fetchval("SELECT count(*) FROM blob WHERE processing = 'pending'")

    await until(nothing_waits, "all pictures are made")


async def recipes(pool: Pool, data: bytes) -> dict[str, tuple[int, int]]:
    """What was made of these bytes."""
    rows = await pool.fetch("SELECT * FROM variant WHERE blob_sha256 = sha256($1)", data)
    return {row["recipe"]: (row["width"], row["height"]) for row in rows}


async def test_the_standard_sizes_are_made_before_anybody_asks(
    archive: Archive, maker: Maker
) -> None:
    """Of pictures, films and songs, in the sizes that Synapse makes; what was not known of the
    blob is known then."""
    film, song = clip([(200, 40, 40)] * 4, width=1000, height=750), song_with_cover(PICTURE)
    for data, kind in ((PICTURE, "image/jpeg"), (film, "video/mp4"), (song, "audio/mpeg")):
        await put(archive, data, kind)
    await archive.pool.execute("UPDATE blob SET width = NULL, height = NULL, duration_ms = NULL")
    async with working(archive.pool, maker):
        await done(archive.pool)
    sizes = {"crop 32x32": (32, 32), "crop 96x96": (96, 96), "scale 320x240": (320, 240),
             "scale 640x480": (640, 480), "scale 800x600": (800, 600)}  # fmt: skip
    for data in (PICTURE, film, song):
        assert await recipes(archive.pool, data) == sizes
        assert (await blob_row(archive.pool, data))["processing"] == "ready"
    found = await blob_row(archive.pool, PICTURE)
    assert (found["width"], found["height"], found["duration_ms"]) == (1000, 750, None)
    found = await blob_row(archive.pool, film)
    assert (found["width"], found["height"], found["duration_ms"]) == (1000, 750, 2000)


async def test_a_small_picture_is_made_once_for_several_sizes(
    archive: Archive, maker: Maker
) -> None:
    """Five variants, two pictures: nothing is upscaled, so three sizes are the same."""
    data = encoded(quarters(40, 40))
    await put(archive, data, "image/png")
    async with working(archive.pool, maker):
        await done(archive.pool)
    assert set(await recipes(archive.pool, data)) == STANDARD_NAMES
    made = await archive.pool.fetchval("SELECT count(DISTINCT sha256) FROM variant")
    assert made == 2


async def test_what_cannot_be_made_is_said_once(archive: Archive, maker: Maker) -> None:
    """A bomb and a broken picture have failed with the reason; a voice message is in order, and
    its duration is known."""
    bomb, broken, voice = png_bomb(30_000, 30_000), PICTURE[:40] + b"broken", wav(2)
    for data in (bomb, broken, voice):
        await put(archive, data)
    await archive.pool.execute("UPDATE blob SET duration_ms = NULL")
    async with working(archive.pool, maker):
        await done(archive.pool)
    found = await blob_row(archive.pool, bomb)
    assert found["processing"] == "failed"
    assert found["processing_reason"].startswith("too large: ")
    found = await blob_row(archive.pool, broken)
    assert (found["processing"], bool(found["processing_reason"])) == ("failed", True)
    found = await blob_row(archive.pool, voice)
    assert (found["processing"], found["processing_reason"]) == (None, NO_COVER)
    assert found["duration_ms"] == 2000
    rows = {row["processing"]: row["blobs"] for row in await archive.pool.fetch(COUNTS)}
    assert rows == {"pending": 0, "failed": 2}


async def test_a_dead_helper_is_no_verdict(archive: Archive) -> None:
    """A picture whose helper dies waits for another try; after the last it has failed."""
    await put(archive, PICTURE)
    async with Renderer(1, command=[sys.executable, "-c", MORTAL]) as renderer:
        spool = Spool(archive.folder / "spool", 1)
        maker = Maker(archive.pool, archive.store, spool, renderer, 1)
        for attempt in range(1, TRIES + 1):
            await archive.pool.execute("UPDATE blob SET processing_due = now()")
            async with working(archive.pool, maker):
                await until(partial(_has_reason, archive.pool, attempt), "it has died of it")
            found = await blob_row(archive.pool, PICTURE)
            assert found["processing"] == ("failed" if attempt == TRIES else "pending")
            assert found["processing_reason"] == "this is damaged: its decoder broke on it"


async def test_what_takes_the_whole_archive_down_is_given_up(
    archive: Archive, maker: Maker
) -> None:
    """Claims that ended without a word count as well."""
    await put(archive, PICTURE)
    await archive.pool.execute("UPDATE blob SET processing_attempts = $1", TRIES)
    async with working(archive.pool, maker):
        await done(archive.pool)
    found = await blob_row(archive.pool, PICTURE)
    assert (found["processing"], found["processing_reason"]) == ("failed", NEVER_ENDED)


async def test_stopping_gives_the_claim_back(archive: Archive, maker: Maker) -> None:
    """Whoever starts next has it at once, and as many tries as before."""
    await put(archive, encoded(quarters(4000, 3000)), "image/png")
    async with working(archive.pool, maker):
        await until(lambda: _is_leased(archive.pool), "it is claimed")
    found = await archive.pool.fetchrow(
        "SELECT processing, processing_due <= now() AS due, processing_attempts FROM blob"
        " WHERE width = 4000"
    )
    assert found is not None
    assert tuple(found) == ("pending", True, 0)


async def test_a_lost_claim_changes_nothing(archive: Archive) -> None:
    """Whoever claimed after the lease ran out is the only one who is believed."""
    await put(archive, PICTURE)
    async with archive.pool.acquire() as conn:
        first = await variants.claim(conn, timedelta())
        second = await variants.claim(conn, LEASE)
        assert first is not None
        assert second is not None
        assert await variants.claim(conn, LEASE) is None
        await variants.settle(conn, first, "failed", Facts(), "lost")
        await variants.postpone(conn, first, timedelta(), "lost", counts=True)
        assert await variants.claim(conn, LEASE) is None
        await variants.settle(conn, second, "ready", Facts())
    found = await blob_row(archive.pool, PICTURE)
    assert (found["processing"], found["processing_reason"]) == ("ready", None)


async def test_archiving_comes_first(archive: Archive, maker: Maker) -> None:
    """While much is due, pictures are made at a walking pace, and never not at all."""
    pictures = [encoded(quarters(n, n)) for n in range(100, 110, 2)]
    for data in pictures:
        await put(archive, data, "image/png")
    await add(archive.pool, *(f"m{n}" for n in range(MUCH_DUE)))
    count = "SELECT count(*) FROM blob WHERE processing = "
    async with working(archive.pool, maker):

        async def one_is_made() -> bool:
            return bool(await archive.pool.fetchval(f"{count}'ready'"))

        await until(one_is_made, "one is made")
        assert await archive.pool.fetchval(
            "SELECT count(*) FROM blob WHERE processing = 'pending'"
        )
        await archive.pool.execute("UPDATE media SET state = 'failed' WHERE state = 'pending'")
        await done(archive.pool)


async def test_archiving_queues_what_is_a_picture(pool: Pool) -> None:
    """By the magic number, whatever its sender says; of all else nothing is to be made."""
    kinds = {"photo": "image/jpeg", "film": "video/mp4", "text": None, "page": "application/pdf"}
    await add(pool, *kinds)
    for job in await claim(pool, 10):
        kind = kinds[job.mxc.media_id]
        sha256 = job.mxc.media_id.encode().ljust(32)
        blob = Blob(sha256, 1, Place.INLINE, Facts(kind))
        async with pool.acquire() as conn:
            await queue.complete(conn, job, blob, queue.Said(), b"x", known=False)
    rows = await pool.fetch("SELECT mimetype, processing FROM blob")
    assert {row["mimetype"]: row["processing"] for row in rows} == {
        "image/jpeg": "pending", "video/mp4": "pending", None: None, "application/pdf": None
    }  # fmt: skip


async def test_what_was_archived_before_gets_its_pictures_too(empty_database_url: str) -> None:
    """The migration writes no row, and yet all old blobs wait; what is no picture is settled by a
    glance, and nothing of it is claimed."""
    conn = await asyncpg.connect(empty_database_url)
    try:
        for migration in available():
            if migration.version < 5:
                await conn.execute(migration.sql)
        await conn.execute(
            "INSERT INTO blob (sha256, size, place, mimetype) SELECT sha256(kind::bytea), 1,"
            " 'inline', kind FROM unnest(array['image/png', 'text/plain', '']) AS kind"
        )
        before = await conn.fetch("SELECT ctid, xmin FROM blob")
        await conn.execute(next(m.sql for m in available() if m.version == 5))
        assert await conn.fetch("SELECT ctid, xmin FROM blob") == before
        states = "SELECT mimetype, processing FROM blob"
        assert {row["processing"] for row in await conn.fetch(states)} == {"pending"}
        job = await variants.claim(conn, LEASE)
        assert job is not None
        assert job.blob.facts.mimetype == "image/png"
        assert await variants.claim(conn, LEASE) is None
        found = {row["mimetype"]: row["processing"] for row in await conn.fetch(states)}
        assert found == {"image/png": "pending", "text/plain": None, "": None}
    finally:
        await conn.close()


async def test_once_films_can_be_read_they_are_tried_again(archive: Archive, maker: Maker) -> None:
    """What failed only because a package was missing has its pictures after the next start."""
    film, song = clip([(10, 200, 10)] * 3), song_with_cover(PICTURE)
    await put(archive, film, "video/mp4")
    await put(archive, song, "audio/mpeg")
    async with archive.pool.acquire() as conn:
        while job := await variants.claim(conn, LEASE):
            await variants.settle(conn, job, "failed", Facts(), NO_FILMS)
    async with working(archive.pool, maker):
        for data in (film, song):
            await until(partial(_has_variants, archive.pool, data), "a picture is made")
        await done(archive.pool)


async def test_a_blob_goes_with_its_variants(archive: Archive, maker: Maker) -> None:
    """When its last media goes; a variant that is somebody's media too, or another blob's variant,
    stays."""
    data, other = PICTURE, encoded(quarters(900, 700))
    mxc, _ = await put(archive, data), await put(archive, other, "image/png")
    async with working(archive.pool, maker):
        await done(archive.pool)
    pool = archive.pool
    posted, shared = await pool.fetch(
        "SELECT sha256, recipe FROM variant WHERE blob_sha256 = sha256($1)"
        " ORDER BY recipe LIMIT 2", data
    )  # fmt: skip
    await pool.execute(
        "INSERT INTO media (server_name, media_id, state, blob_sha256)"
        " VALUES ('a', 'posted', 'ready', $1)", posted["sha256"]
    )  # fmt: skip
    await pool.execute(
        "INSERT INTO variant SELECT sha256($1), 'borrowed', $2, 1, 1", other, shared["sha256"]
    )
    sha256 = await _unlink(pool, mxc)
    left = {row["sha256"] for row in await pool.fetch("SELECT sha256 FROM blob")}
    assert sha256 not in left
    assert {posted["sha256"], shared["sha256"]} <= left
    assert await recipes(pool, data) == {}
    assert len(left) == 2 + 1 + len(await recipes(pool, other)) - 1
    bytes_left = {row["sha256"] for row in await pool.fetch("SELECT sha256 FROM blob_data")}
    assert bytes_left <= left


async def test_a_blob_stays_while_it_is_a_variant(archive: Archive, maker: Maker) -> None:
    """Of another one that stays; and what is its own variant is no reason to stay."""
    source, posted = await archive.put(PICTURE), b"the same bytes as a thumbnail"
    mxc = await archive.put(posted)
    pool = archive.pool
    insert = "INSERT INTO variant SELECT sha256($1), $2, sha256($3), 1, 1"
    await pool.execute(insert, PICTURE, "a", posted)
    await pool.execute(insert, posted, "itself", posted)
    await _unlink(pool, mxc)
    assert await blob_row(pool, posted)
    assert await recipes(pool, posted)
    await _unlink(pool, source)
    assert await pool.fetchval("SELECT count(*) FROM blob") == 0
    assert await pool.fetchval("SELECT count(*) FROM variant") == 0
    assert await pool.fetchval("SELECT count(*) FROM blob_data") == 0


async def test_nothing_is_kept_of_what_was_deleted_meanwhile(
    archive: Archive, maker: Maker
) -> None:
    """A picture that was being made while its source was deleted leaves no row and no bytes."""
    data = encoded(quarters(200, 200))
    mxc = await archive.put(data)
    row = await blob_row(archive.pool, data)
    blob = Blob(row["sha256"], row["size"], Place(row["place"]), Facts("image/png"))
    async with maker.opened(blob) as source:
        made = await maker.render(blob, source, STANDARD[2])
    await _unlink(archive.pool, mxc)
    await maker.keep(blob.sha256, STANDARD[2], made)
    for table in ("blob", "variant", "blob_data"):
        assert await archive.pool.fetchval(f"SELECT count(*) FROM {table}") == 0  # noqa: S608  # our names


async def test_two_processes_keep_one(archive: Archive, tmp_path: Path) -> None:
    """Whoever comes second with the same recipe leaves no trace, not even of other bytes."""
    await archive.put(PICTURE)
    sha256 = (await blob_row(archive.pool, PICTURE))["sha256"]
    name = name_of(STANDARD[0])
    async with archive.pool.acquire() as conn:
        for number, kept in ((1, True), (2, False)):
            made = Blob(bytes([number] * 32), 1, Place.INLINE, Facts("image/png", 1, 1))
            assert await variants.keep(conn, sha256, name, made, b"x", MOST_KEPT) is kept
    assert await archive.pool.fetchval("SELECT count(*) FROM blob") == 2


async def test_a_source_in_no_file_is_read_through_the_spool(
    pool: Pool, tmp_path: Path, maker: Maker
) -> None:
    """As from S3: over a MiB it waits on disk. What is not what it was is damage, and waits."""
    archive = Archive(pool, tmp_path)
    archive.store = HybridStore(PostgresStore(pool), archive.objects, 4 * MIB)
    noise = pyvips.Image.gaussnoise(1400, 1400).cast("uchar").copy(interpretation="b-w")
    data = encoded(noise)
    assert MIB < len(data) < 4 * MIB
    await put(archive, data, "image/png")
    async with working(pool, maker):
        await done(pool)
    assert set(await recipes(pool, data)) == STANDARD_NAMES
    await pool.execute("UPDATE blob SET processing = 'pending', processing_due = now()")
    await pool.execute("UPDATE blob_data SET data = data || 'x' WHERE sha256 = sha256($1)", data)
    async with working(pool, maker):
        await until(partial(_says, pool, "is not what it was"), "the damage is noticed")


FILL = """
INSERT INTO blob (sha256, size, place, mimetype, processing, processing_due, processing_reason)
SELECT sha256(n::text::bytea), 1, 'inline', 'image/png',
       CASE n % 100 WHEN 0 THEN 'pending' WHEN 1 THEN 'failed' ELSE 'ready' END, now(), 'x'
FROM generate_series(1, 20000) AS n;
INSERT INTO variant (blob_sha256, recipe, sha256, width, height)
SELECT sha256(n::text::bytea), 'scale 320x240', sha256((n + 1)::text::bytea), 1, 1
FROM generate_series(1, 19999) AS n;
INSERT INTO media (server_name, media_id, state, blob_sha256)
SELECT 'a', n::text, 'ready', sha256(n::text::bytea) FROM generate_series(1, 20000) AS n;
ANALYZE;
"""


async def test_the_queue_is_read_in_its_order(pool: Pool) -> None:
    """A claim, the counts and a deletion read no table whole, and nothing is sorted."""
    await pool.execute(FILL)
    found = await plan(pool, CLAIM, LEASE, RENDERABLE)
    assert_lean(found)
    locked = next(node for node in found if node["Node Type"] == "LockRows")
    assert [n.get("Index Name") for n in nodes(locked)] == [None, "blob_processing_due"]
    assert_lean(await plan(pool, COUNTS))
    assert_lean(await plan(pool, variants.RETRY, "x"))
    for statement in (deletion.DELETE_VARIANTS, deletion.DELETE_BLOBS):
        assert_lean(await plan(pool, statement, [bytes(32)]))
    arguments: list[Any] = [bytes(32), "x", 40, bytes(32), 1, "inline", "x", 1, 1, b"x"]
    text = await pool.fetchval("EXPLAIN (FORMAT JSON) " + variants.KEEP, *arguments)
    assert_lean(list(nodes(orjson.loads(text)[0]["Plan"])))


async def _unlink(pool: Pool, mxc: Mxc) -> bytes:
    """What a deletion does with a media's blob."""
    async with pool.acquire() as conn, conn.transaction():
        sha256: bytes = await conn.fetchval(
            "SELECT blob_sha256 FROM media WHERE (server_name, media_id) = ($1, $2)", *mxc
        )
        await conn.execute("DELETE FROM media WHERE (server_name, media_id) = ($1, $2)", *mxc)
        await deletion.drop_blobs(conn, [sha256])
        return sha256


async def _is_leased(pool: Pool) -> bool:
    leased = "SELECT count(*) FROM blob WHERE processing_due > now() + interval '6 min'"
    return bool(await pool.fetchval(leased))


async def _has_reason(pool: Pool, attempts: int) -> bool:
    statement = """SELECT count(*) FROM blob WHERE processing_attempts = $1
                   AND processing_reason IS NOT NULL
                   AND (processing_due IS NULL OR processing_due > now() + interval '1 min'
                        AND processing_due < now() + interval '6 min')"""
    return bool(await pool.fetchval(statement, attempts))


async def _says(pool: Pool, words: str) -> bool:
    statement = "SELECT count(*) FROM blob WHERE processing_reason LIKE '%' || $1 || '%'"
    return bool(await pool.fetchval(statement, words))


async def _has_variants(pool: Pool, data: bytes) -> bool:
    return bool(await recipes(pool, data))
