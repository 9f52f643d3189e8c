"""What the bytes themselves say: magic number, pixels, duration. Headers only; nothing is decoded.

Bodies are hostile. Readers see them through a window that stops after a budget of bytes, and a
parser that stumbles costs a fact, never the media.
"""

from __future__ import annotations

import io

import filetype
import imagesize
from tinytag import TinyTag

from archiver.model import Facts
from archiver.store.base import Body
from archiver.store.reader import BodyReader
from archiver.store.spool import in_thread

MAGIC_LENGTH = 8192
IMAGE_BUDGET = 256 * 1024
AUDIO_BUDGET = 4 * 1024 * 1024

_MEASURED_IMAGES = frozenset(
    f"image/{kind}"
    for kind in ("png", "apng", "jpeg", "gif", "webp", "avif", "heic", "bmp", "tiff")
)
_TIMED = frozenset(
    {"audio/mpeg", "audio/mp4", "audio/ogg", "audio/x-wav", "audio/x-flac", "audio/aac",
     "audio/x-aiff", "video/mp4", "video/quicktime", "video/x-m4v"}
)  # fmt: skip

# The library's own names, where the world has others.
_COMMON_NAME = {
    "audio/x-wav": "audio/wav",
    "audio/x-flac": "audio/flac",
    "video/x-m4v": "video/mp4",
}


async def inspect(body: Body) -> Facts:
    """The facts of a body that has arrived. Whatever cannot be told stays None."""
    kind = filetype.guess_mime(body.read_at(0, MAGIC_LENGTH))
    if kind in _MEASURED_IMAGES:
        return Facts(kind, *_pixels(body, kind))
    if kind in _TIMED:
        duration = await in_thread(None, _duration_ms, body, kind)
        return Facts(_COMMON_NAME.get(kind, kind), duration_ms=duration)
    return Facts(kind)


def kind_of(beginning: bytes) -> str | None:
    """The media type that the first bytes of a body tell, as `inspect` will."""
    kind = filetype.guess_mime(beginning[:MAGIC_LENGTH])
    return _COMMON_NAME.get(kind, kind) if kind else None


class _Window(BodyReader):
    """A body as a file that fails once `budget` bytes were read from it.

    It must not seem to end there: what a parser makes of half a file would be a wrong fact.
    """

    def __init__(self, body: Body, budget: int) -> None:
        super().__init__(body)
        self._budget = budget

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # a Buffer, in typeshed's newest words
        if not self._budget:
            raise OSError("looked at enough of this body")
        length = super().readinto(memoryview(buffer)[: self._budget])
        self._budget -= length
        return length


def _pixels(body: Body, kind: str) -> tuple[int | None, int | None]:
    """As the image is shown, turned by its EXIF orientation.

    Not for HEIF, whose tables of extents can name billions of them in a few bytes.
    """
    turned = kind not in {"image/avif", "image/heic"}
    try:
        with io.BufferedReader(_Window(body, IMAGE_BUDGET)) as file:
            width, height = imagesize.get(file, exif_rotation=turned)
    except Exception:  # noqa: BLE001  # a library's parser on hostile bytes may raise anything
        return None, None
    return (width, height) if 0 < width < 2**31 and 0 < height < 2**31 else (None, None)


def _duration_ms(body: Body, kind: str) -> int | None:
    name = f"x.{_EXTENSION.get(kind, kind.rpartition('/')[2])}"
    try:
        with io.BufferedReader(_Window(body, AUDIO_BUDGET)) as file:
            seconds = TinyTag.get(name, file_obj=file, tags=False).duration
    except Exception:  # noqa: BLE001  # a library's parser on hostile bytes may raise anything
        return None
    return round(seconds * 1000) or None if seconds and 0 < seconds < 1e9 else None


_EXTENSION = {
    "audio/mpeg": "mp3",
    "audio/x-wav": "wav",
    "audio/x-flac": "flac",
    "video/quicktime": "mp4",
}
