"""Thumbnails and variants over HTTP: made once, kept, and given as downloads are."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest
import pyvips
from prometheus_client import REGISTRY

from archiver.catalogue import variants
from archiver.catalogue.variants import VIEW, VIEW_WARILY
from archiver.model import Mxc, Scope
from archiver.variants.recipes import MOST_KEPT
from tests.integration.test_query_plans import assert_lean, nodes
from tests.support.pictures import (
    GPS_WORDS,
    animation,
    clip,
    encoded,
    gif_bomb,
    png_bomb,
    quarters,
    song_with_cover,
    with_metadata,
)
from tests.support.samples import wav
from tests.support.serving import SERVER, Archive, Reader, serving

if TYPE_CHECKING:
    from archiver.db.pool import Pool

THUMBNAIL = "/_matrix/client/v1/media/thumbnail"
PHOTO = encoded(with_metadata(quarters(1280, 960), 6), ".jpg")


def at(mxc: Mxc, **query: object) -> str:
    """A thumbnail's path."""
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    return f"{THUMBNAIL}/{mxc.server_name}/{mxc.media_id}?{asked}"


def ours(mxc: Mxc, query: str) -> str:
    """A variant's path."""
    return f"/api/v1/media/{mxc.server_name}/{mxc.media_id}/variant?{query}"


async def picture(reader: Reader, path: str) -> tuple[str, int, int, str]:
    """Its type, width, height, and whether it was there."""
    async with reader.ask(path) as answer:
        data = await answer.read()
        assert answer.status == 200, data
        image = pyvips.Image.new_from_buffer(data, "")
        kind, cache = answer.headers["Content-Type"], answer.headers["X-Cache"]
        return kind, image.width, image.height, cache


async def errcode(reader: Reader, path: str) -> tuple[int, str]:
    """How a refusal is answered."""
    async with reader.ask(path) as answer:
        return answer.status, (await answer.json())["errcode"]


async def test_a_thumbnail_is_made_once_and_given_like_any_media(
    archive: Archive, reader: Reader
) -> None:
    """Upright, without its place, with every header; then kept, for HEAD, ranges and 304."""
    mxc = await archive.put(PHOTO, "image/jpeg")
    path = at(mxc, width=320, height=240, method="scale", timeout_ms=20000, strange=1)
    async with reader.ask(path) as answer:
        data = await answer.read()
        headers = dict(answer.headers)
    for name in ("Date", "Server"):
        headers.pop(name)
    assert headers.pop("Content-Security-Policy").startswith("sandbox;")
    assert headers.pop("Access-Control-Expose-Headers")
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    assert headers == {
        "Content-Type": "image/jpeg",
        "Content-Length": str(len(data)),
        "Content-Disposition": 'inline; filename="thumbnail.jpeg"',
        "Etag": etag,
        "Accept-Ranges": "bytes",
        "Access-Control-Allow-Origin": "*",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Referrer-Policy": "no-referrer",
        "X-Cache": "MISS",
        "X-Content-Type-Options": "nosniff",
        "X-Robots-Tag": "noindex, nofollow, noarchive, noimageindex",
    }
    assert not any(word in data for word in GPS_WORDS)
    image = pyvips.Image.new_from_buffer(data, "")
    assert (image.width, image.height) == (320, 427)
    async with reader.ask(path) as answer:
        assert (await answer.read(), answer.headers["X-Cache"]) == (data, "HIT")
        assert answer.headers["ETag"] == etag
    async with reader.ask(path, Range="bytes=10-19") as answer:
        assert (answer.status, await answer.read()) == (206, data[10:20])
    async with reader.ask(path, "HEAD") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(data)))
    assert await reader.status(path, If_None_Match=etag) == 304
    assert await reader.status(path, Range=f"bytes={len(data)}-") == 416


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"width": 1, "height": 1}, (320, 240)),
        ({"width": 320, "height": 240}, (320, 240)),
        ({"width": 321, "height": 200}, (640, 480)),
        ({"width": 700, "height": 10}, (800, 600)),
        ({"width": 801, "height": 1}, (1280, 960)),
        ({"width": 1000000, "height": 1}, (1600, 1200)),
        ({"width": 30, "height": 30, "method": "crop"}, (32, 32)),
        ({"width": 96, "height": 96, "method": "crop"}, (96, 96)),
        ({"width": 60, "height": 96, "method": "crop"}, (64, 96)),
        ({"width": 97, "height": 97, "method": "crop"}, (128, 128)),
        ({"width": 4000, "height": 500, "method": "crop"}, (1600, 640)),
    ],
)
async def test_sizes(
    archive: Archive, reader: Reader, asked: dict[str, object], found: tuple[int, int]
) -> None:
    """The smallest of few sizes that is large enough, and never an upscaled one."""
    mxc = await archive.put(encoded(quarters(1600, 1200), ".jpg"), "image/jpeg")
    assert (await picture(reader, at(mxc, **asked)))[1:] == (*found, "MISS")


async def test_every_way_to_ask(archive: Archive, reader: Reader) -> None:
    """With a slash at the end, by the alias of panels, and as a variant of our own."""
    mxc = await archive.put(encoded(quarters(640, 480)))
    name = f"{mxc.server_name}/{mxc.media_id}"
    size = "?width=96&height=96&method=crop"
    assert (await picture(reader, f"{THUMBNAIL}/{name}/{size}"))[1:] == (96, 96, "MISS")
    assert (await picture(reader, f"/api/media/thumbnail/{name}{size}"))[1:] == (96, 96, "HIT")
    assert await picture(reader, ours(mxc, "width=300")) == ("image/webp", 320, 240, "MISS")
    assert await picture(reader, ours(mxc, "width=310")) == ("image/webp", 320, 240, "HIT")
    wish = "width=160&height=160&method=crop&format=avif&quality=41"
    assert await picture(reader, ours(mxc, wish)) == ("image/avif", 160, 160, "MISS")
    assert (await picture(reader, ours(mxc, wish.replace("41", "50"))))[3] == "HIT"
    assert (await picture(reader, ours(mxc, wish.replace("41", "51"))))[3] == "MISS"
    for kind in ("png", "jpeg"):
        assert (await picture(reader, ours(mxc, f"width=96&format={kind}")))[0] == f"image/{kind}"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "M_MISSING_PARAM"),
        ("width=1", "M_MISSING_PARAM"),
        ("height=1", "M_MISSING_PARAM"),
        ("width=0&height=1", "M_INVALID_PARAM"),
        ("width=-1&height=1", "M_INVALID_PARAM"),
        ("width=1.5&height=1", "M_INVALID_PARAM"),
        ("width=%D9%A3&height=1", "M_INVALID_PARAM"),
        ("width=1&height=1&method=stretch", "M_INVALID_PARAM"),
        ("width=1&height=1&animated=maybe", "M_INVALID_PARAM"),
    ],
)
async def test_wrong_wishes(archive: Archive, reader: Reader, query: str, found: str) -> None:
    """400 with what is wrong, before anything is looked up."""
    mxc = Mxc(SERVER, "nothing")
    assert await errcode(reader, at(mxc) + query) == (400, found)


@pytest.mark.parametrize(
    "query",
    ["height=5", "width=5&format=gif", "width=5&format=bmp", "width=5&quality=0",
     "width=5&quality=101", "width=5&quality=x"],
)  # fmt: skip
async def test_wrong_variants(archive: Archive, reader: Reader, query: str) -> None:
    """The same of our own route."""
    path = ours(Mxc(SERVER, "nothing"), query)
    assert (await errcode(reader, path))[0] == 400


async def test_what_is_animated(archive: Archive, reader: Reader) -> None:
    """Moves only where asked to; a photo is the same picture either way."""
    mxc = await archive.put(animation(4, 640, 480), "image/gif")
    still = at(mxc, width=320, height=240)
    kind, *_ = await picture(reader, still)
    assert kind == "image/png" or kind == "image/jpeg"
    async with reader.ask(f"{still}&animated=true") as answer:
        assert answer.headers["X-Cache"] == "MISS"
        moving = pyvips.Image.new_from_buffer(await answer.read(), "", n=-1)
    assert moving.get_n_pages() == 4
    photo = at(await archive.put(PHOTO, "image/jpeg"), width=320, height=240)
    assert (await picture(reader, photo))[3] == "MISS"
    assert (await picture(reader, f"{photo}&animated=true"))[3] == "HIT"


async def test_films_and_sound(archive: Archive, reader: Reader) -> None:
    """A film has a poster and a song its cover, both as JPEG; a voice message has nothing."""
    film = await archive.put(clip([(200, 40, 40)] * 4, width=640, height=480), "video/mp4")
    found = await picture(reader, at(film, width=320, height=240))
    assert found == ("image/jpeg", 320, 240, "MISS")
    cover = encoded(quarters(500, 500), ".jpg")
    song = await archive.put(song_with_cover(cover), "audio/mpeg")
    found = await picture(reader, at(song, width=96, height=96, method="crop"))
    assert found == ("image/jpeg", 96, 96, "MISS")
    voice = at(await archive.put(wav(1), "audio/wav"), width=320, height=240)
    assert await errcode(reader, voice) == (400, "M_UNKNOWN")


@pytest.mark.parametrize(
    ("data", "kind"),
    [(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), (b"text", "text/plain"),
     (b"\x89PNG\r\n\x1a\nbroken", "image/png"), (b"%PDF-1.7", "application/pdf")],
)  # fmt: skip
async def test_what_has_no_picture(
    archive: Archive, reader: Reader, data: bytes, kind: str
) -> None:
    """400 M_UNKNOWN, as the specification has it, the second time without looking again."""
    mxc = await archive.put(data, kind)
    path = at(mxc, width=320, height=240)
    assert await errcode(reader, path) == (400, "M_UNKNOWN")
    asked = _renders()
    assert await errcode(reader, path) == (400, "M_UNKNOWN")
    assert _renders() == asked


@pytest.mark.parametrize("bomb", ["png", "gif"])
async def test_a_bomb_costs_a_refusal(archive: Archive, reader: Reader, bomb: str) -> None:
    """413 M_TOO_LARGE, at once the second time; the bytes themselves are still to be had."""
    data = png_bomb(30_000, 30_000) if bomb == "png" else gif_bomb(20_000, 10)
    mxc = await archive.put(data, f"image/{bomb}")
    for _ in range(2):
        path = at(mxc, width=320, height=240)
        assert await errcode(reader, path) == (413, "M_TOO_LARGE")
    async with reader.get(mxc) as answer:
        assert await answer.read() == data
    found = await reader.json(f"/api/v1/media/{mxc.server_name}/{mxc.media_id}")
    assert found["blob"]["processing"] == "failed"
    assert found["blob"]["processing_reason"].startswith("too large: ")


async def test_media_that_is_not_there(archive: Archive, reader: Reader) -> None:
    """Answered as a download is."""
    assert await errcode(reader, at(Mxc(SERVER, "a"), width=1, height=1)) == (404, "M_NOT_FOUND")
    waiting = await archive.put_state("pending", None)
    assert await errcode(reader, at(waiting, width=1, height=1)) == (504, "M_NOT_YET_UPLOADED")
    failed = await archive.put_state("failed", "gone")
    assert await errcode(reader, at(failed, width=1, height=1)) == (404, "M_NOT_FOUND")
    assert await errcode(reader, at(Mxc(SERVER, "a.b"), width=1, height=1)) == (
        400,
        "M_INVALID_PARAM",
    )
    async with reader.session.get(
        reader.server.make_url(at(waiting, width=1, height=1))
    ) as answer:
        assert answer.status == 401


async def test_many_askers_cause_one_rendering(archive: Archive, reader: Reader) -> None:
    """Fifty who ask at once for the same size get the same picture, made once."""
    path = at(await archive.put(PHOTO, "image/jpeg"), width=640, height=480)
    before = _renders()
    found = await asyncio.gather(*(picture(reader, path) for _ in range(50)))
    assert {one[:3] for one in found} == {("image/jpeg", 640, 853)}
    assert _renders() == before + 1
    assert (await picture(reader, path))[3] == "HIT"


async def test_readers_cannot_fill_the_store(archive: Archive, reader: Reader) -> None:
    """What is made beyond the limit is given, and not kept; a standard size still is."""
    mxc = await archive.put(encoded(quarters(400, 300)))
    await archive.pool.execute(
        "INSERT INTO variant (blob_sha256, recipe, sha256, width, height)"
        " SELECT sha256, 'number ' || n, sha256, 1, 1 FROM blob, generate_series(1, $1) AS n",
        MOST_KEPT,
    )
    path = at(mxc, width=64, height=32, method="crop")
    for _ in range(2):
        assert (await picture(reader, path))[1:] == (64, 32, "MISS")
    async with reader.ask(path, Range="bytes=0-3") as answer:
        assert (answer.status, await answer.read()) == (206, b"\xff\xd8\xff\xdb")
    standard = at(mxc, width=320, height=240)
    assert [(await picture(reader, standard))[3] for _ in range(2)] == ["MISS", "HIT"]


async def test_what_was_redacted_has_no_thumbnail_either(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """Where redacted media is hidden, so are its pictures: 404 for all but admins, who keep no
    copy."""
    mxc = await archive.put(PHOTO, "image/jpeg")
    event = await archive.refer(mxc)
    await archive.pool.execute(
        "UPDATE event SET redacted_by = '$r', redacted_at = now() WHERE event_id = $1", event
    )
    await archive.pool.execute("UPDATE media SET redacted_at = now()")
    secrets = await archive.token(), await archive.token("boss", Scope.ADMIN)
    path = at(mxc, width=320, height=240)
    async with serving(archive, database_url, hides_redacted=True) as server:
        plain, boss = (Reader(http, server, secret) for secret in secrets)
        for _ in range(2):
            assert await errcode(plain, path) == (404, "M_NOT_FOUND")
            assert await errcode(plain, ours(mxc, "width=96")) == (404, "M_NOT_FOUND")
            assert await errcode(boss, path) == (404, "M_NOT_FOUND")
            async with boss.ask(path + "&hidden=true") as answer:
                assert answer.status == 200
                assert answer.headers["Cache-Control"] == "private, no-store"


async def test_large_pictures_and_sources(archive: Archive, reader: Reader) -> None:
    """From a file of the object store, and into it: over the inline limit nothing differs."""
    noise = pyvips.Image.gaussnoise(900, 900).cast("uchar")
    data = encoded(noise.bandjoin([noise.rot90(), noise.rot180()]).copy(interpretation="srgb"))
    mxc = await archive.put(data)
    path = at(mxc, width=8000, height=1)
    async with reader.ask(path) as answer:
        made = await answer.read()
    assert len(made) > 64 * 1024
    async with reader.ask(path) as answer:
        assert (await answer.read(), answer.headers["X-Cache"]) == (made, "HIT")
    places = await archive.pool.fetch("SELECT place FROM blob")
    assert [row["place"] for row in places] == ["object", "object"]


def test_whoever_serves_decodes_nothing() -> None:
    """Neither libvips nor FFmpeg is imported by the archiver itself."""
    code = (
        "import sys, archiver.app, archiver.cli; "
        "from archiver.variants.maker import can_films; assert can_films(); "
        "assert not {'pyvips', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


FILL = """
INSERT INTO blob (sha256, size, place, mimetype)
SELECT sha256(n::text::bytea), 1, 'inline', 'image/png' FROM generate_series(1, 20000) AS n;
INSERT INTO blob_data SELECT sha256, '' FROM blob;
INSERT INTO media (server_name, media_id, state, blob_sha256)
SELECT 'a', n::text, 'ready', sha256(n::text::bytea) FROM generate_series(1, 20000) AS n;
INSERT INTO variant (blob_sha256, recipe, sha256, width, height)
SELECT sha256(n::text::bytea), 'scale 320x240', sha256((n + 1)::text::bytea), 1, 1
FROM generate_series(1, 19999) AS n;
ANALYZE;
"""


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_kept_thumbnail_is_one_statement_by_keys(pool: Pool, mode: str) -> None:
    """Media, blob, variant, its blob and its bytes: one row of each, whatever is archived."""
    await pool.execute(FILL)
    wish = "scale 320x240", "scale 320x240 animated", True
    asked: dict[str, tuple[Any, ...]] = {
        VIEW: ("a", "7", False, *wish),
        VIEW_WARILY: ("a", "7", False, True, *wish),
    }
    async with pool.acquire() as conn:
        await conn.execute(f"SET plan_cache_mode = {mode}")
        for statement, arguments in asked.items():
            text = await conn.fetchval("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, *arguments)
            found = list(nodes(orjson.loads(text)[0]["Plan"]))
            empty = "reference", "event"  # and never asked: a thumbnail has no file name of theirs
            assert_lean([node for node in found if node.get("Relation Name") not in empty])
            used = [node for node in found if "Index Name" in node]
            assert {"media_pkey", "variant_pkey", "blob_pkey", "blob_data_pkey"} <= {
                node["Index Name"] for node in used
            }
            assert max(node["Actual Rows"] * node["Actual Loops"] for node in used) == 1
        view = await variants.look(
            conn, Mxc("a", "7"), None, still=wish[0], moving=wish[1], with_data=True
        )
        assert view is not None
        assert view.made is not None


def _renders() -> float:
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        if metric.name == "archiver_renders"
        for sample in metric.samples
        if sample.name.endswith("_total")
    )
