"""Pictures, by libvips. Imported by helper processes alone."""

from __future__ import annotations

import os

import pyvips

from archiver.errors import CannotRender, NotAnImage, TooLargeToRender
from archiver.imaging.recipe import (
    Format,
    Plan,
    Probe,
    Recipe,
    choose_format,
    plan,
)
from archiver.imaging.wire import Rendered

File = int | bytes  # an open file, or all of one

MOST_BYTES = 256 * 1024**2  # some decoders map the whole file

_MAGIC = 12  # bytes by which the kinds are told apart
_LOADERS = {
    Format.JPEG: ("jpegload_source", "VipsForeignLoadJpeg"),
    Format.PNG: ("pngload_source", "VipsForeignLoadPng"),
    Format.WEBP: ("webpload_source", "VipsForeignLoadWebp"),
    Format.GIF: ("gifload_source", "VipsForeignLoadNsgif"),
    Format.AVIF: ("heifload_source", "VipsForeignLoadHeif"),
}
_WHITE = [255, 255, 255]


def set_up() -> None:
    """No decoder but ours, no cache: a helper never sees the same picture twice."""
    pyvips.block_untrusted_set(True)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for _, operation in _LOADERS.values():
        pyvips.operation_block_set(operation, False)
    pyvips.cache_set_max(0)


def probe(file: File) -> Probe:
    """What the header says. Raises CannotRender, NotAnImage, TooLargeToRender."""
    if isinstance(file, bytes):
        return _probe(file, _sniff(file))
    if os.fstat(file).st_size > MOST_BYTES:
        raise TooLargeToRender(f"this is over {MOST_BYTES // 1024**2} MiB, too much for a picture")
    return _probe(file, _sniff(os.pread(file, _MAGIC, 0)))


def render(file: File, recipe: Recipe) -> Rendered:
    """The picture that `recipe` asks for. Raises CannotRender, NotAnImage, TooLargeToRender."""
    source = probe(file)
    made = plan(recipe, source)
    try:
        image = _thumbnail(file, made, "[n=-1]" if made.frames > 1 else "")
        return _finish(image, recipe, made, source)
    except pyvips.Error as error:
        raise _refusal(error) from None


def render_pixels(image: pyvips.Image, recipe: Recipe) -> Rendered:
    """The same of a frame that was decoded elsewhere; it counts as a photo."""
    source = Probe(Format.JPEG, image.width, image.height, 1, has_alpha=False)
    made = plan(recipe, source)
    try:
        resized = image.thumbnail_image(made.width, height=made.height, size="force")
        return _finish(resized, recipe, made, source)
    except pyvips.Error as error:
        raise _refusal(error) from None


def _sniff(magic: bytes) -> Format:
    if magic.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if magic.startswith(b"\x89PNG\r\n\x1a\n"):
        return Format.PNG
    if magic.startswith((b"GIF87a", b"GIF89a")):
        return Format.GIF
    if magic[:4] == b"RIFF" and magic[8:12] == b"WEBP":
        return Format.WEBP
    if magic[4:8] == b"ftyp" and magic[8:12] in {b"avif", b"avis", b"mif1"}:
        return Format.AVIF
    raise NotAnImage("this is no JPEG, PNG, GIF, WebP or AVIF picture")


def _source(file: File) -> pyvips.Source:
    if isinstance(file, bytes):
        return pyvips.Source.new_from_memory(file)
    os.lseek(file, 0, os.SEEK_SET)
    return pyvips.Source.new_from_descriptor(file)


def _probe(file: File, kind: Format) -> Probe:
    loader = getattr(pyvips.Image, _LOADERS[kind][0])
    try:
        image = loader(_source(file))
        # A HEIF file's further pages are other pictures, not the next frames.
        frames = image.get_n_pages() if kind.moves else 1
        turned = image.get_typeof("orientation") and 5 <= image.get("orientation") <= 8
        width, height = image.width, image.height
        see_through = image.hasalpha()
    except pyvips.Error as error:
        raise _refusal(error) from None
    if turned:
        width, height = height, width
    return Probe(kind, width, height, frames, bool(see_through))


def _thumbnail(file: File, made: Plan, options: str) -> pyvips.Image:
    """Resized, upright and in sRGB; the decoder itself shrinks where it can.

    What a damaged file has is shown: a truncated photo is grey below.
    """
    return pyvips.Image.thumbnail_source(
        _source(file),
        made.width,
        height=made.height,
        option_string=options,
        size="force",
        output_profile="srgb",
        fail_on="none",
    )


def _finish(image: pyvips.Image, recipe: Recipe, made: Plan, source: Probe) -> Rendered:
    image = _cut(_to_8_bit(image), made)
    if made.frames == 1:
        image = _drop_opaque_alpha(image.copy_memory())
    kind = choose_format(recipe, made, source, image.hasalpha())
    if kind is Format.JPEG and image.hasalpha():
        image = image.flatten(background=_WHITE)
    data = _encode(image, kind, recipe.quality, made.frames > 1)
    return Rendered(data, kind.value, made.shown_width, made.shown_height, made.frames)


def _to_8_bit(image: pyvips.Image) -> pyvips.Image:
    if image.interpretation != "srgb":
        image = image.colourspace("srgb")
    return image if image.format == "uchar" else image.cast("uchar")


def _cut(image: pyvips.Image, made: Plan) -> pyvips.Image:
    """The middle of every frame. libvips keeps the frames of an animation below each other."""
    width, height = made.shown_width, made.shown_height
    if (made.width, made.height) == (width, height):
        return image
    left, top = (made.width - width) // 2, (made.height - height) // 2
    frames = [image.crop(left, top + n * made.height, width, height) for n in range(made.frames)]
    if len(frames) == 1:
        return frames[0]
    joined = pyvips.Image.arrayjoin(frames, across=1).copy()
    joined.set_type(pyvips.GValue.gint_type, "page-height", height)
    return joined


def _drop_opaque_alpha(image: pyvips.Image) -> pyvips.Image:
    """Screenshots have an alpha channel that hides nothing, and are no PNG for its sake."""
    if image.hasalpha() and image[image.bands - 1].min() == 255:
        return image.extract_band(0, n=image.bands - 1)
    return image


def _encode(image: pyvips.Image, kind: Format, quality: int, moves: bool) -> bytes:
    match kind:
        case Format.JPEG:
            return bytes(image.jpegsave_buffer(Q=quality, optimize_coding=True, keep="none"))
        case Format.PNG:
            return bytes(image.pngsave_buffer(compression=6, keep="none"))
        case Format.WEBP:
            effort = 2 if moves else 4
            return bytes(image.webpsave_buffer(Q=quality, effort=effort, keep="none"))
        case Format.GIF:
            return bytes(image.gifsave_buffer(effort=2, keep="none"))
        case Format.AVIF:
            q = max(1, quality - 15)  # about as good as a JPEG of `quality`
            return bytes(image.heifsave_buffer(compression="av1", Q=q, effort=2, keep="none"))


def _refusal(error: pyvips.Error) -> CannotRender | TooLargeToRender:
    said = str(error.detail).lower()
    if "memory" in said or "limit" in said:
        return TooLargeToRender("decoding this picture takes too much memory")
    reason = said.strip().rpartition("\n")[2][:200]
    return CannotRender(f"this picture is damaged or of an unusual kind ({reason})")
