"""Signed URLs over HTTP: what they open, for how long, and who may make them."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import signing_keys
from archiver.catalogue.signing_keys import OWN, Key
from archiver.db.listen import Listener
from archiver.errors import OperationError
from archiver.model import Mxc, Scope
from archiver.serve import remembered
from archiver.serve.access import Access
from archiver.serve.server import Serving
from archiver.serve.signed_urls import may_be_signed
from archiver.serve.signing import Parameter, signed_url
from archiver.variants.maker import open_maker
from tests.support.serving import MATRIX, SERVER, Archive, Reader, member, serving, state

if TYPE_CHECKING:
    import aiohttp

    from archiver.db.pool import Pool

DATA = b"some text"
INVALID = "the signature of this URL is not valid"
HOUR = 3600


@pytest.fixture
async def mxc(archive: Archive) -> Mxc:
    """A media to sign for."""
    return await archive.put(DATA, "text/plain")


@pytest.fixture
async def key(archive: Archive) -> Key:
    """A panel's key for scope read."""
    return await made(archive.pool, "panel")


async def made(
    pool: Pool, name: str, scope: Scope = Scope.READ, expires_at: datetime | None = None
) -> Key:
    """A new key."""
    async with pool.acquire() as conn:
        return await signing_keys.create(conn, name, scope, expires_at)


def content(mxc: Mxc) -> str:
    """The path of its bytes."""
    return f"{MATRIX}/{mxc.server_name}/{mxc.media_id}"


def url(
    key: Key,
    path: str,
    seconds: float = HOUR,
    scope: Scope = Scope.READ,
    parameters: list[Parameter] | None = None,
) -> str:
    """What a panel's back end makes."""
    return signed_url(
        key.secret, key.id, path, int(time.time() + seconds), scope, parameters or []
    )


async def said(
    reader: Reader, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, Any]]:
    """Status, and JSON if it is any, for somebody without a token."""
    address = URL(str(reader.server.make_url("/"))[:-1] + path, encoded=True)
    async with reader.session.request(method, address, headers=headers) as answer:
        is_json = answer.content_type == "application/json" and method != "HEAD"
        return answer.status, await answer.json() if is_json else {}


async def test_a_signed_url_is_enough(reader: Reader, key: Key, mxc: Mxc) -> None:
    """Without a token: whole, in part, and its headers alone; under any file name it was for."""
    for path in (
        content(mxc),
        f"{content(mxc)}/a name?.txt",
        f"/api/v1/media/{mxc.server_name}/{mxc.media_id}/content",
        f"/api/media/download/{mxc.server_name}/{mxc.media_id}",
    ):
        signed = url(key, path)
        assert (await said(reader, signed))[0] == 200
        assert (await said(reader, signed, "HEAD"))[0] == 200
        assert (await said(reader, signed, Range="bytes=1-2"))[0] == 206


async def test_a_proxy_may_write_the_path_in_another_way(
    reader: Reader, key: Key, mxc: Mxc
) -> None:
    """What is signed is the decoded path."""
    signed = url(key, f"{content(mxc)}/name")
    assert (await said(reader, signed.replace("/name", "/%6eame")))[0] == 200
    assert (await said(reader, signed.replace("/_matrix", "/%5fmatrix")))[0] == 200


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scope=read", "scope=admin"),
        ("width=96", "width=97"),
        ("width=96", "height=96"),
        ("width=96&", ""),
        ("width=96", "width=96&width=96"),
        ("width=96", "width=96&admin_unsafely_bypass_quarantine=true"),
        ("expires=1", "expires=2"),
        ("signature=", "signature=A"),
        ("key=", "key=9"),
        ("key=", "kex="),
        ("&key=", "&key=1&key="),
        ("/content", "/content/"),
        (f"/{SERVER}/", f"/{SERVER}/a"),
    ],
)
async def test_what_was_changed_is_refused(
    reader: Reader, key: Key, mxc: Mxc, old: str, new: str
) -> None:
    """With one sentence, whatever it was."""
    path = f"/api/v1/media/{mxc.server_name}/{mxc.media_id}/content"
    signed = url(key, path, parameters=[("width", "96"), ("method", "crop")])
    assert (await said(reader, signed))[0] == 200
    assert old in signed
    found, refusal = await said(reader, signed.replace(old, new, 1))
    assert (found, refusal["errcode"]) == (403, "M_FORBIDDEN")
    assert refusal["error"].startswith(INVALID)


async def test_it_ends(reader: Reader, key: Key, mxc: Mxc) -> None:
    """An expired URL says so, but only if it was good once."""
    found, refusal = await said(reader, url(key, content(mxc), -1))
    assert (found, refusal["error"]) == (403, "the signed URL has expired")
    found, refusal = await said(reader, url(key._replace(secret="x"), content(mxc), -1))
    assert refusal["error"].startswith(INVALID)


async def test_it_works_for_a_week_at_most(reader: Reader, key: Key, mxc: Mxc) -> None:
    """Whoever signed it."""
    assert (await said(reader, url(key, content(mxc), 7 * 24 * HOUR)))[0] == 200
    found, refusal = await said(reader, url(key, content(mxc), 7 * 24 * HOUR + 60))
    assert found == 403
    assert "serve.signed_for_at_most" in refusal["error"]


async def test_a_key_signs_for_no_more_than_its_scope(
    archive: Archive, reader: Reader, key: Key, mxc: Mxc
) -> None:
    """One for admin may sign for either."""
    assert (await said(reader, url(key, content(mxc), scope=Scope.ADMIN)))[0] == 403
    strong = await made(archive.pool, "strong", Scope.ADMIN)
    for scope in Scope:
        assert (await said(reader, url(strong, content(mxc), scope=scope)))[0] == 200


async def test_a_revoked_key_ends_at_once_at_every_server(
    archive: Archive,
    reader: Reader,
    key: Key,
    mxc: Mxc,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though both have it in memory, and would for long."""
    monkeypatch.setattr(remembered, "REMEMBER_SECONDS", 3600)
    signed = url(key, content(mxc))
    async with serving(archive, database_url) as other:
        for server in (reader.server, other):
            async with reader.session.get(server.make_url(URL(signed, encoded=True))) as answer:
                assert answer.status == 200
        async with archive.pool.acquire() as conn:
            assert await signing_keys.revoke(conn, "panel")
            assert not await signing_keys.revoke(conn, "panel")
        for server in (reader.server, other):
            async with asyncio.timeout(20):
                while True:
                    there = server.make_url(URL(signed, encoded=True))
                    async with reader.session.get(there) as answer:
                        if answer.status == 403:
                            break


async def test_an_expired_key_is_none(archive: Archive, reader: Reader, mxc: Mxc) -> None:
    """Its URLs end with it."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    found, refusal = await said(reader, url(await made(archive.pool, "old", expires_at=past),
                                            content(mxc)))  # fmt: skip
    assert found == 403
    assert refusal["error"].startswith(INVALID)


async def test_names_of_keys(archive: Archive, key: Key) -> None:
    """One live key has a name, and none that of the archive's own."""
    for name in ("panel", OWN):
        with pytest.raises(OperationError, match=name):
            await made(archive.pool, name)
    async with archive.pool.acquire() as conn:
        await signing_keys.revoke(conn, "panel")
        assert (await signing_keys.create(conn, "panel", Scope.READ, None)).id != key.id
        assert key.secret not in str(await signing_keys.list_keys(conn))


BYTES = {
    "/_matrix/client/v1/media/download/{server}/{id}{name}",
    "/api/media/download/{server}/{id}{name}",
    "/api/v1/media/{server}/{id}/content{slash}",
    "/api/v1/rooms/{room_id}/avatar",
    "/api/v1/users/{user_id}/avatar",
    "/_matrix/client/v1/media/thumbnail/{server}/{id}{slash}",
    "/api/media/thumbnail/{server}/{id}{slash}",
    "/api/v1/media/{server}/{id}/variant{slash}",
}


async def test_only_bytes_may_be_signed_for(archive: Archive, database_url: str) -> None:
    """Of all the routes there are, these."""
    listener, policy = Listener(database_url), CapturePolicy("archive.test")
    async with open_maker(archive.pool, archive.store, archive.folder / "spool", 1) as maker:
        door = Serving(archive.pool, archive.store, listener, policy, Access(), maker)
    app = door.application()
    routes = {
        route.resource.canonical for route in app.router.routes() if route.resource is not None
    }
    assert {route for route in routes if may_be_signed(route)} == BYTES


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/stats",
        "/api/v1/reads",
        "/api/v1/rooms",
        "/api/v1/rooms/!a/avatar",
        f"/api/v1/media/{SERVER}/abc",
        "/metrics",
    ],
)
async def test_nothing_else_opens(archive: Archive, reader: Reader, path: str) -> None:
    """A signature of a key for admin is worth nothing there."""
    strong = await made(archive.pool, "strong", Scope.ADMIN)
    signed = url(strong, path, scope=Scope.ADMIN)
    found, refusal = await said(reader, signed.replace("a/avatar", "a%2Favatar"))
    assert (found, refusal["errcode"]) == (401, "M_MISSING_TOKEN")


async def test_only_reading_can_be_signed(reader: Reader, key: Key, mxc: Mxc) -> None:
    """No signature signs."""
    path = f"/api/v1/media/{mxc.server_name}/{mxc.media_id}/sign"
    assert (await said(reader, url(key, path), "POST"))[0] == 401
    assert (await said(reader, url(key, content(mxc)), "POST"))[0] == 405


async def test_a_token_in_the_header_counts_first(reader: Reader, key: Key, mxc: Mxc) -> None:
    """A wrong one is refused, whatever the URL says."""
    signed = url(key, content(mxc))
    assert (await said(reader, signed, Authorization="Bearer mma_wrong"))[0] == 401
    assert (await said(reader, signed + "x", **reader.headers))[0] == 200


async def test_faces_may_be_signed_for(archive: Archive, reader: Reader, key: Key) -> None:
    """Of users and of rooms, by their ids as they are."""
    face = await archive.put(DATA, "image/png")
    await archive.record(
        member("@alice:archive.test", avatar_url=str(face)),
        state("m.room.avatar", {"url": str(face)}, room="!room:a"),
    )
    for path in ("/api/v1/users/@alice:archive.test/avatar", "/api/v1/rooms/!room:a/avatar"):
        assert (await said(reader, url(key, path)))[0] == 200


async def asked_to_sign(
    reader: Reader, mxc: Mxc, body: Any, token: str | None = None
) -> tuple[int, dict[str, Any]]:
    """What `sign` answers."""
    path = reader.server.make_url(f"/api/v1/media/{mxc.server_name}/{mxc.media_id}/sign")
    headers = {"Authorization": f"Bearer {token}"} if token else reader.headers
    data = {"data": body} if isinstance(body, bytes) else {"json": body}
    async with reader.session.post(path, headers=headers, **data) as answer:
        return answer.status, await answer.json()


async def test_the_archive_signs(
    archive: Archive, database_url: str, http: aiohttp.ClientSession, mxc: Mxc
) -> None:
    """A URL below `serve.public_url` that works at once, at every server."""
    secret = await archive.token("some reader")
    rules = Access(public_url="https://archive.example/media")
    async with (
        serving(archive, database_url, access=rules) as server,
        serving(archive, database_url) as other,
    ):
        reader = Reader(http, server, secret)
        for body in ({}, b"", {"what": "download", "parameters": {"a": 1, "b": True, "c": "~"}}):
            found, answer = await asked_to_sign(reader, mxc, body)
            assert found == 200, answer
            assert answer["url"].startswith("https://archive.example/media/")
            ends = datetime.fromisoformat(answer["expires_at"]) - datetime.now(UTC)
            assert timedelta(seconds=HOUR - 60) < ends <= timedelta(seconds=HOUR)
            signed = answer["url"].removeprefix("https://archive.example/media")
            for door in (server, other):
                assert (await said(Reader(http, door, ""), signed))[0] == 200
                assert "for=token%3Asome%2520reader" in signed
    assert await archive.pool.fetchval("SELECT count(*) FROM signing_key") == 1


@pytest.mark.parametrize(
    ("what", "path"),
    [
        ("content", "/api/v1/media/{}/{}/content"),
        ("download", "/_matrix/client/v1/media/download/{}/{}"),
        ("thumbnail", "/_matrix/client/v1/media/thumbnail/{}/{}"),
        ("variant", "/api/v1/media/{}/{}/variant"),
    ],
)
async def test_what_is_signed_is_said(reader: Reader, mxc: Mxc, what: str, path: str) -> None:
    """For a thumbnail with its parameters."""
    body = {"what": what, "expires_in": 60, "parameters": {"width": 96, "method": "crop"}}
    _, answer = await asked_to_sign(reader, mxc, body)
    signed = URL(answer["url"])
    assert signed.path == path.format(*mxc)
    assert (signed.query["width"], signed.query["scope"]) == ("96", "read")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"no json", "JSON"),
        ([], "JSON"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": 7 * 24 * HOUR + 1}, "expires_in"),
        ({"expires_in": True}, "expires_in"),
        ({"expires_in": "60"}, "expires_in"),
        ({"what": "everything"}, "what"),
        ({"what": []}, "what"),
        ({"scope": "owner"}, "scope"),
        ({"scope": None}, "scope"),
        ({"parameters": []}, "parameters"),
        ({"parameters": {"a": "b&c=d"}}, "parameters"),
        ({"parameters": {"a": 1.5}}, "parameters"),
        ({"parameters": {"expires": "9"}}, "parameters"),
        ({"parameters": {"for": "me"}}, "parameters"),
        ({"parameters": {"a b": "1"}}, "parameters"),
    ],
)
async def test_a_wrong_wish_is_a_sentence(reader: Reader, mxc: Mxc, body: Any, word: str) -> None:
    """With the word that was wrong."""
    found, refusal = await asked_to_sign(reader, mxc, body)
    assert (found, refusal["errcode"]) == (400, "M_INVALID_PARAM")
    assert word in refusal["error"]


async def test_nobody_signs_for_more_than_he_may(
    archive: Archive, reader: Reader, mxc: Mxc
) -> None:
    """Scope read not for admin; admin for either, and without a wish for read."""
    admin = await archive.token("admin", Scope.ADMIN)
    assert (await asked_to_sign(reader, mxc, {"scope": "admin"}))[0] == 403
    for body, scope in (({}, "read"), ({"scope": "admin"}, "admin")):
        found, answer = await asked_to_sign(reader, mxc, body, admin)
        assert (found, URL(answer["url"]).query["scope"]) == (200, scope)
    assert (await asked_to_sign(reader, mxc, {}, "mma_wrong"))[0] == 401


async def test_the_archives_own_key_is_changed_every_month(
    archive: Archive, reader: Reader, mxc: Mxc
) -> None:
    """What the old one signed works on; revoked, it does not, and a new one is made."""

    async def signed() -> str:
        answer = (await asked_to_sign(reader, mxc, {"expires_in": 7 * 24 * HOUR}))[1]
        return str(URL(answer["url"]).relative())

    first = await signed()
    age = "UPDATE signing_key SET created_at = created_at - $1::interval,"
    age += " expires_at = expires_at - $1::interval"
    await archive.pool.execute(age, timedelta(days=29, hours=23))
    again = await signed()
    await archive.pool.execute(age, timedelta(hours=1))
    second = await signed()
    keys = [URL(text).query["key"] for text in (first, again, second)]
    assert keys[0] == keys[1] != keys[2]
    for text in (first, again, second):
        assert (await said(reader, text))[0] == 200
    async with archive.pool.acquire() as conn:
        assert await signing_keys.revoke(conn, OWN)
    async with asyncio.timeout(20):
        while (await said(reader, first))[0] != 403:
            pass
    assert (await said(reader, second))[0] == 403
    assert (await said(reader, await signed()))[0] == 200
