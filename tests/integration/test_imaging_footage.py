"""Films and sound through real helper processes: posters, covers, durations."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from archiver.errors import CannotRender, NotAnImage
from archiver.imaging.recipe import Method, Recipe
from archiver.imaging.renderer import Renderer
from archiver.imaging.wire import Footage
from tests.support.pictures import (
    BLUE,
    GREEN,
    RED,
    area,
    clip,
    close_to,
    encoded,
    middle,
    quarters,
    song_with_cover,
)
from tests.support.samples import film, wav

BLACK = (0, 0, 0)
SMALL = Recipe(Method.SCALE, 32, 24)


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    """A renderer of one helper."""
    async with Renderer(helpers=1) as renderer:
        yield renderer


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("mp4", "mpeg4"), ("mp4", "libx264"), ("mov", "mpeg4"), ("webm", "libvpx"),
     ("webm", "libvpx-vp9"), ("matroska", "mpeg4")],
)  # fmt: skip
async def test_films(renderer: Renderer, kind: str, codec: str) -> None:
    """The usual films give their duration, their size, and the keyframe at one second."""
    data = clip([BLUE, BLUE, RED, GREEN, GREEN, GREEN], kind=kind, codec=codec)
    found = await renderer.footage(data)
    assert found.duration_ms is not None
    assert found[1:] == (64, 48, False)
    assert 2900 <= found.duration_ms <= 3100
    made = await renderer.poster(data, SMALL)
    assert made[1:] == ("image/jpeg", 32, 24, 1)
    assert close_to(middle(made.data)[0], RED, 30)


async def test_a_film_that_fades_in(renderer: Renderer) -> None:
    """Black frames are passed over; a film that is all black has a black poster."""
    made = await renderer.poster(clip([BLACK] * 4 + [GREEN] * 4), SMALL)
    assert close_to(middle(made.data)[0], GREEN, 30)
    made = await renderer.poster(clip([BLACK] * 20), SMALL)
    assert close_to(middle(made.data)[0], BLACK, 30)


async def test_a_film_of_one_frame(renderer: Renderer) -> None:
    """A film too short to look further into shows how it begins."""
    made = await renderer.poster(clip([RED]), SMALL)
    assert close_to(middle(made.data)[0], RED, 30)
    assert (await renderer.footage(film(3))).duration_ms == 3000


@pytest.mark.parametrize("rotation", [90, 180, 270])
async def test_a_film_that_is_turned(renderer: Renderer, rotation: int) -> None:
    """Films of a telephone held upright are upright."""
    data = clip([RED, GREEN], rotation=rotation)
    upright = (64, 48) if rotation == 180 else (48, 64)
    assert (await renderer.footage(data))[1:3] == upright
    made = await renderer.poster(data, Recipe(Method.SCALE, 100, 100))
    assert (made.width, made.height) == upright


async def test_sound(renderer: Renderer) -> None:
    """Sound has a duration; its cover is its picture, and without one there is none."""
    song = song_with_cover(encoded(quarters(), ".jpg", Q=95))
    found = await renderer.footage(song)
    assert found.has_cover
    assert found.width is None
    assert found.duration_ms is not None
    assert 900 <= found.duration_ms <= 1100
    made = await renderer.poster(song, SMALL)
    assert (made.width, made.height) == (32, 24)
    assert close_to(middle(made.data)[0], RED, 40)
    assert await renderer.footage(wav(2)) == Footage(2000, None, None, False)
    with pytest.raises(CannotRender, match="neither a film nor a cover"):
        await renderer.poster(wav(2), SMALL)


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<?xml version='1.0'?><MPD/>",
        b"FORM" + bytes(40),
        encoded(area(9, 9, RED)),
    ],
)
async def test_other_kinds(renderer: Renderer, data: bytes) -> None:
    """Playlists and whatever else FFmpeg might guess are never given to it."""
    with pytest.raises(NotAnImage):
        await renderer.poster(data, SMALL)


async def test_damaged_films(renderer: Renderer) -> None:
    """A film that is cut off or garbled is refused, or shows what is left of it."""
    data = clip([RED] * 8, kind="matroska")
    for damaged in (data[:40], data[:12] + b"\x5a" * 3000, b"\0\0\0\x20ftypisom" + bytes(2000)):
        with pytest.raises(CannotRender):
            await renderer.poster(damaged, SMALL)
    made = await renderer.poster(data[: len(data) * 2 // 3], SMALL)
    assert close_to(middle(made.data)[0], RED, 30)
