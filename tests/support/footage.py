"""A film as large as one likes, whose pictures tell their number."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import av

WIDTH, HEIGHT = 640, 480
MILLISECOND = Fraction(1, 1000)
PICTURE_SECONDS = 5
FRAMES_A_SECOND = 10
# The luma of the digits 0 to 9, far enough apart to survive encoding.
_DARKEST, _STEP = 40, 18


def film(path: Path, pictures: int) -> None:
    """Writes WebM (VP8): so many pictures, each of which stays for PICTURE_SECONDS.

    All frames are keyframes of about 200 KiB, so a picture makes 10 MiB; it is encoded once. Its
    upper left is as grey as the tens of its number, the upper right as its ones; the rest is
    noise, which cannot be packed.
    """
    frames = PICTURE_SECONDS * FRAMES_A_SECOND
    with av.open(path, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=FRAMES_A_SECOND)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = 1
        stream.bit_rate = 400_000_000
        stream.options = {"deadline": "realtime", "cpu-used": "8", "qmin": "0", "qmax": "4"}
        chance = random.Random(1)  # noqa: S311  # no secret, the same each time
        for number in range(pictures):
            (packet,) = stream.encode(_picture(number, chance))
            for frame in range(number * frames, (number + 1) * frames):
                packet.time_base = MILLISECOND
                packet.pts = packet.dts = frame * 1000 // FRAMES_A_SECOND
                packet.duration = 1000 // FRAMES_A_SECOND
                container.mux(packet)


def number_of(left: int, right: int) -> int:
    """The number of a picture by the grey (0 to 255) of its upper left and right."""
    lumas = [16 + grey * 219 / 255 for grey in (left, right)]
    tens, ones = (round((luma - _DARKEST) / _STEP) for luma in lumas)
    return tens * 10 + ones


def _picture(number: int, chance: random.Random) -> av.VideoFrame:
    frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
    greys = [bytes([_DARKEST + _STEP * digit]) for digit in divmod(number, 10)]
    row = b"".join(grey * (WIDTH // 2) for grey in greys)
    for plane, rows in zip(frame.planes, (HEIGHT, HEIGHT // 2, HEIGHT // 2), strict=True):
        upper = row if rows == HEIGHT else b"\x80" * (WIDTH // 2)
        width = len(upper)
        lines = [upper] * (rows // 2) + [chance.randbytes(width) for _ in range(rows // 2)]
        plane.update(b"".join(line.ljust(plane.line_size, b"\0") for line in lines))
    return frame
