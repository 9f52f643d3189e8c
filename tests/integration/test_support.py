"""The servers behind the tests really are what they claim to be."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from botocore.exceptions import ClientError, EndpointConnectionError

from tests.support.matrix import MatrixError
from tests.support.postgres import PostgresProcess
from tests.support.swift import S3Endpoint, Swift
from tests.support.synapse import Synapse

if TYPE_CHECKING:
    from archiver.db.pool import Pool


async def test_a_test_has_a_migrated_database_of_its_own(
    pool: Pool, database_url: str, empty_database_url: str
) -> None:
    """Two fixtures of one test name two databases, one with the schema and one without."""
    assert await pool.fetchval("SELECT count(*) FROM media") == 0
    conn = await asyncpg.connect(empty_database_url)
    try:
        assert await conn.fetchval("SELECT to_regclass('media')") is None
        assert await conn.fetchval("SELECT current_database()") not in database_url
    finally:
        await conn.close()


async def test_postgresql_checks_the_password(own_postgres: PostgresProcess) -> None:
    """A wrong password is refused, so that a test of credentials proves something."""
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(own_postgres.url, password="wrong")


async def test_postgresql_comes_back_after_a_crash(own_postgres: PostgresProcess) -> None:
    """What was committed before a SIGKILL is there after the next start, under the same URL."""
    conn = await asyncpg.connect(own_postgres.url)
    await conn.execute("CREATE TABLE kept AS SELECT 1 AS number")
    conn.terminate()
    await asyncio.to_thread(own_postgres.kill)
    with pytest.raises(ConnectionRefusedError):
        await asyncpg.connect(own_postgres.url)
    await asyncio.to_thread(own_postgres.start)
    conn = await asyncpg.connect(own_postgres.url)
    assert await conn.fetchval("SELECT number FROM kept") == 1
    await conn.close()


def test_s3_checks_the_signature(s3: S3Endpoint) -> None:
    """A wrong secret is refused, so that a test of signed URLs proves something."""
    with pytest.raises(ClientError) as refusal:
        replace(s3, secret_access_key="wrong").client().list_buckets()
    assert refusal.value.response["Error"]["Code"] == "SignatureDoesNotMatch"


def test_s3_keeps_its_objects_over_an_outage(swift: Swift, s3: S3Endpoint) -> None:
    """While it is stopped nothing answers; afterwards the object is there, under the same URL."""
    client = s3.client()
    bucket = f"outage-{secrets.token_hex(4)}"
    client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key="kept", Body=b"bytes")
    swift.stop()
    try:
        with pytest.raises(EndpointConnectionError):
            client.get_object(Bucket=bucket, Key="kept")
    finally:
        swift.start()
    ranged: Any = client.get_object(Bucket=bucket, Key="kept", Range="bytes=1-3")
    assert ranged["Body"].read() == b"yte"


async def test_synapse_is_a_homeserver(
    start_synapse: Callable[..., Awaitable[Synapse]], http: aiohttp.ClientSession
) -> None:
    """Users meet in a room, media is served and deleted, and a restart keeps it all."""
    synapse = await start_synapse()
    alice = await synapse.register(http, "alice", admin=True)
    bob = await synapse.register(http, "bob")
    room = await alice.create_room(invite=[bob.user_id])
    await bob.join(room)
    kept, deleted = await bob.upload(b"kept"), await bob.upload(b"deleted")
    event_id = await bob.send_image(room, kept)
    await alice.delete_media(deleted)
    with pytest.raises(MatrixError, match="404 M_NOT_FOUND"):
        await bob.download(deleted)
    await asyncio.to_thread(synapse.restart)
    event = await alice.call("GET", f"/_matrix/client/v3/rooms/{room}/event/{event_id}")
    assert await alice.download(event["content"]["url"]) == b"kept"


async def test_synapse_pushes_to_an_application_service(
    start_synapse: Callable[..., Awaitable[Synapse]],
    tmp_path: Path,
    http: aiohttp.ClientSession,
) -> None:
    """A registration that wants every room gets the events of one it is not in."""
    pushed: asyncio.Queue[tuple[str, list[dict[str, Any]]]] = asyncio.Queue()

    async def receive(req: web.Request) -> web.Response:
        await pushed.put((req.headers["Authorization"], (await req.json())["events"]))
        return web.json_response({})

    app = web.Application()
    app.router.add_put("/_matrix/app/v1/transactions/{txn}", receive)
    async with TestServer(app) as appservice:
        registration = tmp_path / "registration.yaml"
        registration.write_text(json.dumps(_registration(str(appservice.make_url("")))))
        synapse = await start_synapse(registrations=[registration])
        alice = await synapse.register(http, "alice")
        event_id = await alice.send_image(await alice.create_room(), "mxc://archive.test/x")
        seen: set[str] = set()
        while event_id not in seen:
            token, events = await asyncio.wait_for(pushed.get(), 30)
            assert token == "Bearer hs-secret"
            seen.update(event["event_id"] for event in events)


def _registration(url: str) -> dict[str, Any]:
    return {
        "id": "archiver",
        "url": url,
        "as_token": "as-secret",
        "hs_token": "hs-secret",
        "sender_localpart": "_archiver",
        "rate_limited": False,
        "namespaces": {"rooms": [{"exclusive": False, "regex": "!.*"}]},
    }
