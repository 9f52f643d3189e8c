"""Real pictures through real helper processes: what comes out, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pyvips

from archiver.errors import CannotRender, NotAnImage
from archiver.imaging.recipe import MATRIX_FORMATS, Format, Method, Recipe
from archiver.imaging.renderer import Renderer
from tests.support.pictures import (
    GPS_WORDS,
    QUARTERS,
    animation,
    area,
    close_to,
    encoded,
    middle,
    quarters,
    with_metadata,
)

SMALL = Recipe(Method.SCALE, 32, 24)
SUFFIXES = {Format.JPEG: ".jpg", Format.PNG: ".png", Format.WEBP: ".webp", Format.GIF: ".gif",
            Format.AVIF: ".avif"}  # fmt: skip


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    """A renderer of one helper."""
    async with Renderer(helpers=1) as renderer:
        yield renderer


def shows_quarters(data: bytes) -> bool:
    return all(
        close_to(found, wanted, 25) for found, wanted in zip(middle(data), QUARTERS, strict=True)
    )


@pytest.mark.parametrize("target", list(Format))
@pytest.mark.parametrize("source", list(Format))
async def test_every_format(renderer: Renderer, source: Format, target: Format) -> None:
    """Each kind of picture is read, and each is made, with the colours in their places."""
    data = encoded(quarters(), SUFFIXES[source])
    recipe = Recipe(Method.SCALE, 32, 24, formats=(target,), quality=90)
    made = await renderer.render(data, recipe)
    assert made[1:] == (target.value, 32, 24, 1)
    decoded = pyvips.Image.new_from_buffer(made.data, "")
    assert (decoded.width, decoded.height) == (32, 24)
    assert shows_quarters(made.data)


@pytest.mark.parametrize(
    ("orientation", "turns"),
    [(1, ""), (2, "fliphor"), (3, "rot180"), (4, "flipver"), (5, "rot90 fliphor"), (6, "rot270"),
     (7, "rot270 fliphor"), (8, "rot90")],
)  # fmt: skip
async def test_orientation(renderer: Renderer, orientation: int, turns: str) -> None:
    """A picture is upright whatever way the camera was held, and probed as it is shown."""
    held = quarters(128, 96)
    for turn in turns.split():
        held = getattr(held, turn)()
    data = encoded(with_metadata(held, orientation), ".jpg", Q=95)
    found = await renderer.probe(data)
    made = await renderer.render(data, SMALL)
    assert (found.width, found.height) == (128, 96)
    assert (made.width, made.height) == (32, 24)
    assert shows_quarters(made.data)


@pytest.mark.parametrize("size", [16, 1000])
@pytest.mark.parametrize("kind", list(SUFFIXES))
async def test_nothing_but_the_picture_is_left(
    renderer: Renderer, kind: Format, size: int
) -> None:
    """Place, camera, text and profile are gone, also where nothing was resized."""
    data = encoded(with_metadata(quarters()), SUFFIXES[kind])
    assert kind is Format.GIF or any(word in data for word in GPS_WORDS)
    made = await renderer.render(data, Recipe(Method.SCALE, size, size, formats=tuple(Format)))
    assert not any(word in made.data for word in GPS_WORDS)
    decoded = pyvips.Image.new_from_buffer(made.data, "")
    assert not {"exif-data", "xmp-data", "iptc-data", "icc-profile-data"} & set(
        decoded.get_fields()
    )


async def test_colour_profiles(renderer: Renderer) -> None:
    """A picture in the colours of Display P3 looks the same in sRGB, without its profile."""
    wide = quarters().icc_transform("p3", input_profile="srgb")
    assert not close_to(wide(8, 8), QUARTERS[0], 5)
    made = await renderer.render(encoded(wide, ".png"), SMALL)
    assert shows_quarters(made.data)
    assert close_to(middle(made.data)[0], QUARTERS[0], 5)


async def test_cmyk(renderer: Renderer) -> None:
    """A JPEG for printing becomes one for screens."""
    printed = quarters().icc_transform("cmyk", input_profile="srgb", intent="relative")
    made = await renderer.render(encoded(printed, ".jpg", Q=95), SMALL)
    decoded = pyvips.Image.new_from_buffer(made.data, "")
    assert (decoded.interpretation, decoded.bands) == ("srgb", 3)
    red, green, blue, _ = middle(made.data)
    assert red[0] > 150 > max(red[1:])
    assert green[1] > 30 + max(green[0], green[2])
    assert blue[2] > 30 + max(blue[:2])


@pytest.mark.parametrize("grey", [False, True])
async def test_16_bit(renderer: Renderer, grey: bool) -> None:
    """Sixteen bits a channel become eight, without a shift in brightness."""
    image = area(64, 48, [120] if grey else [200, 120, 40]).cast("ushort") * 257
    image = image.cast("ushort").copy(interpretation="grey16" if grey else "rgb16")
    made = await renderer.render(encoded(image, ".png"), SMALL)
    decoded = pyvips.Image.new_from_buffer(made.data, "")
    assert decoded.format == "uchar"
    assert close_to(middle(made.data)[0], [120] * 3 if grey else [200, 120, 40], 4)


async def test_alpha(renderer: Renderer) -> None:
    """What is seen through stays so; an alpha channel that hides nothing is dropped."""
    clear = quarters().bandjoin(area(64, 48, [128]))
    made = await renderer.render(encoded(clear), SMALL)
    assert made.mimetype == "image/png"
    assert close_to(pyvips.Image.new_from_buffer(made.data, "")(3, 3), [*QUARTERS[0], 128], 3)
    opaque = await renderer.render(encoded(quarters().bandjoin(255)), SMALL)
    assert opaque.mimetype == "image/jpeg"
    only_jpeg = Recipe(Method.SCALE, 32, 24, formats=(Format.JPEG,))
    on_white = await renderer.render(encoded(clear), only_jpeg)
    assert close_to(middle(on_white.data)[0], [237, 142, 142], 10)


async def test_palette(renderer: Renderer) -> None:
    """A PNG with a palette, of one and of four bits, is read like any other."""
    for depth in (1, 4):
        data = encoded(quarters(), ".png", palette=True, bitdepth=depth)
        made = await renderer.render(data, SMALL)
        assert (made.width, made.height) == (32, 24)


@pytest.mark.parametrize("method", [Method.SCALE, Method.CROP])
@pytest.mark.parametrize("suffix", [".gif", ".webp"])
async def test_animations(renderer: Renderer, suffix: str, method: Method) -> None:
    """With `animated` every frame is there with its time; without it, the first alone."""
    data = animation(5, suffix=suffix)
    kind = Format.GIF if suffix == ".gif" else Format.WEBP
    assert (await renderer.probe(data))[:4] == (kind, 64, 48, 5)
    for formats, mimetype in ((MATRIX_FORMATS, "image/webp"), ((Format.GIF,), "image/gif")):
        recipe = Recipe(method, 24, 24, animated=True, formats=formats)
        made = await renderer.render(data, recipe)
        width = 32 if method is Method.SCALE else 24
        assert made[1:] == (mimetype, width, 24, 5)
        decoded = pyvips.Image.new_from_buffer(made.data, "", n=-1)
        assert (decoded.width, decoded.height, decoded.get_n_pages()) == (width, 24 * 5, 5)
        assert decoded.get("delay") == [100] * 5
    still = await renderer.render(data, Recipe(method, 24, 24))
    assert still.frames == 1
    assert pyvips.Image.new_from_buffer(still.data, "").get_n_pages() == 1


async def test_tiny_and_extreme_ones(renderer: Renderer) -> None:
    """One pixel stays one pixel, and a line of ten thousand is no trouble."""
    for width, height, recipe, size in (
        (1, 1, SMALL, (1, 1)),
        (1, 10_000, Recipe(Method.CROP, 96, 96), (1, 96)),
        (1, 10_000, Recipe(Method.SCALE, 32, 24), (1, 8192)),
        (10_000, 1, Recipe(Method.FIT, 32, 24), (32, 1)),
        (10_000, 3, Recipe(Method.CROP, 32, 2), (32, 2)),
    ):
        made = await renderer.render(encoded(area(width, height, [9, 9, 9])), recipe)
        assert (made.width, made.height) == size
        decoded = pyvips.Image.new_from_buffer(made.data, "")
        assert (decoded.width, decoded.height) == size


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
async def test_truncated(renderer: Renderer, suffix: str) -> None:
    """Of a photo that was cut off, the part that arrived is shown."""
    noise = pyvips.Image.gaussnoise(400, 300, mean=0, sigma=20)
    noisy = (quarters(400, 300) + noise).cast("uchar").copy(interpretation="srgb")
    data = encoded(noisy, suffix)
    made = await renderer.render(data[: len(data) * 2 // 3], SMALL)
    assert (made.width, made.height) == (32, 24)
    assert close_to(middle(made.data)[0], QUARTERS[0], 30)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x00" * 5000,
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg/>",
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        b"II*\0\x08\0\0\0",
        b"BM" + bytes(60),
        b"P6 9 9 255 " + bytes(243),
        b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x.png'\n",
        b"\x1f\x8b\x08\0" + bytes(30),
    ],
)
async def test_other_kinds(renderer: Renderer, data: bytes) -> None:
    """What is no picture of our kinds is told from its magic number and given to no decoder."""
    for ask in (renderer.render(data, SMALL), renderer.probe(data)):
        with pytest.raises(NotAnImage):
            await ask


@pytest.mark.parametrize("kind", list(SUFFIXES))
async def test_garbage_behind_the_magic_number(renderer: Renderer, kind: Format) -> None:
    """A file that only begins like a picture is refused, and the helper goes on."""
    data = encoded(quarters(), SUFFIXES[kind])
    with pytest.raises(CannotRender):
        await renderer.render(data[:12] + b"\xa5\x5a garbage" * 400, SMALL)
    assert (await renderer.render(data, SMALL)).width == 32
