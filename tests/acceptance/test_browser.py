"""A real browser shows archived media by signed URLs in pages of another site, and runs nothing
of it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.acceptance.conftest import started
from tests.support import footage
from tests.support.archiver import Archiver, eventually
from tests.support.chromium import Chromium, Page, ScriptError
from tests.support.homeserver import Homeserver, body
from tests.support.panel import Panel
from tests.support.pictures import QUARTERS, close_to, encoded, quarters
from tests.support.scripted import SCRIPTED, Scripted
from tests.support.stage import Stage
from tools.setup_services import service_program

PICTURES = 20
FRAMING = ("iframe", "object", "embed")
PLACES = ("", "isolated")
BLOCKED = "Blocked script execution"
ABORTED = "net::ERR_ABORTED"  # what Chromium says of a visit that becomes a download


@pytest.fixture(scope="session")
def chromium(services_folder: Path) -> Iterator[Chromium]:
    """The browser that all tests share."""
    browser = Chromium(service_program("chromium"), services_folder / "chromium")
    browser.start()
    yield browser
    browser.stop()


@pytest.fixture
async def stage(
    chromium: Chromium,
    empty_database_url: str,
    lone_archive: Archiver,
    http: aiohttp.ClientSession,
) -> AsyncIterator[Stage]:
    """Everything is up, and nothing archived yet."""
    async with AsyncExitStack() as stack:
        homeserver = await stack.enter_async_context(Homeserver())
        panel = await stack.enter_async_context(Panel())
        page = await stack.enter_async_context(chromium.page(http))
        lone_archive.configure(homeserver.url, {"database": {"url": empty_database_url}})
        reader = await started(lone_archive, http)
        yield Stage(lone_archive, reader, http, homeserver, panel, page)
        await asyncio.to_thread(lone_archive.stop)


async def test_a_video_of_200_mb_is_sought_in(stage: Stage, tmp_path: Path) -> None:
    """A page of another site, isolated or not, shows a place near its end at once: ranges are
    asked for, and most of the file is never sent."""
    path = tmp_path / "film.webm"
    await asyncio.to_thread(footage.film, path, PICTURES)
    size = path.stat().st_size
    assert size >= 200_000_000

    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path, headers={"Content-Type": "video/webm"})

    media = await stage.archived("film", answer)
    assert (await stage.reader.state(str(media)))["blob"]["place"] == "object"
    url, page = await stage.signed(media), stage.page
    for place in PLACES:
        await page.visit(f"{stage.panel.url}/{place}")
        await _seek(page, url, "null")
        with pytest.raises(ScriptError, match="SecurityError"):  # seen by the person alone
            await _picture_shown(page)
        await _seek(page, url, "'anonymous'")
        answers = page.events("Network.responseReceived")
        asked = [each for each in answers if each["response"]["url"] == url]
        assert {each["response"]["status"] for each in asked} == {206}
        ours = {each["requestId"] for each in asked}
        data = page.events("Network.dataReceived")
        assert sum(each["dataLength"] for each in data if each["requestId"] in ours) < size / 4


async def _seek(page: Page, url: str, cross_origin: str) -> None:
    """Opens the film and goes near its end, near its start, and back."""
    duration = await page.evaluate(f"""\
        video = document.createElement('video')
        video.crossOrigin = {cross_origin}
        video.preload = 'metadata'
        video.src = {json.dumps(url)}
        shown(video, 'loadedmetadata').then(() => video.duration)""")
    assert duration == PICTURES * footage.PICTURE_SECONDS
    for number in (PICTURES - 1, 3, PICTURES - 2):
        seconds = footage.PICTURE_SECONDS * (number + 0.5)
        await page.evaluate(f"video.currentTime = {seconds}; shown(video, 'seeked').then(() => 0)")
        if cross_origin != "null":
            assert await _picture_shown(page) == number


async def _picture_shown(page: Page) -> int:
    """The number of the picture that the video stands at."""
    spots = [[0.25, 0.25], [0.75, 0.25]]
    left, right = await page.evaluate(f"pixels(video, {footage.WIDTH}, {footage.HEIGHT}, {spots})")
    return footage.number_of(left[0], right[0])


async def test_an_img_shows_a_signed_thumbnail(stage: Stage) -> None:
    """In a page of another site, isolated or not; without a signature that fits, nothing."""
    media = await stage.archived("picture", body(encoded(quarters(1280, 960))))
    url = await stage.signed(media, "thumbnail", width=320, height=240, method="scale")
    spots = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    for place in PLACES:
        await stage.page.visit(f"{stage.panel.url}/{place}")
        assert await _width(stage.page, url, "null") == 320
        assert await _width(stage.page, url, "'anonymous'") == 320
        found = await stage.page.evaluate(f"pixels(picture, 320, 240, {spots})")
        for colour, wanted in zip(found, QUARTERS, strict=True):
            assert close_to(colour[:3], wanted)
        unsigned = url.partition("?")[0] + "?width=320&height=240&method=scale"
        spoiled = url[:-9] + ("A" if url[-9] != "A" else "B") + url[-8:]
        for wrong in (unsigned, spoiled, url.replace("width=320", "width=640")):
            assert wrong != url
            with pytest.raises(ScriptError, match="it does not load"):
                await _width(stage.page, wrong, "null")


async def _width(page: Page, url: str, cross_origin: str) -> int:
    """The width of a picture that the page shows. Raises ScriptError."""
    width = await page.evaluate(f"""\
        picture = new Image()
        picture.crossOrigin = {cross_origin}
        picture.src = {json.dumps(url)}
        document.body.append(picture)
        shown(picture, 'load').then(() => picture.naturalWidth)""")
    return int(width)


async def test_no_script_of_archived_media_runs(stage: Stage) -> None:
    """However a page embeds it or somebody goes there, and whatever its sender declared: what
    could run is downloaded. From a server without our headers the very same scripts do run."""
    page, panel = stage.page, stage.panel
    for name, file in SCRIPTED.items():
        url = await stage.signed(await stage.scripted(name, file))
        await page.visit(f"{panel.url}/")
        for way in (*FRAMING, "img"):
            ended = await _placed(page, way, url)
            if way == "img":
                assert ended == ("load" if name == "svg" else "error"), name
            else:
                assert ended == ("load" if name == "html-as-text" else "download"), (name, way)
        if file.runs:
            await _runs_elsewhere(stage, file)
        await _nothing_ran(stage, name)
        refused = await page.visit(url)
        assert refused == ("" if name == "html-as-text" else ABORTED)
        await _nothing_ran(stage, name)


async def test_the_policy_alone_stops_every_script(stage: Stage) -> None:
    """Should a proxy drop Content-Disposition, the file is shown, and its script is blocked."""
    page, panel = stage.page, stage.panel
    for name, file in SCRIPTED.items():
        if not file.runs:
            continue
        data, headers = await stage.served(await stage.signed(await stage.scripted(name, file)))
        del headers["Content-Disposition"]
        url = panel.give(name, data, headers)
        for way in FRAMING:
            await page.visit(f"{panel.url}/")
            assert await _placed(page, way, url) == "load"
            await eventually("it is blocked", lambda: _says(page, BLOCKED))
            await _runs_elsewhere(stage, file)
            await _nothing_ran(stage, name)
        assert await page.visit(url) == ""
        await eventually("it is blocked", lambda: _says(page, BLOCKED))
        await _nothing_ran(stage, name)


async def _placed(page: Page, way: str, url: str) -> str:
    """Puts it into the page; returns what came of it: load, error or download."""
    before = len(page.events("Browser.downloadWillBegin"))
    await page.evaluate(f"place({way!r}, {json.dumps(url)})")
    came = ""

    async def has_ended() -> bool:
        nonlocal came
        downloads = page.events("Browser.downloadWillBegin")[before:]
        came = await page.evaluate(f"ending[{json.dumps(f'{way} {url}')}] || ''")
        came = came or ("download" if any(each["url"] == url for each in downloads) else "")
        return bool(came)

    await eventually(f"{way} shows something", has_ended)
    return came


async def _runs_elsewhere(stage: Stage, file: Scripted) -> None:
    """The same file without our headers does call; so whatever was to run before has run."""
    panel, name = stage.panel, f"armed-{secrets.token_hex(4)}"
    canary = panel.canary(name)
    url = panel.give(name, file.calling(canary), {"Content-Type": file.declared})
    assert await _placed(stage.page, "iframe", url) == "load"
    await eventually("the script elsewhere calls", lambda: name in panel.called)
    await eventually("it is read", lambda: _says(stage.page, canary))
    await stage.page.until(f"heard.includes({canary!r})")


async def _nothing_ran(stage: Stage, name: str) -> None:
    canary = stage.panel.canary(name)
    assert name not in stage.panel.called
    assert not _says(stage.page, canary)
    assert await stage.page.evaluate("document.title") != canary
    assert not await stage.page.evaluate(
        f"typeof heard === 'object' && heard.includes({canary!r})"
    )


def _says(page: Page, words: str) -> bool:
    return any(words in line for line in page.console)
