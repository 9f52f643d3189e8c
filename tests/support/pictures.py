"""Pictures and films of every kind, friendly and hostile, made on the spot."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import pyvips

# Colours of the four quarters: top left, top right, bottom left, bottom right.
RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 220, 40)
QUARTERS = (RED, GREEN, BLUE, YELLOW)
GPS_WORDS = (b"GPSLatitude", b"Exif", b"http://ns.adobe.com/xap", b"48/1 51/1", b"SECRET PLACE")


def area(width: int, height: int, colour: Iterable[float]) -> pyvips.Image:
    """One colour."""
    image = pyvips.Image.black(width, height) + list(colour)
    return image.cast("uchar").copy(interpretation="srgb")


def quarters(width: int = 64, height: int = 48) -> pyvips.Image:
    """A red, a green, a blue and a yellow quarter, so that turning and mirroring shows."""
    parts = [area(width // 2, height // 2, colour) for colour in QUARTERS]
    return pyvips.Image.arrayjoin(parts, across=2).copy()


def encoded(image: pyvips.Image, suffix: str = ".png", **options: Any) -> bytes:
    """The bytes of a file with this suffix."""
    return bytes(image.write_to_buffer(suffix, **options))


def with_metadata(image: pyvips.Image, orientation: int = 1) -> pyvips.Image:
    """The same with EXIF (a place among it), XMP and an orientation."""
    image = image.copy()
    for name, value in (
        ("exif-ifd3-GPSLatitude", "48/1 51/1 2999/100"),
        ("exif-ifd3-GPSLatitudeRef", "N"),
        ("exif-ifd0-ImageDescription", "SECRET PLACE"),
    ):
        image.set_type(pyvips.GValue.gstr_type, name, value)
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>SECRET PLACE</x:xmpmeta>"
    image.set_type(pyvips.GValue.blob_type, "xmp-data", xmp)
    image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    return image


def animation(frames: int, width: int = 64, height: int = 48, suffix: str = ".gif") -> bytes:
    """Frames of changing colours, a tenth of a second each."""
    images = [
        quarters(width, height) if n % 2 else quarters(width, height).rot180()
        for n in range(frames)
    ]
    joined = pyvips.Image.arrayjoin(images, across=1).copy()
    joined.set_type(pyvips.GValue.gint_type, "page-height", height)
    joined.set_type(pyvips.GValue.array_int_type, "delay", [100] * frames)
    return encoded(joined, suffix)


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of zeros: a few hundred KiB that say they are many millions of pixels."""
    # A hundred rows are packed once: between full flushes deflate refers to nothing before.
    assert height % 100 == 0
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    rows = bytes((1 + width * 3) * 100)
    part = packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)
    adler = (len(rows) * height // 100 % 65521) << 16 | 1  # of zeros alone
    packed = b"\x78\xda" + part * (height // 100) + b"\x03\x00" + struct.pack(">I", adler)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    )


def gif_bomb(side: int, frames: int) -> bytes:
    """An animation of huge frames, each drawn by a few bytes that leave most of it out."""
    screen = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
    pixels = b"\x02\x02\x4c\x01\x00"  # one pixel: clear, 1, end
    frame = b"\x21\xf9\x04\x00\x0a\x00\x00\x00" + b"\x2c"
    frame += struct.pack("<HHHHB", 0, 0, side, side, 0) + pixels
    return screen + frame * frames + b"\x3b"


def clip(
    colours: Iterable[tuple[int, int, int]],
    *,
    kind: str = "mp4",
    codec: str = "mpeg4",
    width: int = 64,
    height: int = 48,
    rotation: int = 0,
) -> bytes:
    """A film of one keyframe a colour, two in a second."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=2)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 1
        if rotation:
            stream.set_display_rotation(rotation)
        for colour in colours:
            frame = av.VideoFrame(width, height, "rgb24")
            plane = frame.planes[0]
            row = (bytes(colour) * width).ljust(plane.line_size, b"\0")
            plane.update(row * height)
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    return out.getvalue()


def song_with_cover(cover: bytes) -> bytes:
    """The start of an MP3 file: an ID3 tag with a picture (APIC), and a second of silence.

    https://id3.org/id3v2.3.0#Attached_picture
    """
    body = b"\0image/jpeg\0\x03\0" + cover
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    silence = b"\xff\xfb\x90\xc4" + bytes(413)  # MPEG 1 layer III, 128 kbit/s, 44.1 kHz
    return b"ID3\x03\0\0" + size + frame + silence * 38


def middle(data: bytes) -> list[list[int]]:
    """The colours in the middle of the four quarters of an encoded picture."""
    image = pyvips.Image.new_from_buffer(data, "")
    spots = (
        (image.width * (1 + 2 * x) // 4, image.get_page_height() * (1 + 2 * y) // 4)
        for y in (0, 1)
        for x in (0, 1)
    )
    return [[round(value) for value in image(x, y)[:3]] for x, y in spots]


def close_to(found: Iterable[float], wanted: Iterable[float], within: int = 12) -> bool:
    """Whether a colour survived lossy encoding."""
    return all(abs(a - b) <= within for a, b in zip(found, wanted, strict=True))


def processes() -> Iterator[int]:
    """Our children that are helpers, by their command line."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            line = (folder / "cmdline").read_bytes()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if b"imaging" in line and int(parent) == os.getpid():
            yield int(folder.name)
