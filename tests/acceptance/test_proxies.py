"""The examples of deploy/ at work: nginx and Caddy, before a real Synapse and a real archive.

People have a client library and their own access tokens, and know of nothing but the proxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import pyvips
from mautrix.api import HTTPAPI
from mautrix.client import ClientAPI
from mautrix.types import ContentURI, RoomID, UserID

from demo.people import People
from tests.acceptance.conftest import Site, new_folder, started
from tests.support.archiver import Archiver, Reader
from tests.support.matrix import CLIENT, MatrixError, MatrixUser
from tests.support.process import free_port
from tests.support.proxies import Caddy, Nginx
from tests.support.samples import png
from tools.setup_services import service_program

KINDS: dict[str, type[Nginx | Caddy]] = {"nginx": Nginx, "caddy": Caddy}
MEDIA = "/_matrix/client/v1/media"
ORIGIN = "Access-Control-Allow-Origin"
LARGE = 12 * 1024 * 1024  # more than any buffer on the way
ODD_IDS = ("a%2Fb", "a%252Fb", "a%20b", "a%2F..", "a//b", "%F0%9F%8C%B9", "a%3Fb", "a+b~")
TEAPOT = 418

Proxy = Nginx | Caddy


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the two."""
    return str(request.param)


@pytest.fixture
async def proxy(
    kind: str, site: Site, archive: Archiver, services_folder: Path
) -> AsyncIterator[Proxy]:
    """Each proxy, up before the site's homeserver and archive. The archive is not started."""
    async with standing(kind, services_folder, site.synapse.url, archive.url) as server:
        yield server


@asynccontextmanager
async def standing(
    kind: str, services_folder: Path, synapse_url: str, archive_url: str
) -> AsyncIterator[Proxy]:
    """A proxy between two addresses."""
    program = await asyncio.to_thread(service_program, kind)
    folder = new_folder(services_folder) / kind
    server = KINDS[kind](program, folder, synapse_url, archive_url)
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


async def archivist(
    archive: Archiver, site: Site, http: aiohttp.ClientSession, rule: str = "admins"
) -> Reader:
    """Starts the archive as docs/proxies.md has it; returns someone who reads it directly."""
    serve = {"matrix_tokens": rule, "trusted_proxies": ["127.0.0.1"]}
    archive.configure(site.synapse.url, {"serve": serve})
    return await started(archive, http)


def client(user: MatrixUser, proxy: Proxy, http: aiohttp.ClientSession) -> ClientAPI:
    """The user at a client whose homeserver is the proxy."""
    api = HTTPAPI(proxy.url, user.access_token, client_session=http)
    return ClientAPI(UserID(user.user_id), api=api)


def through(proxy: Proxy, user: MatrixUser, http: aiohttp.ClientSession) -> Reader:
    """The user, asking the proxy for what `Reader` can be asked."""
    return Reader(http, proxy.url, user.access_token)


async def posted(user: MatrixUser, room: str, reader: Reader, data: bytes) -> str:
    """A picture in a room, which the archive has."""
    mxc = await user.upload(data)
    await user.send_image(room, mxc)
    await reader.until("ready", mxc)
    return mxc


async def refusal(response: aiohttp.ClientResponse) -> tuple[int, str]:
    """Status and errcode of what must be an error as Matrix has it, with one CORS header."""
    assert response.headers.getall(ORIGIN) == ["*"]
    assert response.content_type == "application/json"
    return response.status, (await response.json())["errcode"]


async def test_a_client_notices_nothing_when_synapse_forgets(
    proxy: Proxy, site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Uploaded, posted and read through the proxy; purged in Synapse; and it is still there, each
    byte of it, and as a thumbnail."""
    reader = await archivist(archive, site, http, "local_users")
    alice, picture = client(people.alice, proxy, http), png(640, 480, (9, 90, 190))
    mxc = await alice.upload_media(picture, mime_type="image/png", filename="sea.png")
    await alice.send_image(RoomID(people.room), mxc, file_name="sea.png")
    await reader.until("ready", mxc)
    asked = through(proxy, people.alice, http)
    async with asked.get(mxc) as response:
        assert "X-Cache" not in response.headers, "it was not Synapse that answered"
        assert await response.read() == picture
    await people.admin.delete_media(mxc)
    for user in (people.alice, people.bob, people.admin):
        mautrix = client(user, proxy, http)
        assert await mautrix.download_media(mxc) == picture
        thumbnail = await mautrix.download_thumbnail(mxc, width=320, height=240)
        image = pyvips.Image.new_from_buffer(thumbnail, "")
        assert (image.width, image.height) == (320, 240)
    async with asked.get(mxc) as response:
        assert response.headers["X-Cache"] == "HIT"
        assert response.headers.getall(ORIGIN) == ["*"]


async def test_where_administrators_may_nobody_else_sees_what_is_gone(
    proxy: Proxy, site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Purged or in quarantine: Synapse says 404 of both, the archive gives both to an
    administrator, and to others a refusal that logs nobody out."""
    reader = await archivist(archive, site, http)
    pictures = [png(24, 24, (n, 70, 170)) for n in (7, 77)]
    mxcs = [await posted(people.alice, people.room, reader, picture) for picture in pictures]
    await people.admin.delete_media(mxcs[0])
    await people.admin.quarantine_media(mxcs[1])
    for mxc, picture in zip(mxcs, pictures, strict=True):
        with pytest.raises(MatrixError, match="404 M_NOT_FOUND"):
            await people.admin.download(mxc)
        assert await client(people.admin, proxy, http).download_media(ContentURI(mxc)) == picture
        async with through(proxy, people.alice, http).get(mxc) as response:
            assert await refusal(response) == (403, "M_FORBIDDEN")


async def test_no_archive_logs_a_user_out(
    proxy: Proxy, site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Where the archive knows no Matrix tokens, and where it is down, what Synapse lacks is as it
    was without an archive: 404. A token that is wrong at Synapse is wrong."""
    reader = await archivist(archive, site, http, "nobody")
    mxc = await posted(people.alice, people.room, reader, png(24, 24, (7, 7, 7)))
    await people.admin.delete_media(mxc)
    alice = through(proxy, people.alice, http)
    async with alice.get(mxc) as response:
        assert await refusal(response) == (404, "M_NOT_FOUND")
    async with Reader(http, proxy.url, "wrong").get(mxc) as response:
        assert await refusal(response) == (401, "M_UNKNOWN_TOKEN")
    await asyncio.to_thread(archive.stop)
    async with alice.get(mxc) as response:
        assert await refusal(response) == (404, "M_NOT_FOUND")


async def test_what_neither_has_is_refused_as_matrix_does(
    proxy: Proxy, site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Unknown media is 404, media that is still to be uploaded 504, and a page may see both."""
    await archivist(archive, site, http, "local_users")
    alice = through(proxy, people.alice, http)
    created = await people.alice.call("POST", "/_matrix/media/v1/create")
    cases = {
        "mxc://archive.test/unknown": (404, "M_NOT_FOUND"),
        created["content_uri"]: (504, "M_NOT_YET_UPLOADED"),
    }
    for mxc, expected in cases.items():
        async with alice.get(f"{mxc}?timeout_ms=0") as response:
            assert await refusal(response) == expected
    path = f"{MEDIA}/thumbnail/archive.test/unknown?width=9&height=9"
    async with alice.ask(path) as response:
        assert await refusal(response) == (404, "M_NOT_FOUND")


async def test_a_part_the_head_and_what_is_known_already(
    proxy: Proxy, site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Of purged media, larger than what a proxy holds in memory."""
    reader = await archivist(archive, site, http, "local_users")
    data = png(64, 64, (1, 2, 3)) + bytes(LARGE)
    mxc = await posted(people.alice, people.room, reader, data)
    await people.admin.delete_media(mxc)
    alice = through(proxy, people.alice, http)
    async with alice.get(mxc, Range="bytes=1000000-1000999") as response:
        assert (response.status, await response.read()) == (206, data[1_000_000:1_001_000])
        assert response.headers["Content-Range"] == f"bytes 1000000-1000999/{len(data)}"
        etag = response.headers["ETag"]
    async with alice.get(mxc, "HEAD") as response:
        assert (response.status, await response.read()) == (200, b"")
        assert response.headers["Content-Length"] == str(len(data))
    async with alice.get(mxc, If_None_Match=etag) as response:
        assert response.status == 304
    async with alice.get(mxc, Range=f"bytes={len(data)}-") as response:
        assert (await refusal(response))[0] == 416
    async with alice.get(mxc) as response:
        assert await response.read() == data


async def test_while_synapse_is_down_the_archive_answers(
    proxy: Proxy, site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Whom it let in lately, and tokens of its own; of a new Matrix token it says that it cannot
    tell; and a page may still ask whether it may ask. Nothing else works."""
    reader = await archivist(archive, site, http, "local_users")
    picture = png(24, 24, (70, 7, 7))
    mxc = await posted(people.alice, people.room, reader, picture)
    async with Reader(http, archive.url, people.bob.access_token).get(mxc) as response:
        assert response.status == 200
    await asyncio.to_thread(site.synapse.stop)
    try:
        for token in (people.bob.access_token, archive.token):
            async with Reader(http, proxy.url, token).get(mxc) as response:
                assert await response.read() == picture
        async with through(proxy, people.alice, http).get(mxc) as response:
            status, _ = await refusal(response)
            assert (status, response.headers["Retry-After"]) == (503, "5")
        async with through(proxy, people.alice, http).get(mxc, "OPTIONS") as response:
            assert (response.status, response.headers.getall(ORIGIN)) == (204, ["*"])
        async with through(proxy, people.alice, http).ask(f"{CLIENT}/sync") as response:
            assert response.status == 502
    finally:
        await asyncio.to_thread(site.synapse.start)


async def test_an_outage_of_both_is_one(
    proxy: Proxy, site: Site, people: People, http: aiohttp.ClientSession
) -> None:
    """502, which no client takes for an answer about its token or the media."""
    await asyncio.to_thread(site.synapse.stop)
    try:
        async with through(proxy, people.alice, http).get("mxc://a.test/b") as response:
            assert response.status == 502
    finally:
        await asyncio.to_thread(site.synapse.start)


async def test_all_else_is_synapses(
    proxy: Proxy, site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Other routes, their errors included, and the media routes that carry no token."""
    reader = await archivist(archive, site, http, "local_users")
    mxc = await posted(people.alice, people.room, reader, png(9, 9, (9, 9, 9)))
    await people.admin.delete_media(mxc)
    alice = through(proxy, people.alice, http)
    assert (await alice.json(f"{CLIENT}/account/whoami"))["user_id"] == people.alice.user_id
    for path in (
        f"{CLIENT}/rooms/!none/state",
        f"{CLIENT}/nothing",
        f"{MEDIA}/nothing",
        f"/_matrix/media/v3/download/{mxc.removeprefix('mxc://')}",
        "/_synapse/admin/v1/server_version",
        "/api/v1/stats",
    ):
        direct = Reader(http, site.synapse.url, people.alice.access_token)
        async with alice.ask(path) as response, direct.ask(path) as expected:
            assert response.status == expected.status, path
            assert await response.read() == await expected.read()
            assert "X-Cache" not in response.headers


async def test_the_archive_is_asked_just_as_synapse_was(
    proxy: Proxy, archive: Archiver, people: People
) -> None:
    """Nothing on the way decodes an id, tidies it or encodes it twice; who asks is told by the
    proxy last, whatever the client pretends."""
    paths = [f"{MEDIA}/download/archive.test/{media_id}?timeout_ms=9&a=b" for media_id in ODD_IDS]
    token = f"Bearer {people.alice.access_token}"
    sent = {"Authorization": token, "Range": "bytes=0-", "X-Forwarded-For": "198.51.100.7"}
    async with overheard(archive.serve_port) as heard:
        statuses = [await raw(proxy.url, path, sent) for path in paths]
    assert statuses == [TEAPOT] * len(paths)
    assert [head.partition("\r\n")[0] for head in heard] == [f"GET {p} HTTP/1.1" for p in paths]
    headers = [line.split(": ", 1) for line in heard[0].strip().split("\r\n")[1:]]
    named = {name.lower(): value for name, value in headers}
    assert len(named) == len(headers)
    assert (named["authorization"], named["range"]) == (token, "bytes=0-")
    assert named["x-forwarded-for"].split(", ")[-1] == "127.0.0.1"


async def test_which_answers_send_whom_where(kind: str, services_folder: Path) -> None:
    """The archive is asked where Synapse lacks media or is down, and for nothing else; and its
    answers are the client's, but for the one that would log a user out."""
    path, ports = f"{MEDIA}/thumbnail/a.test/b?width=9&height=9", (free_port(), free_port())
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    async with standing(kind, services_folder, *urls) as proxy:
        for synapse in (200, 307, 400, 401, 403, 413, 429, 500, 504):
            async with overheard(ports[0], synapse), overheard(ports[1]) as archive:
                assert await raw(proxy.url, path, {}) == synapse
            assert not archive
        for synapse in (404, 502, 503):
            for answer in (200, 206, 304, 307, 400, 403, 404, 416, 429, 500, 503, 504):
                async with overheard(ports[0], synapse), overheard(ports[1], answer):
                    assert await raw(proxy.url, path, {}) == answer
            async with overheard(ports[0], synapse), overheard(ports[1], 401):
                assert await raw(proxy.url, path, {}) == (404 if synapse == 404 else 502)
            async with overheard(ports[0], synapse):
                assert await raw(proxy.url, path, {}) == (404 if synapse == 404 else 502)
        for answer in (200, 403, 503):
            async with overheard(ports[1], answer):
                assert await raw(proxy.url, path, {}) == answer


@asynccontextmanager
async def overheard(port: int, status: int = TEAPOT) -> AsyncIterator[list[str]]:
    """Stands where a server would be: what it is asked, head by head, always for this answer."""
    heads: list[str] = []
    lines = (
        f"HTTP/1.1 {status} So",
        "Content-Type: application/json",
        "Connection: close",
        "",
        "",
    )
    head = "\r\n".join(lines).encode()

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(head if status == 304 else head + b"{}")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(reply, "127.0.0.1", port):
        yield heads


async def raw(url: str, path: str, headers: dict[str, str]) -> int:
    """The status of a GET whose path no client library has tidied."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = (f"GET {path} HTTP/1.1", f"Host: {where.netloc}", "Connection: close", *lines, "", "")
    writer.write("\r\n".join(head).encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1])
