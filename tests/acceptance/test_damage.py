"""A byte changes in a store: it is found, mended while Synapse has it, and told ever after."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from typing import Any

import aiohttp
import asyncpg
import pytest

from demo.people import People
from tests.acceptance.conftest import Site, started
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.swift import S3Endpoint

SIZE = 300_000
LIMIT = "100 KiB"
Flip = Callable[[bytes], Awaitable[None]]

FLIP = """
UPDATE blob_data SET data = set_byte(data, 1000, get_byte(data, 1000) # 1) WHERE sha256 = $1
"""


def in_postgres(dsn: str) -> Flip:
    """Changes inline bytes."""

    async def flip(data: bytes) -> None:
        conn = await asyncpg.connect(dsn)
        try:
            done = await conn.execute(FLIP, hashlib.sha256(data).digest())
        finally:
            await conn.close()
        assert done == "UPDATE 1"

    return flip


def in_folder(archive: Archiver) -> Flip:
    """Changes a file of the directory."""

    async def flip(data: bytes) -> None:
        key = _key(data)
        file = archive.folder / "data" / "objects" / key
        await asyncio.to_thread(
            file.write_bytes, _flipped(await asyncio.to_thread(file.read_bytes))
        )

    return flip


def in_bucket(s3: S3Endpoint, bucket: str) -> Flip:
    """Changes an object of the bucket."""

    async def flip(data: bytes) -> None:
        await asyncio.to_thread(_put, s3, bucket, _key(data), _flipped(data))

    return flip


@pytest.mark.parametrize("store", ["filesystem", "s3"])
async def test_a_flipped_byte_is_mended_while_synapse_has_it(
    store: str,
    s3: S3Endpoint,
    empty_database_url: str,
    site: Site,
    archive: Archiver,
    people: People,
    http: aiohttp.ClientSession,
) -> None:
    """In PostgreSQL and in the object store: verify finds it and the archive gets the bytes again.
    When Synapse has lost them, too, verify, /readyz and the metrics go on telling of it."""
    settings, flip_object = _settings(store, s3, archive, empty_database_url)
    archive.configure(site.synapse.url, settings)
    reader = await started(archive, http)
    small, large = secrets.token_bytes(SIZE // 10), secrets.token_bytes(SIZE)
    posted = {await people.admin.upload(data): data for data in (small, large)}
    for mxc in posted:
        await people.admin.send_image(people.room, mxc)
    await reader.until("ready", *posted)
    places = [(await reader.state(mxc))["blob"]["place"] for mxc in posted]
    assert places == ["inline", "object"]
    flips = {small: in_postgres(archive.dsn), large: flip_object}

    await _damage(archive, flips)
    await eventually("everything is mended", lambda: _damaged(reader, blobs=0))
    assert (await _verify(archive))["findings"] == []
    for mxc, data in posted.items():
        assert await reader.download(mxc) == data

    for mxc in posted:
        await people.admin.delete_media(mxc)
    await _damage(archive, flips)
    await eventually("it is told what nobody has", lambda: _damaged(reader, blobs=2, unrepaired=2))
    standing = await asyncio.to_thread(archive.attempt, "verify", "-c", str(archive.config))
    assert "2 are damaged" in standing.stdout
    assert all(mxc in standing.stdout for mxc in posted)
    assert "archiver_damaged_blobs 2.0" in (await reader.body("/metrics")).decode()


def _settings(
    store: str, s3: S3Endpoint, archive: Archiver, database_url: str
) -> tuple[dict[str, Any], Flip]:
    storage: dict[str, Any] = {"inline_limit": LIMIT, "objects": store}
    flip = in_folder(archive)
    if store == "s3":
        bucket = f"damage-{secrets.token_hex(4)}"
        storage["s3"] = s3.settings(bucket=bucket)
        flip = in_bucket(s3, bucket)
    return {"database": {"url": database_url}, "storage": storage}, flip


async def _damage(archive: Archiver, flips: Mapping[bytes, Flip]) -> None:
    """One byte of each, and verify says which."""
    for data, flip in flips.items():
        await flip(data)
    found = {one["sha256"]: one["found"] for one in (await _verify(archive))["findings"]}
    assert found == {hashlib.sha256(data).hexdigest(): "different" for data in flips}


async def _verify(archive: Archiver) -> dict[str, Any]:
    arguments = ("verify", "--all", "--json", "-c", str(archive.config))
    done = await asyncio.to_thread(archive.attempt, *arguments)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if found["damaged"] else 0)
    return found


async def _damaged(reader: Reader, **wanted: int) -> bool:
    """Whether the archive, which is ready nevertheless, tells of so many."""
    told = (await reader.json("/readyz"))["damaged"]
    return all(told[name] == value for name, value in wanted.items())


def _key(data: bytes) -> str:
    name = hashlib.sha256(data).hexdigest()
    return f"{name[:2]}/{name[2:4]}/{name}"


def _flipped(data: bytes) -> bytes:
    return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]


def _put(s3: S3Endpoint, bucket: str, key: str, data: bytes) -> None:
    with closing(s3.client()) as client:
        client.put_object(Bucket=bucket, Key=key, Body=data)
