"""The database or the object store is away: nothing is lost, and what can go on goes on."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import aiohttp
import pytest

from demo.people import People
from tests.acceptance.conftest import Site, started
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.matrix import MatrixUser
from tests.support.postgres import PostgresProcess
from tests.support.samples import png
from tests.support.swift import S3Endpoint, Swift

LARGE = 6 * 1024 * 1024


@pytest.fixture
async def running_swift(swift: Swift) -> AsyncIterator[Swift]:
    """The S3 server, which the test may stop; up again after it."""
    yield swift
    await asyncio.to_thread(swift.stop)
    await asyncio.to_thread(swift.start)


def with_s3(s3: S3Endpoint, database_url: str) -> dict[str, Any]:
    """Settings for a database and a bucket of the test's own."""
    bucket = s3.settings(bucket=f"acceptance-{secrets.token_hex(4)}")
    return {"database": {"url": database_url}, "storage": {"objects": "s3", "s3": bucket}}


async def test_pushes_wait_for_the_database(
    own_postgres: PostgresProcess,
    site: Site,
    archive: Archiver,
    people: People,
    http: aiohttp.ClientSession,
) -> None:
    """While PostgreSQL is away the homeserver gets 503 and repeats, so that nothing is lost."""
    archive.configure(site.synapse.url, {"database": {"url": own_postgres.url}})
    reader = await started(archive, http)
    before = await _post(people, b"before")
    await reader.until("ready", *before)
    await asyncio.to_thread(own_postgres.stop)
    while_away = await _post(people, b"while away")
    needs_the_database = b'{"events":[{"type":"m.room.encrypted","content":{}}]}'
    assert await archive.push(http, needs_the_database, "by hand") == 503
    await eventually(
        "the homeserver's own push is refused", lambda: archive.log.count("push not recorded") >= 2
    )
    assert "not archived" not in archive.log
    await asyncio.to_thread(own_postgres.start)
    after = await _post(people, b"after")
    for mxc, data in {**before, **while_away, **after}.items():
        await reader.until("ready", mxc)
        assert await reader.download(mxc) == data


async def test_large_media_waits_for_the_object_store(
    running_swift: Swift,
    s3: S3Endpoint,
    empty_database_url: str,
    site: Site,
    archive: Archiver,
    people: People,
    http: aiohttp.ClientSession,
) -> None:
    """While S3 is away large media is pending and says why, and small media is archived; once S3
    is back the large media is archived, too."""
    archive.configure(site.synapse.url, with_s3(s3, empty_database_url))
    reader = await started(archive, http)
    first = await _post_large(people)
    await reader.until("ready", *first)
    await asyncio.to_thread(running_swift.stop)
    await _small_goes_on_large_waits(people, reader, running_swift)
    assert await reader.download(next(iter(first))) == next(iter(first.values()))


async def test_the_archiver_starts_while_the_object_store_is_away(
    running_swift: Swift,
    s3: S3Endpoint,
    empty_database_url: str,
    site: Site,
    archive: Archiver,
    people: People,
    http: aiohttp.ClientSession,
) -> None:
    """Without S3 the archive comes up, keeps small media, and makes its bucket later."""
    await asyncio.to_thread(running_swift.stop)
    archive.configure(site.synapse.url, with_s3(s3, empty_database_url))
    reader = await started(archive, http)
    await _small_goes_on_large_waits(people, reader, running_swift)


async def test_the_same_file_thrice_is_one_object(
    s3: S3Endpoint,
    empty_database_url: str,
    site: Site,
    archive: Archiver,
    people: People,
    http: aiohttp.ClientSession,
) -> None:
    """A file that three people post in three rooms lies in the bucket once, and is served under
    each of its names."""
    settings = with_s3(s3, empty_database_url)
    archive.configure(site.synapse.url, settings)
    reader = await started(archive, http)
    data = secrets.token_bytes(LARGE)

    async def post(user: MatrixUser) -> str:
        room = await user.create_room()
        mxc = await user.upload(data, "application/octet-stream", "same.bin")
        await user.send_image(room, mxc)
        return mxc

    mxcs = await asyncio.gather(*map(post, (people.admin, people.alice, people.bob)))
    await reader.until("ready", *mxcs)
    assert len(set(mxcs)) == 3
    for mxc in mxcs:
        assert await reader.download(mxc) == data
    bucket = settings["storage"]["s3"]["bucket"]
    assert await asyncio.to_thread(_object_sizes, s3, bucket) == [LARGE]
    assert (await reader.stats())["blobs"] == {"object": {"blobs": 1, "bytes": LARGE}}


async def _small_goes_on_large_waits(people: People, reader: Reader, swift: Swift) -> None:
    large = await _post_large(people)
    small = await _post(people, b"small")
    await reader.until("ready", *small)
    mxc, data = next(iter(large.items()))

    async def says_why() -> bool:
        return "S3 bucket" in ((await reader.state(mxc)).get("reason") or "")

    await eventually("the large media says why it waits", says_why)
    assert (await reader.state(mxc))["state"] == "pending"
    async with reader.get(mxc) as answer:
        assert answer.status == 504
    await asyncio.to_thread(swift.start)
    await reader.until("ready", mxc)
    assert await reader.download(mxc) == data
    assert (await reader.state(mxc))["blob"]["place"] == "object"


async def _post(people: People, salt: bytes) -> dict[str, bytes]:
    """Ten small images, by mxc."""
    posted = {}
    for number in range(10):
        data = png(20, 20, (number, 0, 90)) + salt
        mxc = await people.alice.upload(data)
        await people.alice.send_image(people.room, mxc)
        posted[mxc] = data
    return posted


async def _post_large(people: People) -> dict[str, bytes]:
    data = secrets.token_bytes(LARGE)
    mxc = await people.bob.upload(data, "application/octet-stream", "large.bin")
    await people.bob.send_image(people.direct, mxc)
    return {mxc: data}


def _object_sizes(s3: S3Endpoint, bucket: str) -> list[int]:
    with closing(s3.client()) as client:
        listed = client.list_objects_v2(Bucket=bucket)
    return [entry["Size"] for entry in listed.get("Contents", [])]
