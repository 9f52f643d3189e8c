"""The tables of the readers' door, row by row, against the process that administrators run."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from archiver.db.pool import open_pool
from tests.acceptance.conftest import made_lone
from tests.support.archiver import Archiver
from tests.support.samples import png
from tests.support.serving import Archive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 2**20
CLIENT = "/_matrix/client/v1/media"
SMALL, LARGE = png(320, 240, (1, 2, 3)), secrets.token_bytes(6 * MIB)
BODIES: dict[str, tuple[str | None, bytes]] = {
    "small": ("image/png", SMALL),
    "large": ("application/octet-stream", LARGE),
    "empty": ("text/plain", b""),
    "svg": ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"),
    "html": ("text/html", b"<!doctype html><script>alert(1)</script>"),
    "liar": ("image/jpeg", SMALL),
    "text": ("text/plain", b"plain words"),
    "bare": (None, b"no type was said"),
}
STATES = {
    "pending": None,
    "failed": "the homeserver forgot it",
    "excluded": "capture.max_size: too large",
    "deleted": "an order",
    "quarantined": "an order",
}
ALWAYS = {
    "Accept-Ranges": "bytes",
    "Access-Control-Allow-Origin": "*",
    "Cache-Control": "private, max-age=31536000, immutable",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Cache": "HIT",
}


@dataclass(frozen=True)
class Served:
    """A process that serves, and what it has: the path below the face by name."""

    url: str
    token: str
    media: dict[str, str]

    @asynccontextmanager
    async def ask(
        self, path: str, method: str = "GET", headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a request with the token; braces in the path are the name of a media."""
        given = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        async with (
            aiohttp.ClientSession(self.url, auto_decompress=False) as session,
            session.request(method, path.format(**self.media), headers=given) as answer,
        ):
            yield answer


@pytest.fixture(scope="module")
def served(services_folder: Path) -> Iterator[Served]:
    """One process for all rows; no homeserver is there to help it."""
    archiver = made_lone(services_folder, only="serve")
    archiver.configure("http://127.0.0.1:1")
    archiver.start()
    try:
        media = asyncio.run(filled(archiver))
        yield Served(archiver.url, archiver.token, media)
    finally:
        assert archiver.stop() == 0
    assert "Traceback" not in archiver.log


async def filled(archiver: Archiver) -> dict[str, str]:
    """Puts everything in, and says under which names."""
    async with open_pool(archiver.dsn, 2) as pool:
        archive = Archive(pool, archiver.folder / "data", inline_limit=5 * MIB)
        await archive.store.open()
        found = {
            name: await archive.put(data, declared, f"{name}.bin")
            for name, (declared, data) in BODIES.items()
        }
        for state, reason in STATES.items():
            found[state] = await archive.put_state(state, reason)
    return {name: f"{mxc.server_name}/{mxc.media_id}" for name, mxc in found.items()}


@pytest.mark.parametrize(
    ("name", "content_type", "disposition"),
    [
        ("small", "image/png", "inline"),
        ("large", "application/octet-stream", "attachment"),
        ("empty", "text/plain", "inline"),
        ("svg", "image/svg+xml", "attachment"),
        ("html", "text/html", "attachment"),
        ("liar", "application/octet-stream", "attachment"),
        ("text", "text/plain", "inline"),
        ("bare", "application/octet-stream", "attachment"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [f"{CLIENT}/download/{{%s}}", "/api/v1/media/{%s}/content", "/api/media/download/{%s}"],
)
async def test_headers(
    served: Served, path: str, method: str, name: str, content_type: str, disposition: str
) -> None:
    """Type, disposition, length and everything that keeps a browser from harm."""
    data = BODIES[name][1]
    async with served.ask(path % name, method) as answer:
        assert answer.status == 200
        assert await answer.read() == (data if method == "GET" else b"")
        found = answer.headers
    assert {key: found[key] for key in ALWAYS} == ALWAYS
    assert found["Content-Type"].partition(";")[0] == content_type
    assert found["Content-Disposition"] == f'{disposition}; filename="{name}.bin"'
    assert found["Content-Length"] == str(len(data))
    assert found["ETag"] == f'"{sha256(data).hexdigest()}"'
    assert found["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-99", 206, slice(0, 100)),
        ("bytes=100-199", 206, slice(100, 200)),
        ("bytes=-100", 206, slice(-100, None)),
        ("bytes=50-", 206, slice(50, None)),
        ("bytes=50-999999999", 206, slice(50, None)),
        ("bytes=999999999-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=0-0,5-9", 200, slice(None)),
        ("bytes=9-5", 200, slice(None)),
        ("bytes=x-", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
    ],
)
async def test_ranges(
    served: Served, name: str, asked: str, status: int, part: slice | None
) -> None:
    """One part of what is small or large; the whole for what is no range; RFC 9110, section 14."""
    data = BODIES[name][1]
    async with served.ask(f"{CLIENT}/download/{{{name}}}", headers={"Range": asked}) as answer:
        assert answer.status == status
        body, place = await answer.read(), answer.headers.get("Content-Range")
    if part is None:
        assert place == f"bytes */{len(data)}"
        return
    first, past, _ = part.indices(len(data))
    assert body == data[part]
    assert place == (f"bytes {first}-{past - 1}/{len(data)}" if status == 206 else None)


@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": "ETAG"}, 304),
        ({"If-None-Match": "W/ETAG"}, 304),
        ({"If-None-Match": '"other", ETAG'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-None-Match": "ETAG", "Range": "bytes=0-9"}, 304),
        ({"If-Range": "ETAG", "Range": "bytes=0-9"}, 206),
        ({"If-Range": '"other"', "Range": "bytes=0-9"}, 200),
        ({"If-Range": "W/ETAG", "Range": "bytes=0-9"}, 200),
        ({"If-Range": "ETAG"}, 200),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_conditions(
    served: Served, name: str, method: str, headers: dict[str, str], status: int
) -> None:
    """Who has the bytes gets none; who has a part gets the rest of the same (RFC 9110, 13)."""
    data = BODIES[name][1]
    etag = f'"{sha256(data).hexdigest()}"'
    given = {key: value.replace("ETAG", etag) for key, value in headers.items()}
    async with served.ask(f"{CLIENT}/download/{{{name}}}", method, given) as answer:
        assert answer.status == (200 if method == "HEAD" and status == 206 else status)
        assert answer.headers["ETag"] == etag
        body = await answer.read()
    whole = {200: data, 206: data[:10], 304: b""}[status]
    assert body == (whole if method == "GET" else b"")


@pytest.mark.parametrize(
    ("path", "status", "errcode"),
    [
        (f"{CLIENT}/download/archive.test/nobodynamedit", 404, "M_NOT_FOUND"),
        (f"{CLIENT}/download/{{pending}}?timeout_ms=0", 504, "M_NOT_YET_UPLOADED"),
        (f"{CLIENT}/download/{{failed}}", 404, "M_NOT_FOUND"),
        (f"{CLIENT}/download/{{excluded}}", 404, "M_NOT_FOUND"),
        (f"{CLIENT}/download/{{deleted}}", 404, "M_NOT_FOUND"),
        (f"{CLIENT}/download/{{quarantined}}", 404, "M_NOT_FOUND"),
        (f"{CLIENT}/download/{{quarantined}}?hidden=true", 404, "M_NOT_FOUND"),
        (f"{CLIENT}/download/archive.test/%2e%2e%2fetc", 400, "M_INVALID_PARAM"),
        (f"{CLIENT}/download/ar%20chive/abc", 400, "M_INVALID_PARAM"),
        (f"{CLIENT}/download/archive.test", 404, "M_UNRECOGNIZED"),
        (f"{CLIENT}/thumbnail/{{small}}", 400, "M_MISSING_PARAM"),
        (f"{CLIENT}/thumbnail/{{small}}?width=a&height=1", 400, "M_INVALID_PARAM"),
        (f"{CLIENT}/thumbnail/{{small}}?width=9&height=9&method=zoom", 400, "M_INVALID_PARAM"),
        (f"{CLIENT}/thumbnail/{{text}}?width=9&height=9", 400, "M_UNKNOWN"),
        (f"{CLIENT}/thumbnail/{{failed}}?width=9&height=9", 404, "M_NOT_FOUND"),
        ("/api/v1/media/archive.test/nobodynamedit", 404, "M_NOT_FOUND"),
        ("/api/v1/media?limit=none", 400, "M_INVALID_PARAM"),
        ("/api/v1/reads", 403, "M_FORBIDDEN"),
        ("/_matrix/client/v3/sync", 404, "M_UNRECOGNIZED"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_errors(served: Served, method: str, path: str, status: int, errcode: str) -> None:
    """Matrix's own form of an error, with a sentence, which no cache keeps and any page reads."""
    async with served.ask(path, method) as answer:
        assert answer.status == status
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "immutable" not in answer.headers.get("Cache-Control", "")
        error: dict[str, Any] = await answer.json() if method == "GET" else {}
    if method == "GET":
        assert error["errcode"] == errcode
        assert " " in error["error"]


@pytest.mark.parametrize(
    ("headers", "status", "errcode"),
    [
        ({"Authorization": ""}, 401, "M_MISSING_TOKEN"),
        ({"Authorization": "Basic YTpi"}, 401, "M_MISSING_TOKEN"),
        ({"Authorization": "Bearer mma_wrong"}, 401, "M_UNKNOWN_TOKEN"),
    ],
)
async def test_without_a_good_token(
    served: Served, headers: dict[str, str], status: int, errcode: str
) -> None:
    """Whether the media exists is nobody's business then."""
    for name in ("small", "failed"):
        path = f"{CLIENT}/download/{{{name}}}"
        async with served.ask(path, headers=headers) as answer:
            assert (answer.status, (await answer.json())["errcode"]) == (status, errcode)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_other_methods(served: Served, method: str) -> None:
    """Nobody writes here."""
    async with served.ask(f"{CLIENT}/download/{{small}}", method) as answer:
        assert answer.status == 405
        assert (await answer.json())["errcode"] == "M_UNRECOGNIZED"


async def test_a_browser_asks_beforehand(served: Served) -> None:
    """The preflight of another origin's page needs no token; https://fetch.spec.whatwg.org/."""
    headers = {
        "Authorization": "",
        "Origin": "https://panel.example",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization, range",
    }
    async with served.ask(f"{CLIENT}/download/{{small}}", "OPTIONS", headers) as answer:
        assert answer.status in {200, 204}
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
        assert "GET" in answer.headers["Access-Control-Allow-Methods"]
