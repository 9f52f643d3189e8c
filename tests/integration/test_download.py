"""Downloads from homeservers of every temper, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from archiver.base import http_session
from archiver.catalogue.queue import Said
from archiver.errors import (
    ArchiverError,
    BodyMismatch,
    FetchFailed,
    HomeserverUnavailable,
    MediaNotFound,
    NotYetUploaded,
    RateLimited,
    TooLargeForHomeserver,
)
from archiver.fetch import download
from archiver.fetch.download import AUTHENTICATED, LEGACY, MAX_REDIRECTS, MediaSource
from archiver.model import Mxc
from tests.support.homeserver import (
    BOT,
    TOKEN,
    Answer,
    Homeserver,
    body,
    chunked,
    cut_off,
    error,
    held,
    mxc,
    plain,
    raw,
    redirect,
)

CAT = mxc("cat")
DATA = bytes(range(256)) * 400
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
async def elsewhere() -> AsyncIterator[Homeserver]:
    """Another origin, such as the bucket of a homeserver that redirects to one."""
    async with Homeserver() as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """The very session that the archive uses."""
    async with http_session() as session:
        yield session


@pytest.fixture
def source(session: aiohttp.ClientSession, homeserver: Homeserver) -> MediaSource:
    return MediaSource(session, homeserver.url, TOKEN, BOT, 64)


async def fetch(source: MediaSource, media: Mxc = CAT) -> bytes:
    async with source.open(media) as download:
        return b"".join([chunk async for chunk in download.chunks()])


async def said(source: MediaSource, media: Mxc = CAT) -> Said:
    async with source.open(media) as download:
        return download.said


async def test_a_whole_body(source: MediaSource, homeserver: Homeserver) -> None:
    """The bytes come as they were sent, with what was announced and said of them."""
    disposition = 'inline; filename="cat.png"'
    homeserver.give(CAT, body(DATA, "image/png", Content_Disposition=disposition))
    async with source.open(CAT) as download:
        assert download.announced_size == len(DATA)
        assert download.said == Said("image/png", "cat.png")
        assert b"".join([chunk async for chunk in download.chunks()]) == DATA


async def test_the_homeserver_is_asked_as_our_bot(
    source: MediaSource, homeserver: Homeserver
) -> None:
    """A request carries the as_token in its header alone, names the bot, and bounds the wait."""
    homeserver.give(CAT, DATA)
    await fetch(source)
    (seen,) = homeserver.seen
    assert seen.path == f"/{AUTHENTICATED}/archive.test/cat"
    assert seen.headers["Authorization"] == f"Bearer {TOKEN}"
    assert seen.headers["Accept-Encoding"] == "identity"
    assert seen.query == {"user_id": BOT, "timeout_ms": "20000"}
    assert TOKEN not in seen.target


@pytest.mark.parametrize(
    "media", [Mxc("[::1]:8448", "a"), Mxc("example.com:8448", "a-_b"), Mxc("1.2.3.4", "Z")]
)
async def test_every_server_name_arrives(
    source: MediaSource, homeserver: Homeserver, media: Mxc
) -> None:
    """Ports and IPv6 literals are quoted so that the homeserver reads the same name."""
    homeserver.give(media, DATA)
    assert await fetch(source, media) == DATA


async def test_an_empty_body_is_a_body(source: MediaSource, homeserver: Homeserver) -> None:
    """Nobody forbids a file of zero bytes."""
    homeserver.give(CAT, b"")
    assert await fetch(source) == b""


@pytest.mark.parametrize("pause", [0, 0.002])
async def test_a_body_without_length(
    source: MediaSource, homeserver: Homeserver, pause: float
) -> None:
    """Chunked bodies end where they say that they end, however slowly they drip."""
    homeserver.give(CAT, chunked(DATA[:30_000], pause))
    async with source.open(CAT) as download:
        assert download.announced_size is None
        assert b"".join([chunk async for chunk in download.chunks()]) == DATA[:30_000]


@pytest.mark.parametrize("announced", [len(DATA) + 1, None])
async def test_a_body_that_breaks_off(
    source: MediaSource, homeserver: Homeserver, announced: int | None
) -> None:
    """A connection that ends before the body does brings no body, with a length or without."""
    homeserver.give(CAT, cut_off(DATA, announced))
    with pytest.raises(BodyMismatch, match="broke off"):
        await fetch(source)


async def test_a_body_that_stops_coming(
    source: MediaSource, homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection on which nothing comes any more is given up."""
    monkeypatch.setattr(download, "_TIMEOUT", aiohttp.ClientTimeout(sock_read=0.1))
    never = asyncio.Event()
    homeserver.give(CAT, held(never, DATA))
    with pytest.raises(BodyMismatch, match="broke off"):
        await fetch(source)
    never.set()


ERRORS: dict[str, tuple[Answer, type[ArchiverError]]] = {
    "not found": (error(404, "M_NOT_FOUND"), MediaNotFound),
    "not found, by a proxy": (plain(404, b"<html>"), MediaNotFound),
    "not yet uploaded": (error(504, "M_NOT_YET_UPLOADED"), NotYetUploaded),
    "limited": (error(429, "M_LIMIT_EXCEEDED"), RateLimited),
    "limited, by a proxy": (plain(429, b"slow down"), RateLimited),
    "too large": (error(502, "M_TOO_LARGE"), TooLargeForHomeserver),
    "too large, as others say it": (error(413, "M_TOO_LARGE"), TooLargeForHomeserver),
    "remote away": (error(502, "M_UNKNOWN"), FetchFailed),
    "broken": (error(500, "M_UNKNOWN"), FetchFailed),
    "broken, in HTML": (plain(500, b"<html><h1>Internal Server Error"), FetchFailed),
    "too slow for a proxy": (plain(504, b"<html>Gateway Timeout"), FetchFailed),
    "nothing": (plain(204, b""), FetchFailed),
    "a part": (plain(206, b"half"), FetchFailed),
    "JSON but no object": (plain(418, b'["x"]', "application/json"), FetchFailed),
    "no errcode": (error(400, None, error=None), FetchFailed),
    "an odd errcode": (plain(400, b'{"errcode":[],"error":{}}'), FetchFailed),
    # What Synapse says of one media, where federation with its server is denied.
    "forbidden": (error(403, "M_FORBIDDEN"), FetchFailed),
    "unknown token": (error(401, "M_UNKNOWN_TOKEN"), HomeserverUnavailable),
    "missing token": (error(401, "M_MISSING_TOKEN"), HomeserverUnavailable),
    # A reverse proxy, while the homeserver restarts behind it.
    "bad gateway": (plain(502, b"<html>Bad Gateway"), HomeserverUnavailable),
    "unavailable": (plain(503, b"<html>Service Unavailable"), HomeserverUnavailable),
    "no answer": (raw(b""), HomeserverUnavailable),
    "another protocol": (raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), FetchFailed),
    "negative length": (raw(OK + b"Content-Length: -1\r\n\r\n"), FetchFailed),
    "odd length": (raw(OK + b"Content-Length: 1e3\r\n\r\n"), FetchFailed),
    "header without end": (raw(OK + b"X: " + b"x" * 100_000 + b"\r\n\r\n"), FetchFailed),
}


@pytest.mark.parametrize(("answer", "expected"), ERRORS.values(), ids=ERRORS)
async def test_every_refusal_has_its_error(
    source: MediaSource, homeserver: Homeserver, answer: Answer, expected: type[ArchiverError]
) -> None:
    """What may pass, what is final and what says nothing of the media are told apart."""
    homeserver.give(CAT, answer)
    with pytest.raises(expected) as caught:
        await fetch(source)
    assert type(caught.value) is expected
    assert str(caught.value)


async def test_a_refusal_in_two_packets_is_read_whole(
    source: MediaSource, homeserver: Homeserver
) -> None:
    """The errcode counts also where its JSON does not come at once."""
    refusal = b'{"errcode":"M_TOO_LARGE","error":"too large"}'
    homeserver.give(CAT, chunked(refusal, 0.01, piece=9, status=502))
    with pytest.raises(TooLargeForHomeserver, match="too large"):
        await fetch(source)


@pytest.mark.parametrize(
    ("said_so", "header", "seconds"),
    [
        (1500, None, 1.5),
        (1500, "7", 1.5),
        (0, None, 0),
        (None, "7", 7),
        (None, None, 5),
        (None, "Fri, 31 Dec 1999 23:59:59 GMT", 5),
        (None, "²", 5),
        ("soon", None, 5),
        (-1, None, 5),
        ([], "3", 3),
        (1e300, None, 86_400),
        (None, "9" * 50, 86_400),
    ],
)
async def test_a_limit_says_when_to_return(
    source: MediaSource,
    homeserver: Homeserver,
    said_so: object,
    header: str | None,
    seconds: float,
) -> None:
    """`retry_after_ms`, else Retry-After, else five seconds; never beyond a day."""
    headers = {"Retry-After": header} if header else None
    homeserver.give(CAT, error(429, "M_LIMIT_EXCEEDED", headers=headers, retry_after_ms=said_so))
    with pytest.raises(RateLimited) as caught:
        await fetch(source)
    assert caught.value.retry_after == seconds


async def test_the_body_of_an_error_is_not_read_whole(
    source: MediaSource, homeserver: Homeserver
) -> None:
    """A gibibyte of error page stays where it is, but for what was on its way."""
    huge = 1 << 30
    homeserver.give(CAT, homeserver.endless(huge, status=500))
    with pytest.raises(FetchFailed, match="500"):
        await fetch(source)
    assert homeserver.sent < huge // 10


async def test_an_old_homeserver_is_asked_the_old_way(session: aiohttp.ClientSession) -> None:
    """M_UNRECOGNIZED leads to the unauthenticated endpoint, which is asked first from then on."""
    async with Homeserver(authenticated=False) as old:
        old.give(CAT, DATA)
        source = MediaSource(session, old.url, TOKEN, BOT, 64)
        assert await fetch(source) == await fetch(source) == DATA
        endpoints = [seen.path.removesuffix("/archive.test/cat") for seen in old.seen]
        assert endpoints == [f"/{AUTHENTICATED}", f"/{LEGACY}", f"/{LEGACY}"]


async def test_an_upgraded_homeserver_is_noticed(session: aiohttp.ClientSession) -> None:
    """When the old endpoint stops to answer, the next try begins with the new one again."""
    async with Homeserver(authenticated=False) as homeserver:
        homeserver.give(CAT, DATA)
        source = MediaSource(session, homeserver.url, TOKEN, BOT, 64)
        await fetch(source)
        homeserver.authenticated = True
        with pytest.raises(MediaNotFound):
            await fetch(source)
        assert await fetch(source) == DATA


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_within_the_homeserver(
    source: MediaSource, homeserver: Homeserver, status: int
) -> None:
    """On the same origin the token goes along; a relative address is one."""
    homeserver.give(CAT, redirect(status, "/moved/cat?signature=a%2Fb%20c"))
    homeserver.give("/moved/cat", DATA)
    assert await fetch(source) == DATA
    assert homeserver.seen[-1].headers["Authorization"] == f"Bearer {TOKEN}"
    assert homeserver.seen[-1].target == "/moved/cat?signature=a%2Fb%20c"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_origin(
    source: MediaSource, homeserver: Homeserver, elsewhere: Homeserver, status: int
) -> None:
    """Another origin gets neither the token nor our name."""
    homeserver.give(CAT, redirect(status, f"{elsewhere.url}/bucket/cat"))
    elsewhere.give("/bucket/cat", DATA)
    assert await fetch(source) == DATA
    (seen,) = elsewhere.seen
    assert "Authorization" not in seen.headers
    assert seen.query == {}
    assert homeserver.url not in str(seen.headers)


async def test_a_redirect_back_home_goes_without_the_token(
    source: MediaSource, homeserver: Homeserver, elsewhere: Homeserver
) -> None:
    """Another origin cannot make us ask our homeserver for something with our rights."""
    homeserver.give(CAT, redirect(307, f"{elsewhere.url}/there"))
    elsewhere.give("/there", redirect(307, f"{homeserver.url}/and/back"))
    homeserver.give("/and/back", DATA)
    assert await fetch(source) == DATA
    assert "Authorization" not in homeserver.seen[-1].headers


@pytest.mark.parametrize("status", [401, 403, 502, 503])
async def test_another_origins_refusal_is_not_the_homeservers(
    source: MediaSource, homeserver: Homeserver, elsewhere: Homeserver, status: int
) -> None:
    """What a bucket refuses concerns this media: nobody stops asking the homeserver for others."""
    homeserver.give(CAT, redirect(307, f"{elsewhere.url}/expired"))
    elsewhere.give("/expired", plain(status, b"<Error><Code>AccessDenied"))
    with pytest.raises(FetchFailed):
        await fetch(source)


async def test_another_origin_that_is_down(
    source: MediaSource, homeserver: Homeserver, elsewhere: Homeserver
) -> None:
    """A bucket that does not answer is named, and the homeserver is not blamed."""
    homeserver.give(CAT, redirect(307, f"{elsewhere.url}/there"))
    await elsewhere.stop()
    with pytest.raises(FetchFailed, match=elsewhere.url):
        await fetch(source)


async def test_redirects_come_to_an_end(source: MediaSource, homeserver: Homeserver) -> None:
    """A circle is left after a few rounds."""
    homeserver.give(CAT, redirect(302, "/round"))
    homeserver.give("/round", redirect(302, "/round"))
    with pytest.raises(FetchFailed, match="redirects more than"):
        await fetch(source)
    assert len(homeserver.seen) == MAX_REDIRECTS + 1


@pytest.mark.parametrize(
    "location",
    [
        None, "http://", "https:///cat", "http://[", "http://host:99999/", "http://a b/",
        "mailto:cat@example.com", "data:,cat", "file:///etc/passwd", "ftp://127.0.0.1/cat",
        "javascript:alert(1)", "http://..", "http://%zz/", "http://127.0.0.1:1/", "\\", "//",
        "http://" + "x" * 5000, "http://user:password@/",
    ],
)  # fmt: skip
async def test_a_redirect_to_nonsense(
    source: MediaSource, homeserver: Homeserver, location: str | None
) -> None:
    """Whatever a redirect names, it is this media's failure, in one sentence."""
    homeserver.give(CAT, redirect(302, location))
    with pytest.raises((FetchFailed, MediaNotFound)) as caught:
        await fetch(source)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("encoding", ["gzip", "br", "x-unheard-of"])
async def test_a_compressed_body_is_refused(
    source: MediaSource, homeserver: Homeserver, encoding: str
) -> None:
    """Nobody asked for one, and its bytes are not the media's."""
    homeserver.give(CAT, body(DATA, Content_Encoding=encoding))
    with pytest.raises(FetchFailed, match=r"compressed|Can not decode"):
        await fetch(source)


HOSTILE_NAMES: list[tuple[bytes, str | None]] = [
    (b'attachment; filename="a;b.png"', "a;b.png"),
    (b"inline; filename=plain.png", "plain.png"),
    (b"attachment; filename*=utf-8''%E2%82%AC%20rates.png", "€ rates.png"),
    (b"attachment; filename*=utf-8''%00%ff", "\ufffd\ufffd"),
    (b"attachment; filename*=no-such-charset''%ff.png", "\u00ff.png"),
    (b'attachment; filename="\xff\xfe.png"', "\ufffd\ufffd.png"),
    (b'attachment; filename="' + b"x" * 1000 + b'"', "x" * 255),
    (b"attachment", None),
    (b"", None),
    (b";;;=;;", None),
    (b'"', None),
    (b"filename=", None),
]


@pytest.mark.parametrize(("disposition", "name"), HOSTILE_NAMES)
async def test_odd_file_names(
    source: MediaSource, homeserver: Homeserver, disposition: bytes, name: str | None
) -> None:
    """A file name is what can be read of it, and PostgreSQL can hold it."""
    head = b"Content-Length: 0\r\nContent-Disposition: "
    homeserver.give(CAT, raw(OK + head + disposition + b"\r\n\r\n"))
    found = (await said(source)).upload_name
    assert found == name


async def test_a_content_type_without_end(source: MediaSource, homeserver: Homeserver) -> None:
    """Uploaders may choose ten kilobytes of Content-Type; the media is archived all the same."""
    homeserver.give(CAT, body(DATA, "image/" + "x" * 10_000))
    assert (await said(source)).declared_type == ("image/" + "x" * 10_000)[:255]
    assert await fetch(source) == DATA


async def test_a_content_type_of_odd_bytes(source: MediaSource, homeserver: Homeserver) -> None:
    """Bytes that are no UTF-8 become question marks, which PostgreSQL can hold."""
    homeserver.give(CAT, raw(OK + b"Content-Length: 0\r\nContent-Type: image/\xff\xfe\r\n\r\n"))
    assert (await said(source)).declared_type == "image/??"


async def test_a_homeserver_that_is_down(source: MediaSource, homeserver: Homeserver) -> None:
    """No answer at all says nothing of the media."""
    await homeserver.stop()
    with pytest.raises(HomeserverUnavailable, match="does not answer"):
        await fetch(source)
    await homeserver.start()
    homeserver.give(CAT, DATA)
    assert await fetch(source) == DATA


async def test_a_homeserver_that_takes_too_long(
    source: MediaSource, homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request that is never answered does not speak for the others."""
    monkeypatch.setattr(download, "_TIMEOUT", aiohttp.ClientTimeout(sock_read=0.1))
    never = asyncio.Event()

    async def answer(_request: web.Request) -> web.StreamResponse:
        await never.wait()
        return web.Response()

    homeserver.give(CAT, answer)
    with pytest.raises(FetchFailed, match="sent nothing for too long"):
        await fetch(source)
    never.set()


async def test_complete_answers_leave_the_connection_for_the_next(
    source: MediaSource, homeserver: Homeserver
) -> None:
    """Bodies, refusals and redirects that were read whole share one TCP connection."""
    dog = mxc("dog")
    homeserver.give(CAT, DATA, error(404, "M_NOT_FOUND"), redirect(302, "/moved"), DATA)
    homeserver.give("/moved", DATA)
    homeserver.give(dog, DATA)
    await fetch(source)
    with pytest.raises(MediaNotFound):
        await fetch(source)
    await fetch(source)
    await fetch(source)
    await fetch(source, dog)
    assert len({seen.client for seen in homeserver.seen}) == 1


async def test_a_body_that_is_left_is_not_read_on(
    source: MediaSource, homeserver: Homeserver
) -> None:
    """Who leaves in the middle of a body closes its connection; the next request has another."""
    huge = 1 << 30
    homeserver.give(CAT, homeserver.endless(huge), DATA)
    async with source.open(CAT) as download:
        async for _ in download.chunks():
            break
    assert await fetch(source) == DATA
    assert homeserver.sent < huge // 10
    assert len({seen.client for seen in homeserver.seen}) == 2


async def test_a_slot_is_free_when_the_body_has_come(
    session: aiohttp.ClientSession, homeserver: Homeserver
) -> None:
    """No more than `at_once` downloads go on; what is stored afterwards holds nobody up."""
    dog = mxc("dog")
    for media in (CAT, dog):
        homeserver.give(media, body(DATA))
    source = MediaSource(session, homeserver.url, TOKEN, BOT, 1)
    async with source.open(CAT) as first:
        second = asyncio.create_task(fetch(source, dog))
        await fetch(MediaSource(session, homeserver.url, TOKEN, BOT, 1))  # time for it to begin
        assert homeserver.asked(dog) == 0
        assert b"".join([chunk async for chunk in first.chunks()]) == DATA
        assert await second == DATA


async def test_a_failed_download_frees_its_slot(
    session: aiohttp.ClientSession, homeserver: Homeserver
) -> None:
    """Neither a refusal nor a reader that leaves early keeps a slot."""
    homeserver.give(CAT, error(404, "M_NOT_FOUND"), body(DATA))
    source = MediaSource(session, homeserver.url, TOKEN, BOT, 1)
    with pytest.raises(MediaNotFound):
        await fetch(source)
    await said(source)
    assert await fetch(source) == DATA
