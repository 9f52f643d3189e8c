"""Custody tells of every capture, and of all about a media."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import asyncpg
import pytest

from archiver.catalogue import custody as catalogue
from archiver.catalogue import export, queue, refused
from archiver.catalogue.custody import ABOUT
from archiver.catalogue.queue import Completed, Job, Said
from archiver.control.reply import plain
from archiver.fetch.archive import Parts
from archiver.keep.sealing import GATHERED, Sealer
from archiver.model import Blob, Mxc, Place
from tests.integration.test_query_plans import plan
from tests.support.custody import Desk, check, gather, seal, tamper
from tests.support.fetching import INLINE_LIMIT, claim, until
from tests.support.homeserver import Homeserver
from tests.support.keeping import archive, custody, states
from tests.support.redacting import image, mxc, push

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)
BY_ITSELF = ("archiver", "worker")


async def complete(conn: Connection, name: str, *, imported: bool = False) -> Completed:
    """Makes a media ready that is on its way, with bytes of its own."""
    data = name.encode()
    blob = Blob(hashlib.sha256(data).digest(), len(data), Place.INLINE)
    attempts = await conn.fetchval("SELECT attempts FROM media WHERE media_id = $1", name)
    job = Job(mxc(name), attempts, datetime.now(UTC))
    return await queue.complete(conn, job, blob, Said(), data, known=False, imported=imported)


async def wait_for(pool: Pool, *names: str) -> None:
    """Media that wait to be completed."""
    await pool.executemany(
        "INSERT INTO media (server_name, media_id, state, due_at, attempts)"
        " VALUES ($1, $2, 'pending', 'infinity', 1)",
        [mxc(name) for name in names],
    )


def told(name: str, data: bytes) -> list[Any]:
    """What a line tells of a media."""
    return [str(mxc(name)), hashlib.sha256(data).hexdigest(), len(data)]


async def lines(pool: Pool) -> list[tuple[str, list[list[Any]]]]:
    """Lines about captures: the action, and what each tells of media."""
    found = await custody(pool)
    assert {(*line[:2], line[3]) for line in found} <= {(*BY_ITSELF, None)}
    return [(line[2], line[4]["media"]) for line in found]


async def test_what_is_archived_is_in_custody(ours: Parts, homeserver: Homeserver) -> None:
    """Inline and as an object: its name, its SHA-256 and its bytes, once, and sealed."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    before = await ours.pool.fetchrow("SELECT min(at) AS first, max(at) AS last FROM captured")
    await gather(ours.pool)
    await gather(ours.pool)
    [(action, media)] = await lines(ours.pool)
    assert action == "capture"
    assert sorted(media) == sorted([told("cat", SMALL), told("dog", LARGE)])
    assert before is not None
    detail = (await custody(ours.pool))[0][4]
    assert datetime.fromisoformat(detail["first"]) == before["first"]
    assert datetime.fromisoformat(detail["last"]) == before["last"]
    assert await ours.pool.fetchval("SELECT count(*) FROM captured") == 0
    await seal(ours.pool)
    found = await check(ours.pool)
    assert (found.rows, found.waiting, found.wrong) == (1, 0, [])


async def test_a_capture_that_was_changed_is_told(ours: Parts, homeserver: Homeserver) -> None:
    """As any other line; and what no line tells of yet is counted."""
    await push(ours.pool, image("$a", "cat"))
    await archive(ours, homeserver, cat=SMALL)
    await gather(ours.pool)
    await seal(ours.pool)
    await push(ours.pool, image("$b", "dog"))
    await archive(ours, homeserver, dog=SMALL)
    assert (await check(ours.pool)).waiting == 1
    await tamper(ours.pool, "UPDATE custody SET detail = jsonb_set(detail, '{media,0,2}', '1')")
    assert (await check(ours.pool)).wrong == ["row 1, of seal 1, was changed"]


async def test_once_more_is_told_once_more(ours: Parts, homeserver: Homeserver) -> None:
    """A media that was deleted and comes again has a line of each time; nobody else's word
    that it came does."""
    await push(ours.pool, image("$a", "cat"))
    await archive(ours, homeserver, cat=SMALL)
    await gather(ours.pool)
    await ours.pool.execute("UPDATE media SET state = 'pending', due_at = now()")
    [job] = await claim(ours.pool)
    async with ours.pool.acquire() as conn:
        blob = Blob(hashlib.sha256(SMALL).digest(), len(SMALL), Place.INLINE)
        late = job._replace(attempts=job.attempts - 1)
        done = await queue.complete(conn, late, blob, Said(), SMALL, known=True)
        assert not done.held
        assert await conn.fetchval("SELECT count(*) FROM captured") == 0
        await queue.complete(conn, job, blob, Said(), SMALL, known=True)
    await gather(ours.pool)
    assert await lines(ours.pool) == [("capture", [told("cat", SMALL)])] * 2


async def test_refused_bytes_are_captured_into_quarantine(
    ours: Parts, homeserver: Homeserver, http: aiohttp.ClientSession
) -> None:
    """The line tells so, and so does who is asked about the media."""
    async with ours.pool.acquire() as conn, conn.transaction():
        await refused.refuse(conn, hashlib.sha256(SMALL).digest(), "never", tell=False)
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    assert (await states(ours.pool)) == {"cat": "quarantined", "dog": "ready"}
    await gather(ours.pool)
    [(_, media)] = await lines(ours.pool)
    assert sorted(media) == sorted([[*told("cat", SMALL), "quarantined"], told("dog", LARGE)])
    for name, expected in (("cat", True), ("dog", False)):
        shown = plain(await Desk(ours.pool, http).give("custody", str(mxc(name))))
        assert hashlib.sha256(SMALL if expected else LARGE).hexdigest() in shown
        assert ("refused: into quarantine" in shown) is expected


async def test_many_are_in_one_line(pool: Pool) -> None:
    """So many that a line stays readable; of what is imported, whoever does that tells."""
    names = [f"m{n}" for n in range(GATHERED + 3)]
    await wait_for(pool, *names, "brought")
    async with pool.acquire() as conn:
        await complete(conn, "brought", imported=True)
        for name in names:
            await complete(conn, name)
    assert await Sealer(pool).gather()
    assert not await Sealer(pool).gather()
    found = await lines(pool)
    assert sorted((action, len(media)) for action, media in found) == [
        ("capture", 3), ("capture", GATHERED),
    ]  # fmt: skip
    assert [one for _, media in found for one in media] == [
        told(name, name.encode()) for name in names
    ]


async def test_nothing_is_lost_and_nothing_twice(pool: Pool) -> None:
    """Whatever commits late or not at all, and however many gather at the same moment."""
    names = [f"m{n}" for n in range(8)]
    await wait_for(pool, *names, "late", "lost")
    async with pool.acquire() as slow:
        lost, late = slow.transaction(), slow.transaction()
        await lost.start()
        await complete(slow, "lost")
        await lost.rollback()
        await late.start()
        await complete(slow, "late")
        async with pool.acquire() as conn:
            for name in names:
                await complete(conn, name)
                await asyncio.gather(*(Sealer(pool).gather() for _ in range(3)))
        await gather(pool)
        await late.commit()
    await gather(pool)
    media = [one for _, some in await lines(pool) for one in some]
    assert sorted(media) == sorted(told(name, name.encode()) for name in (*names, "late"))


async def test_a_gatherer_that_dies_loses_nothing(pool: Pool) -> None:
    """The line and the note's end are one commit."""
    await wait_for(pool, "cat")
    async with pool.acquire() as conn:
        await complete(conn, "cat")
    await pool.execute("ALTER TABLE custody ADD CONSTRAINT broken CHECK (action <> 'capture')")
    with pytest.raises(asyncpg.CheckViolationError):
        await Sealer(pool).gather()
    await pool.execute("ALTER TABLE custody DROP CONSTRAINT broken")
    running = asyncio.create_task(Sealer(pool).run())

    async def is_sealed() -> bool:
        return (await check(pool)).rows == 1

    await until(is_sealed, "what was captured is sealed by itself")
    running.cancel()
    await asyncio.wait([running])
    assert await lines(pool) == [("capture", [told("cat", b"cat")])]


@pytest.fixture
async def told_of(pool: Pool) -> Pool:
    """Some lines about captures, one of them of a cat."""
    names = [f"m{n}" for n in range(5)]
    await wait_for(pool, *names, "cat")
    for name in (*names, "cat"):
        async with pool.acquire() as conn:
            await complete(conn, name)
        if name == "m3":
            await gather(pool)
    await gather(pool)
    return pool


async def test_a_media_finds_its_line(told_of: Pool, http: aiohttp.ClientSession) -> None:
    """`custody` of a media shows of the line what it tells of this one; others, how many."""
    desk = Desk(told_of, http)
    [row] = (await desk.give("custody", str(mxc("cat")))).data
    assert (row["actor"], row["place"], row["action"]) == (*BY_ITSELF, "capture")
    assert (row["detail"]["media"], row["detail"]["of"]) == ([told("cat", b"cat")], 2)
    newest, before = (await desk.give("custody")).data
    assert (newest["detail"]["of"], before["detail"]["of"]) == (2, 4)
    assert "media" not in newest["detail"]
    assert (await desk.give("custody", "mxc://remote.example/dog")).data == []
    assert (await desk.give("custody", str(mxc("cat")), "--since", "2099-01-01")).data == []
    async with told_of.acquire() as conn:
        await catalogue.note(conn, "@al:a", "!room:a", "hold", str(mxc("cat")))
    hold, capture = plain(await desk.give("custody", str(mxc("cat")))).splitlines()
    assert "what hold" in hold
    assert capture.endswith(f"SHA-256 {hashlib.sha256(b'cat').hexdigest()}, 3 B")
    assert plain(await desk.give("custody")).endswith("what capture · 4 media")


async def test_an_index_finds_it(told_of: Pool) -> None:
    """No table is read whole, whoever or whatever is asked for."""
    await told_of.execute(
        "INSERT INTO custody (actor, place, action, target)"
        " SELECT 'a' || n % 9, 'p' || n % 9, 'hold', 't' || n FROM generate_series(1, 5000) AS n"
    )
    await told_of.execute(
        "INSERT INTO custody (actor, place, action, detail)"
        " SELECT 'archiver', 'worker', 'capture', jsonb_build_object('media',"
        " jsonb_build_array(jsonb_build_array('mxc://a.test/' || n, repeat('0', 64), n)))"
        " FROM generate_series(1, 5000) AS n"
    )
    await told_of.execute("ANALYZE custody")
    found = await plan(told_of, ABOUT, None, 20, str(mxc("cat")))
    used = {node["Index Name"] for node in found if "Index Name" in node}
    assert used >= {"custody_target", "custody_actor", "custody_place", "custody_captured"}
    assert "Seq Scan" not in {node["Node Type"] for node in found}


async def test_an_export_has_its_part_of_a_line(told_of: Pool) -> None:
    """Which line it is, and what that tells of the media that are asked for, no others."""
    targets = [str(mxc("cat")), str(mxc("m1")), "@alice:remote.example", "mxc://a.test/none"]
    pages = [page async for page in export.custody(told_of, targets)]
    found = [dict(row) for page in pages for row in page]
    assert [(row["id"], row["action"], row["target"]) for row in found] == [
        (1, "capture", str(mxc("m1"))),
        (2, "capture", str(mxc("cat"))),
    ]
    details = [json.loads(row["detail"]) for row in found]
    assert [(detail["media"], detail["of"]) for detail in details] == [
        ([told("m1", b"m1")], 4),
        ([told("cat", b"cat")], 2),
    ]


async def test_hashes_may_be_equal(pool: Pool, http: aiohttp.ClientSession) -> None:
    """What only has the same hash as a media is not shown for it."""
    await pool.execute(
        "CREATE OR REPLACE FUNCTION captured_media(detail jsonb) RETURNS integer[] LANGUAGE sql"
        " IMMUTABLE AS $$ SELECT ARRAY[hashtext('mxc://a.test/b')] $$"
    )
    await wait_for(pool, "cat")
    async with pool.acquire() as conn:
        await complete(conn, "cat")
    await gather(pool)
    assert (await Desk(pool, http).give("custody", "mxc://a.test/b")).data == []
    assert [page async for page in export.custody(pool, [str(Mxc("a.test", "b"))])] == []
