"""What is found out about bodies, friendly and hostile ones, without decoding them."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.fetch.inspect import AUDIO_BUDGET, IMAGE_BUDGET, MAGIC_LENGTH, inspect
from archiver.model import Facts
from tests.support.samples import film, png, wav


class CountedBody:
    """A body in memory that counts what was read of it, or pretends to be longer than it is."""

    sha256 = b""
    data = None

    def __init__(self, content: bytes, size: int | None = None) -> None:
        self.size = len(content) if size is None else size
        self.read = 0
        self._content = content

    def read_at(self, offset: int, length: int) -> bytes:
        data = self._content[offset : offset + length]
        if not data and offset < self.size:  # its far end: zeros
            data = bytes(min(length, self.size - offset))
        self.read += len(data)
        return data

    def fileno(self) -> int:
        raise OSError("in memory")


async def facts(content: bytes) -> Facts:
    return await inspect(CountedBody(content))


def box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I", len(data) + 8) + kind + data


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg(width: int, height: int, orientation: int) -> bytes:
    tiff = b"MM\0*" + struct.pack(">IH", 8, 1)
    tiff += struct.pack(">HHIHH", 0x112, 3, 1, orientation, 0) + bytes(4)
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes(9)
    exif = segment(0xE1, b"Exif\0\0" + tiff)
    return b"\xff\xd8" + exif + segment(0xC0, frame) + segment(0xDA, bytes(10)) + b"\xff\xd9"


def avif(width: int, height: int, *more: bytes) -> bytes:
    size = box(b"ispe", bytes(4), struct.pack(">II", width, height))
    link = box(b"ipma", bytes(4), struct.pack(">IHBB", 1, 1, 1, 1))
    first = box(b"pitm", bytes(4), struct.pack(">H", 1))
    meta = box(b"meta", bytes(4), first, *more, box(b"iprp", box(b"ipco", size), link))
    return box(b"ftyp", b"avif", bytes(4), b"avifmif1") + meta + box(b"mdat", b"pixels")


def webp(chunk: bytes, data: bytes) -> bytes:
    inner = b"WEBP" + chunk + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def flac(seconds: int) -> bytes:
    rate = 44_100
    stream = rate << 44 | 1 << 41 | 15 << 36 | seconds * rate
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + stream.to_bytes(8, "big") + bytes(16)
    return b"fLaC" + struct.pack(">I", 0x80000000 | len(info)) + info + b"\xff\xf8" + bytes(50)


def ogg_page(kind: int, granule: int, data: bytes, number: int) -> bytes:
    lacing = bytes([255] * (len(data) // 255) + [len(data) % 255])
    head = struct.pack("<4sBBqIII", b"OggS", 0, kind, granule, 7, number, 0)
    return head + bytes([len(lacing)]) + lacing + data


def opus(seconds: int, pages: int = 3) -> bytes:
    head = b"OpusHead" + struct.pack("<BBHIHB", 1, 1, 0, 48_000, 0, 0)
    parts = [ogg_page(2, 0, head, 0), ogg_page(0, 0, b"OpusTags" + bytes(8), 1)]
    for page in range(1, pages + 1):
        granule = 48_000 * seconds * page // pages
        parts.append(ogg_page(4 * (page == pages), granule, bytes(60_000), page + 1))
    return b"".join(parts)


def mp3(seconds: int) -> bytes:
    frame = b"\xff\xfb\x90\x00" + bytes(413)  # MPEG 1, layer III, 128 kbit/s, 44,100 Hz
    return frame * round(seconds * 44_100 / 1152)


SAMPLES: dict[str, tuple[bytes, Facts]] = {
    "png": (png(3, 5, (9, 9, 9)), Facts("image/png", 3, 5)),
    "jpeg": (jpeg(640, 480, 1), Facts("image/jpeg", 640, 480)),
    "jpeg, turned": (jpeg(640, 480, 6), Facts("image/jpeg", 480, 640)),
    "gif": (b"GIF89a" + struct.pack("<HHBBB", 7, 9, 0, 0, 0) + b";", Facts("image/gif", 7, 9)),
    "webp, extended": (
        webp(b"VP8X", bytes(4) + (99).to_bytes(3, "little") + (49).to_bytes(3, "little")),
        Facts("image/webp", 100, 50),
    ),
    "webp, lossless": (
        webp(b"VP8L", b"\x2f" + struct.pack("<I", 19 << 14 | 9) + bytes(8)),
        Facts("image/webp", 10, 20),
    ),
    "avif": (avif(320, 200), Facts("image/avif", 320, 200)),
    "bmp": (
        b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 8, -6, 1, 24) + bytes(60),
        Facts("image/bmp", 8, 6),
    ),
    "wav": (wav(1.5), Facts("audio/wav", duration_ms=1500)),
    "flac": (flac(3), Facts("audio/flac", duration_ms=3000)),
    "opus": (opus(12), Facts("audio/ogg", duration_ms=12_000)),
    "mp3": (mp3(10), Facts("audio/mpeg", duration_ms=10_005)),
    "film": (film(2), Facts("video/quicktime", duration_ms=2000)),
    "mp4": (film(2).replace(b"qt  ", b"isom"), Facts("video/mp4", duration_ms=2000)),
    "webm": (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm" + bytes(90), Facts("video/webm")),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", Facts("application/pdf")),
    "zip": (b"PK\x03\x04" + bytes(60), Facts("application/zip")),
    "html": (b"<!DOCTYPE html><script>alert(1)</script>", Facts()),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', Facts()),
    "json": (b'{"a": 1}', Facts()),
    "text": (b"P6 1 1", Facts()),
    "nothing": (b"", Facts()),
    "noise": (bytes(random.Random(4).randbytes(3000)), Facts()),  # noqa: S311  # no secret
}
CONTENTS = [content for content, _ in SAMPLES.values()]


@pytest.mark.parametrize(("content", "expected"), SAMPLES.values(), ids=SAMPLES)
async def test_what_the_bytes_say(content: bytes, expected: Facts) -> None:
    """Type, pixels as shown, and duration are read from the headers of the common kinds."""
    assert await facts(content) == expected


@pytest.mark.parametrize("content", CONTENTS, ids=SAMPLES)
async def test_a_cut_body_never_raises(content: bytes) -> None:
    """Wherever a body ends, it is only known less of."""
    for length in range(min(200, len(content))):
        cut = await facts(content[:length])
        assert cut.width is None or cut.width > 0


@settings(deadline=None)
@given(st.binary(max_size=2000))
async def test_random_bytes_never_raise(content: bytes) -> None:
    """Any bytes are a body."""
    await facts(content)


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(list(SAMPLES)),
    changes=st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=9))),
)
async def test_mutated_headers_never_raise(name: str, changes: list[tuple[int, bytes]]) -> None:
    """Real headers with nonsense in their fields: facts are positive and fit their columns."""
    mutated = bytearray(SAMPLES[name][0])
    for offset, data in changes:
        mutated[offset : offset + len(data)] = data
    found = await facts(bytes(mutated))
    for pixels in (found.width, found.height):
        assert pixels is None or 0 < pixels < 2**31
    assert found.duration_ms is None or 0 < found.duration_ms < 2**63


@pytest.mark.parametrize("content", CONTENTS, ids=SAMPLES)
async def test_the_budget_holds(content: bytes) -> None:
    """Of a film of a terabyte no more is read than of a short one, whatever its headers say."""
    body = CountedBody(content, size=1 << 40)
    await inspect(body)
    assert body.read <= MAGIC_LENGTH + max(IMAGE_BUDGET, AUDIO_BUDGET)


@settings(deadline=None, max_examples=50)
@given(name=st.sampled_from(list(SAMPLES)), offset=st.integers(4, 300), data=st.binary(max_size=9))
async def test_the_budget_holds_for_liars(name: str, offset: int, data: bytes) -> None:
    """Lengths and offsets that are made up lead nowhere beyond the budget either."""
    content, _ = SAMPLES[name]
    body = CountedBody(content[:offset] + data + content[offset + len(data) :], size=1 << 40)
    await inspect(body)
    assert body.read <= MAGIC_LENGTH + max(IMAGE_BUDGET, AUDIO_BUDGET)


async def test_what_was_not_seen_is_not_told() -> None:
    """A recording too long to be read to its end has no duration, rather than a short one."""
    content = opus(3600, pages=80)
    assert len(content) > AUDIO_BUDGET
    assert await facts(content) == Facts("audio/ogg")


async def test_an_image_header_behind_much_metadata() -> None:
    """A camera's previews and profiles before the frame header are passed over."""
    content = jpeg(640, 480, 1)
    profile = segment(0xE2, bytes(65_000))
    assert await facts(content[:2] + profile * 20 + content[2:]) == Facts("image/jpeg", 640, 480)


async def test_a_table_of_billions_of_extents_is_not_built() -> None:
    """A few bytes of AVIF can name extents that would fill all memory."""
    item = struct.pack(">IHHH", 1, 0, 0, 65_535)
    bomb = box(b"iloc", b"\2", bytes(3), bytes(2), struct.pack(">I", 100), item * 100)
    tracemalloc.start()
    try:
        assert await facts(avif(320, 200, bomb)) == Facts("image/avif", 320, 200)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
