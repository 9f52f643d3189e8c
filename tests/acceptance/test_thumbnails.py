"""Thumbnails of what people posted, after the homeserver forgot it."""

from __future__ import annotations

from typing import NamedTuple

import aiohttp
import pytest
import pyvips

from demo.people import People
from tests.acceptance.conftest import started
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.matrix import MatrixUser
from tests.support.pictures import (
    GPS_WORDS,
    QUARTERS,
    animation,
    clip,
    close_to,
    encoded,
    middle,
    png_bomb,
    quarters,
    with_metadata,
)

SIZES = (
    (32, 32, "crop"), (96, 96, "crop"), (64, 64, "crop"),
    (320, 240, "scale"), (640, 480, "scale"), (800, 600, "scale"), (100, 75, "scale"),
)  # fmt: skip
PATH = "/_matrix/client/v1/media/thumbnail"


class Sample(NamedTuple):
    """What is posted: 4 to 3, and upright once its orientation is applied."""

    data: bytes
    kind: str
    msgtype: str = "m.image"


# Stored lying on its side, as a phone writes it: rot270 undoes what orientation 6 does.
PHOTO = encoded(with_metadata(quarters(1600, 1200).rot270(), 6), ".jpg", Q=95)
SAMPLES = {
    "photo": Sample(PHOTO, "image/jpeg"),
    "drawing": Sample(encoded(with_metadata(quarters(1200, 900))), "image/png"),
    "animation": Sample(animation(5, 1000, 750), "image/gif"),
}
FILM = Sample(clip([(200, 40, 40)] * 6, width=1000, height=750), "video/mp4", "m.video")
BOMB = Sample(png_bomb(30_000, 30_000), "image/png")


@pytest.fixture
async def reader(archive: Archiver, http: aiohttp.ClientSession) -> Reader:
    """Someone who reads the archive, which runs."""
    return await started(archive, http)


async def post(user: MatrixUser, room: str, sample: Sample) -> str:
    """Returns the mxc URI."""
    mxc = await user.upload(sample.data, sample.kind, "sample")
    content = {"msgtype": sample.msgtype, "body": "sample", "url": mxc}
    await user.send(room, "m.room.message", content)
    return mxc


def asked(mxc: str, width: int, height: int, method: str) -> str:
    """The path and query, the same for either server."""
    name = mxc.removeprefix("mxc://")
    return f"{PATH}/{name}?width={width}&height={height}&method={method}"


def measured(data: bytes) -> tuple[int, int]:
    """Width and height."""
    image = pyvips.Image.new_from_buffer(data, "")
    return image.width, image.height


async def until_made(reader: Reader, mxc: str) -> None:
    """Waits until nothing is to be made of it any more."""

    async def is_made() -> bool:
        blob = (await reader.state(mxc))["blob"]
        return blob["processing"] in {"ready", "failed"}

    await eventually("its thumbnails are made", is_made)


async def test_thumbnails_outlive_the_homeservers_copy(
    reader: Reader, people: People, http: aiohttp.ClientSession
) -> None:
    """The same width and height as the homeserver's own, upright and without the place; also of
    the film, of which the homeserver makes none."""
    sizes = {}
    posted = {name: await post(people.alice, people.room, SAMPLES[name]) for name in SAMPLES}
    film = await post(people.bob, people.room, FILM)
    for name, mxc in posted.items():
        for size in SIZES:
            url = people.alice.url + asked(mxc, *size)
            async with http.get(url, headers=people.alice.headers) as answer:
                assert answer.status == 200, await answer.text()
                sizes[name, size] = measured(await answer.read())
    await reader.until("ready", *posted.values(), film)
    for mxc in (*posted.values(), film):
        await until_made(reader, mxc)
        await people.admin.delete_media(mxc)
    for (name, size), expected in sizes.items():
        data = await kept(reader, posted[name], size)
        assert measured(data) == expected, (name, size)
        assert not any(word in data for word in GPS_WORDS)
    for name in ("photo", "drawing"):
        spots = middle(await kept(reader, posted[name], (640, 480, "scale")))
        assert all(close_to(*pair) for pair in zip(spots, QUARTERS, strict=True)), name
    assert measured(await kept(reader, film, (320, 240, "scale"))) == (320, 240)
    blob = (await reader.state(film))["blob"]
    assert (blob["width"], blob["height"], blob["duration_ms"]) == (1000, 750, 3000)


async def test_no_thumbnail_is_smaller_than_the_homeservers(
    reader: Reader, people: People, http: aiohttp.ClientSession
) -> None:
    """Of a picture that is not 4 to 3, the homeserver's fits into the size asked for; ours covers
    it, as the specification has it: never smaller than asked."""
    mxc = await post(people.alice, people.room, Sample(encoded(quarters(600, 1200)), "image/png"))
    await reader.until("ready", mxc)
    size = (320, 240, "scale")
    url = people.alice.url + asked(mxc, *size)
    async with http.get(url, headers=people.alice.headers) as answer:
        theirs = measured(await answer.read())
    await until_made(reader, mxc)
    ours = measured(await kept(reader, mxc, size))
    assert theirs[0] <= ours[0]
    assert theirs[1] <= ours[1]
    assert ours == (320, 640)


async def test_a_bomb_costs_a_refusal(
    reader: Reader, people: People, http: aiohttp.ClientSession
) -> None:
    """Its bytes are archived; of its pixels none is decoded, and the reason is told."""
    mxc = await post(people.bob, people.room, BOMB)
    await reader.until("ready", mxc)
    await until_made(reader, mxc)
    found = (await reader.state(mxc))["blob"]
    assert found["processing"] == "failed"
    assert found["processing_reason"].startswith("too large: this picture has 30000 x 30000")
    async with reader.ask(asked(mxc, 320, 240, "scale")) as answer:
        assert (answer.status, (await answer.json())["errcode"]) == (413, "M_TOO_LARGE")
    assert await reader.download(mxc) == BOMB.data


async def kept(reader: Reader, mxc: str, size: tuple[int, int, str]) -> bytes:
    """A thumbnail that was made before it was asked for."""
    async with reader.ask(asked(mxc, *size)) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["X-Cache"] == "HIT"
        return await answer.read()
