"""Media that is asked for before it is archived is fetched, kept, and streamed meanwhile."""

from __future__ import annotations

import asyncio
import os
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from archiver.errors import LimitExceeded
from archiver.fetch.archive import Parts, archive_one
from archiver.fetch.demand import MOST_AT_ONCE, Demand, open_demand
from archiver.fetch.worker import Worker
from archiver.model import Mxc
from tests.support.fetching import add, claim, parts, row, until
from tests.support.homeserver import Answer, Homeserver, body, chunked, error, held, mxc
from tests.support.samples import png
from tests.support.serving import INLINE_LIMIT, MATRIX, Archive, Reader, serving

if TYPE_CHECKING:
    from archiver.db.pool import Pool

KIB = 1024
PICTURE = png(8, 8, (9, 9, 9))
LARGE = PICTURE + os.urandom(300 * KIB)
FIRST = 200 * KIB  # of LARGE
CAT = mxc("cat")
LEASE = timedelta(seconds=30)


@pytest.fixture
async def ours(pool: Pool, tmp_path: Path, homeserver: Homeserver) -> AsyncIterator[Parts]:
    async with parts(pool, tmp_path, homeserver.url, inline_limit=INLINE_LIMIT) as built:
        yield built


@pytest.fixture
async def demand(ours: Parts) -> AsyncIterator[Demand]:
    async with open_demand(ours, LEASE) as opened:
        yield opened


@pytest.fixture
async def reader(
    archive: Archive, database_url: str, http: aiohttp.ClientSession, demand: Demand
) -> AsyncIterator[Reader]:
    secret = await archive.token()
    async with serving(archive, database_url, demand=demand) as server:
        yield Reader(http, server, secret)


def in_two(
    data: bytes, go_on: asyncio.Event, announced: int | None, *, breaks: bool = False
) -> Answer:
    """FIRST bytes, and the others once `go_on` is set; or the end of the connection then."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        response.content_length = announced
        await response.prepare(request)
        await response.write(data[:FIRST])
        await go_on.wait()
        if breaks:
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write(data[FIRST:])
        return response

    return answer


async def is_ready(pool: Pool, media: Mxc = CAT) -> bool:
    return bool((await row(pool, media))["state"] == "ready")


async def until_ready(pool: Pool) -> None:
    await until(lambda: is_ready(pool), "the media is ready")


@pytest.mark.parametrize("asked", [{}, {"Range": "bytes=0-"}], ids=["plain", "from the start"])
async def test_bytes_come_while_they_are_fetched(
    pool: Pool, homeserver: Homeserver, reader: Reader, asked: dict[str, str]
) -> None:
    """A reader has the beginning while the homeserver still holds back the rest; also a player,
    who asks for a range of all."""
    go_on = asyncio.Event()
    homeserver.give(CAT, in_two(LARGE, go_on, len(LARGE)))
    await add(pool, "cat")
    async with reader.get(CAT, **asked) as answer:
        assert answer.status == 200
        beginning = await answer.content.readexactly(128 * KIB)
        assert not await is_ready(pool)
        go_on.set()
        assert beginning + await answer.read() == LARGE
        headers = answer.headers
    assert headers["X-Cache"] == "MISS"
    assert headers["Content-Type"] == "image/png"
    assert headers["Content-Disposition"] == "inline"
    assert headers["Content-Length"] == str(len(LARGE))
    assert headers["Cache-Control"] == "private, no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in headers["Content-Security-Policy"]
    assert not {"ETag", "Accept-Ranges"} & set(headers)
    assert await is_ready(pool)


async def test_a_hundred_who_ask_cause_one_fetch(
    pool: Pool, homeserver: Homeserver, reader: Reader
) -> None:
    """All get all of it, and who comes later gets it from the archive."""
    go_on, asked = asyncio.Event(), 0

    async def ask() -> bytes:
        nonlocal asked
        async with reader.get(CAT) as answer:
            assert answer.headers["X-Cache"] == "MISS"
            asked += 1
            if asked == 100:
                go_on.set()
            return await answer.read()

    homeserver.give(CAT, in_two(LARGE, go_on, len(LARGE)))
    await add(pool, "cat")
    assert set(await asyncio.gather(*(ask() for _ in range(100)))) == {LARGE}
    assert homeserver.asked(CAT) == 1
    async with reader.get(CAT) as answer:
        assert await answer.read() == LARGE
        assert answer.headers["X-Cache"] == "HIT"
        assert answer.headers["ETag"] == f'"{sha256(LARGE).hexdigest()}"'


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 64 * KIB + 1, 128 * KIB, 2_000_000])
@pytest.mark.parametrize("announced", [True, False])
async def test_whatever_its_length_all_of_it_comes(
    pool: Pool, homeserver: Homeserver, reader: Reader, size: int, announced: bool
) -> None:
    """Small or large, announced or in chunks."""
    data = os.urandom(size)
    homeserver.give(CAT, body(data) if announced else chunked(data, piece=40_000))
    await add(pool, "cat")
    async with reader.get(CAT) as answer:
        assert (answer.status, await answer.read()) == (200, data)
        assert answer.headers["X-Cache"] == "MISS"


@pytest.mark.parametrize("announced", [len(LARGE), None])
async def test_what_breaks_off_does_not_seem_complete(
    pool: Pool, homeserver: Homeserver, reader: Reader, announced: int | None
) -> None:
    """The reader's connection breaks as well, and the queue goes on trying."""
    go_on = asyncio.Event()
    homeserver.give(CAT, in_two(LARGE, go_on, announced, breaks=True))
    await add(pool, "cat")
    async with reader.get(CAT) as answer:
        assert answer.status == 200
        go_on.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    media = await row(pool, CAT)
    assert (media["state"], media["unfinished"], media["attempts"]) == ("pending", 0, 1)
    assert "broke off" in media["reason"]


@pytest.mark.parametrize("announced", [True, False])
async def test_what_its_sender_did_not_encrypt_does_not_seem_complete(
    pool: Pool, archive: Archive, homeserver: Homeserver, reader: Reader, announced: bool
) -> None:
    """The hash is known at the end only: then the connection breaks."""
    wrong = {"hashes": {"sha256": b64encode(bytes(32)).decode().rstrip("=")}}
    homeserver.give(CAT, body(LARGE) if announced else chunked(LARGE, piece=100 * KIB))
    await add(pool, "cat")
    await archive.refer(CAT, encryption=wrong)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with reader.get(CAT) as answer:
            await answer.read()
    assert "hashes.sha256" in (await row(pool, CAT))["reason"]


async def test_a_slow_reader_holds_nobody_up(
    pool: Pool, homeserver: Homeserver, reader: Reader
) -> None:
    """It gets the rest from the archive, where the media is long before it has read it."""
    data = os.urandom(32 * 1024 * KIB)
    homeserver.give(CAT, body(data, "video/mp4"))
    await add(pool, "cat")
    async with reader.get(CAT) as slow:
        await until_ready(pool)
        async with reader.get(CAT) as fast:
            assert fast.headers["X-Cache"] == "HIT"
            assert await fast.read() == data
        assert slow.headers["X-Cache"] == "MISS"
        assert await slow.read() == data


async def test_it_comes_also_when_nobody_waits_any_more(
    pool: Pool, homeserver: Homeserver, reader: Reader
) -> None:
    """The archive wants it anyway."""
    go_on = asyncio.Event()
    homeserver.give(CAT, in_two(LARGE, go_on, len(LARGE)))
    await add(pool, "cat")
    async with reader.get(CAT) as answer:
        await answer.content.readexactly(KIB)
    go_on.set()
    await until_ready(pool)
    assert homeserver.asked(CAT) == 1


async def test_what_another_process_fetches_is_waited_for(
    pool: Pool, ours: Parts, homeserver: Homeserver, reader: Reader
) -> None:
    """There is no second download while somebody has the lease."""
    homeserver.give(CAT, body(LARGE))
    await add(pool, "cat")
    [job] = await claim(pool)

    async def ask() -> tuple[bytes, str]:
        async with reader.get(CAT) as answer:
            return await answer.read(), answer.headers["X-Cache"]

    asking = asyncio.create_task(ask())
    assert await reader.status(f"{MATRIX}/{CAT.server_name}/cat?timeout_ms=300") == 504
    assert homeserver.asked(CAT) == 0
    await archive_one(job, ours)
    assert await asking == (LARGE, "MISS")
    assert homeserver.asked(CAT) == 1


async def test_what_the_worker_beside_it_fetches_is_streamed_too(
    pool: Pool, ours: Parts, homeserver: Homeserver, reader: Reader, demand: Demand
) -> None:
    """Whoever asks for it meanwhile does not wait for its end."""
    go_on = asyncio.Event()
    homeserver.give(CAT, in_two(LARGE, go_on, len(LARGE)))
    await add(pool, "cat")
    worker = Worker(ours, concurrency=1, lease=LEASE, stop_within=LEASE, demand=demand)
    working = asyncio.create_task(worker.run())
    await until(lambda: asked(homeserver), "the worker fetches it")
    async with reader.get(CAT) as answer:
        assert answer.headers["X-Cache"] == "MISS"
        beginning = await answer.content.readexactly(100 * KIB)
        assert not await is_ready(pool)
        go_on.set()
        assert beginning + await answer.read() == LARGE
    assert homeserver.asked(CAT) == 1
    working.cancel()
    await asyncio.wait([working])


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (error(404, "M_NOT_FOUND"), "M_NOT_FOUND"),
        (error(429, "M_LIMIT_EXCEEDED", retry_after_ms=60_000), "M_LIMIT_EXCEEDED"),
        (error(504, "M_NOT_YET_UPLOADED"), "M_NOT_YET_UPLOADED"),
    ],
)
async def test_a_failure_is_told_and_a_reload_does_not_hammer(
    pool: Pool, homeserver: Homeserver, reader: Reader, refusal: Answer, reason: str
) -> None:
    """504 with the reason, each time; the homeserver is asked once."""
    homeserver.give(CAT, refusal)
    await add(pool, "cat", due=timedelta(hours=1))
    for _ in range(3):
        async with reader.get(CAT) as answer:
            told = await answer.json()
        assert (answer.status, told["errcode"]) == (504, "M_NOT_YET_UPLOADED")
        assert reason in told["error"]
    assert homeserver.asked(CAT) == 1
    media = await row(pool, CAT)
    assert (media["state"], media["unfinished"]) == ("pending", 0)
    assert media["due_in"] > 0


async def test_what_is_over_the_limit_ends_as_with_the_queue(
    pool: Pool, archive: Archive, ours: Parts, homeserver: Homeserver, database_url: str,
    http: aiohttp.ClientSession,
) -> None:  # fmt: skip
    """Excluded, with 404 for whoever asked."""
    homeserver.give(CAT, body(LARGE))
    await add(pool, "cat")
    async with (
        open_demand(replace(ours, max_size=KIB), LEASE) as demand,
        serving(archive, database_url, demand=demand) as server,
    ):
        reader = Reader(http, server, await archive.token())
        async with reader.get(CAT) as answer:
            assert answer.status == 404
            assert "capture.max_size" in (await answer.json())["error"]
    assert (await row(pool, CAT))["state"] == "excluded"


@pytest.mark.parametrize("wait", ["0", "50"])
async def test_who_has_no_time_is_told_so(
    pool: Pool, homeserver: Homeserver, reader: Reader, wait: str
) -> None:
    """504 after `timeout_ms`; the fetch goes on, and is there for the next one."""
    go_on = asyncio.Event()
    homeserver.give(CAT, held(go_on, LARGE))
    await add(pool, "cat")
    async with reader.ask(f"{MATRIX}/{CAT.server_name}/cat?timeout_ms={wait}") as answer:
        assert answer.status == 504
        assert (await answer.json())["errcode"] == "M_NOT_YET_UPLOADED"
    go_on.set()
    await until_ready(pool)
    assert homeserver.asked(CAT) == 1


@pytest.mark.parametrize("wait", ["-1", "soon", "1.5", ""])
async def test_a_time_that_is_none_is_refused(pool: Pool, reader: Reader, wait: str) -> None:
    """400, before anything is fetched."""
    await add(pool, "cat")
    assert await reader.status(f"{MATRIX}/{CAT.server_name}/cat?timeout_ms={wait}") == 400
    assert (await row(pool, CAT))["attempts"] == 0


async def test_a_thumbnail_waits_for_its_media(
    pool: Pool, homeserver: Homeserver, reader: Reader
) -> None:
    """And is made then; in no time at all there is none."""
    homeserver.give(CAT, body(PICTURE))
    await add(pool, "cat")
    path = f"{MATRIX.replace('download', 'thumbnail')}/{CAT.server_name}/cat?width=4&height=4"
    assert await reader.status(f"{path}&timeout_ms=0") == 504
    async with reader.ask(path) as answer:
        assert (answer.status, answer.content_type) == (200, "image/png")
        assert answer.headers["X-Cache"] == "MISS"


async def test_a_part_waits_for_the_whole(
    pool: Pool, homeserver: Homeserver, reader: Reader
) -> None:
    """206 from the archive, as ever."""
    homeserver.give(CAT, body(LARGE))
    await add(pool, "cat")
    async with reader.get(CAT, Range="bytes=1000-1999") as answer:
        assert (answer.status, await answer.read()) == (206, LARGE[1000:2000])
        assert answer.headers["X-Cache"] == "MISS"
        assert answer.headers["Content-Range"] == f"bytes 1000-1999/{len(LARGE)}"


async def test_what_is_known_already_waits_for_its_etag(
    pool: Pool, homeserver: Homeserver, reader: Reader
) -> None:
    """304 once it is archived."""
    homeserver.give(CAT, body(LARGE))
    await add(pool, "cat")
    async with reader.get(CAT, If_None_Match=f'"{sha256(LARGE).hexdigest()}"') as answer:
        assert (answer.status, answer.headers["X-Cache"]) == (304, "MISS")


async def test_head_tells_all_headers(pool: Pool, homeserver: Homeserver, reader: Reader) -> None:
    """It waits until they are known."""
    homeserver.give(CAT, body(LARGE))
    await add(pool, "cat")
    path = f"{MATRIX}/{CAT.server_name}/cat"
    async with reader.ask(path, "HEAD") as answer:
        assert (answer.status, answer.headers["X-Cache"]) == (200, "MISS")
        assert answer.headers["Content-Length"] == str(len(LARGE))
        assert answer.headers["ETag"] == f'"{sha256(LARGE).hexdigest()}"'


async def test_a_type_that_lies_is_bytes_to_download(
    pool: Pool, homeserver: Homeserver, reader: Reader
) -> None:
    """The magic number decides, as it does for what is archived; the upload's name is kept."""
    disposition = 'inline; filename="cat.html"'
    homeserver.give(CAT, body(LARGE, "text/html", Content_Disposition=disposition))
    await add(pool, "cat")
    async with reader.get(CAT) as answer:
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="cat.html"'
        assert await answer.read() == LARGE


async def test_switched_off_nothing_is_fetched(
    archive: Archive, database_url: str, http: aiohttp.ClientSession, homeserver: Homeserver
) -> None:
    """`serve.read_through: false`: 504 at once."""
    await add(archive.pool, "cat")
    async with serving(archive, database_url) as server:
        reader = Reader(http, server, await archive.token())
        assert await reader.status(f"{MATRIX}/{CAT.server_name}/cat") == 504
    assert not homeserver.downloads


async def test_what_is_hidden_is_not_fetched_for_those_who_may_not_see_it(
    archive: Archive, database_url: str, http: aiohttp.ClientSession, homeserver: Homeserver,
    demand: Demand,
) -> None:  # fmt: skip
    """Redacted media is 404, archived or not."""
    await add(archive.pool, "cat")
    event_id = await archive.refer(CAT)
    await archive.pool.execute(
        "UPDATE event SET redacted_by = '$r', redacted_at = now() WHERE event_id = $1", event_id
    )
    await archive.pool.execute("UPDATE media SET redacted_at = now()")
    async with serving(archive, database_url, hides_redacted=True, demand=demand) as server:
        reader = Reader(http, server, await archive.token())
        assert await reader.status(f"{MATRIX}/{CAT.server_name}/cat") == 404
    assert not homeserver.downloads


@pytest.mark.parametrize("state", ["failed", "excluded", "deleted"])
async def test_what_has_ended_stays_so(
    pool: Pool, homeserver: Homeserver, reader: Reader, state: str
) -> None:
    """404, and nobody is asked."""
    await add(pool, "cat", state=state)
    assert await reader.status(f"{MATRIX}/{CAT.server_name}/cat") == 404
    assert not homeserver.downloads


async def test_old_media_is_charged_for_when_somebody_asks(
    archive: Archive, ours: Parts, database_url: str, http: aiohttp.ClientSession,
    homeserver: Homeserver,
) -> None:  # fmt: skip
    """It does not wait for its budget, but whatever waits then, waits longer."""
    homeserver.give(CAT, body(LARGE))
    await add(archive.pool, "cat")
    await archive.pool.execute("UPDATE media SET paced_at = now(), due_at = 'infinity'")
    await archive.pool.execute("INSERT INTO budget VALUES ('remote') ON CONFLICT DO NOTHING")
    async with (
        open_demand(replace(ours, remote_rate=1000), LEASE) as demand,
        serving(archive, database_url, demand=demand) as server,
        Reader(http, server, await archive.token()).get(CAT) as answer,
    ):
        assert await answer.read() == LARGE
    media = await row(archive.pool, CAT)
    assert (media["state"], media["paced_at"], media["charged"]) == ("ready", None, None)
    ahead = await archive.pool.fetchval(
        "SELECT extract(epoch FROM spent_until - now())::float8 FROM budget"
    )
    assert len(LARGE) / 1000 - 60 < ahead <= len(LARGE) / 1000


async def test_a_read_is_counted_and_recorded(
    archive: Archive, database_url: str, http: aiohttp.ClientSession, homeserver: Homeserver,
    demand: Demand,
) -> None:  # fmt: skip
    """Who was streamed to has read it."""
    homeserver.give(CAT, body(LARGE))
    await add(archive.pool, "cat")
    async with (
        serving(archive, database_url, demand=demand) as server,
        Reader(http, server, await archive.token()).get(CAT) as answer,
    ):
        assert await answer.read() == LARGE
    assert (await row(archive.pool, CAT))["access_count"] == 1
    assert await archive.pool.fetchval("SELECT reader FROM reading") == "token:reader"
    served = await archive.pool.fetch("SELECT source, reads FROM served")
    assert [tuple(row) for row in served] == [("missed", 1)]


async def test_a_lease_is_kept_and_given_back(
    pool: Pool, ours: Parts, homeserver: Homeserver
) -> None:
    """Renewed while it takes; at the end of the process another may go on at once."""
    homeserver.give(CAT, held(asyncio.Event(), LARGE))
    await add(pool, "cat")
    async with open_demand(ours, timedelta(seconds=0.6)) as demand:
        demand.want(CAT)
        await until(lambda: asked(homeserver), "the homeserver is asked")
        first = (await row(pool, CAT))["due_at"]

        async def renewed() -> bool:
            return bool((await row(pool, CAT))["due_at"] > first)

        await until(renewed, "the lease is renewed")
        assert await claim(pool) == []
    assert [job.mxc for job in await claim(pool)] == [CAT]


async def test_there_is_an_end_to_what_is_fetched_at_once(demand: Demand) -> None:
    """Beyond that, whoever asks for yet another media is to come back."""
    for number in range(MOST_AT_ONCE):
        demand.want(mxc(f"m{number}"))
    with pytest.raises(LimitExceeded):
        demand.want(CAT)
    assert demand.want(mxc("m0")) is demand.want(mxc("m0"))


async def asked(homeserver: Homeserver) -> bool:
    return homeserver.asked(CAT) == 1
