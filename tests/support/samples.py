"""Small real media of every kind, made on the spot: PNG, WAV, and a QuickTime film."""

from __future__ import annotations

import io
import math
import struct
import wave
import zlib


def png(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A PNG picture: one colour that fades to black downwards."""
    rows = b"".join(
        b"\0" + bytes(round(part * (height - y) / height) for part in colour) * width
        for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def wav(seconds: float, hertz: int = 440) -> bytes:
    """A sine tone: 16 bit, mono, 8 kHz."""
    rate = 8000
    samples = (
        round(12_000 * math.sin(2 * math.pi * hertz * n / rate))
        for n in range(int(seconds * rate))
    )
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return out.getvalue()


def film(seconds: int, width: int = 64, height: int = 48) -> bytes:
    """A QuickTime film of one PNG picture a second, which common players show.

    ISO/IEC 14496-12 has the boxes, Apple's QuickTime File Format the codec `png `.
    """
    frames = [png(width, height, (40 * n % 256, 90, 200)) for n in range(seconds)]
    ftyp = _box(b"ftyp", b"qt  " + struct.pack(">I", 0) + b"qt  ")
    offset = len(ftyp) + 8
    offsets = []
    for frame in frames:
        offsets.append(offset)
        offset += len(frame)
    duration = struct.pack(">IIII", 0, 0, 1000, seconds * 1000)
    moov = _box(
        b"moov",
        _full(b"mvhd", duration + struct.pack(">IH10x", 0x10000, 0x100) + _MATRIX + bytes(24)
              + struct.pack(">I", 2)),
        _box(
            b"trak",
            _full(b"tkhd", struct.pack(">IIIII16x", 0, 0, 1, 0, seconds * 1000) + _MATRIX
                  + struct.pack(">II", width << 16, height << 16), flags=3),
            _box(
                b"mdia",
                _full(b"mdhd", duration + struct.pack(">HH", 0x55C4, 0)),
                _full(b"hdlr", b"mhlrvide" + bytes(12) + b"\0"),
                _box(
                    b"minf",
                    _full(b"vmhd", bytes(8), flags=1),
                    _box(b"dinf", _full(b"dref", struct.pack(">I", 1), _full(b"url ", flags=1))),
                    _box(b"stbl", *_sample_tables(frames, offsets, width, height)),
                ),
            ),
        ),
    )  # fmt: skip
    return ftyp + _box(b"mdat", *frames) + moov


_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def _sample_tables(
    frames: list[bytes], offsets: list[int], width: int, height: int
) -> list[bytes]:
    entry = bytes(6) + struct.pack(">H16xHHIIIH", 1, width, height, 72 << 16, 72 << 16, 0, 1)
    entry = _box(b"png ", entry + bytes(32) + struct.pack(">Hh", 24, -1))
    count = len(frames)
    return [
        _full(b"stsd", struct.pack(">I", 1), entry),
        _full(b"stts", struct.pack(">III", 1, count, 1000)),
        _full(b"stsc", struct.pack(">IIII", 1, 1, 1, 1)),
        _full(b"stsz", struct.pack(f">II{count}I", 0, count, *map(len, frames))),
        _full(b"stco", struct.pack(f">I{count}I", count, *offsets)),
    ]


def _full(kind: bytes, *parts: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags), *parts)


def _box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I", len(data) + 8) + kind + data
