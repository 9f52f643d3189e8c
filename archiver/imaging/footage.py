"""Films and sound, by FFmpeg's libraries (PyAV). Imported by helper processes alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn

import av
import av.subtitles.stream  # which PyAV imports when it meets one: too late for a helper
import pyvips
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from archiver.errors import CannotRender, NotAnImage, TooLargeToRender
from archiver.imaging import picture
from archiver.imaging.recipe import MOST_PIXELS, Recipe
from archiver.imaging.wire import Footage, Rendered

_POSTER_AT = 1_000_000  # microseconds; before it films like to fade in
_MOST_KEYFRAMES = 6
_MOST_PACKETS = 5000  # some minutes of a film with its sound
_DARK = 20  # of 255, on average
_LIMITS = {"probesize": str(5 * 1024 * 1024), "analyzeduration": "5000000"}


def describe(fd: int) -> Footage:
    """Duration and upright size. Raises CannotRender, NotAnImage, TooLargeToRender."""
    with _open(fd) as container:
        film = _film(container)
        frame = next(_keyframes(container, film), None) if film else None
        width, height = _size(film, frame) if film else (None, None)
        duration = max(container.duration or 0, 0) // 1000 or None
        return Footage(duration, width, height, any(map(_is_cover, container.streams.video)))


def poster(fd: int, recipe: Recipe) -> Rendered:
    """A bright keyframe from about a second on, else the first one; else the cover.

    Raises CannotRender, NotAnImage, TooLargeToRender.
    """
    with _open(fd) as container:
        if film := _film(container):
            return picture.render_pixels(_choose_frame(container, film), recipe)
        for stream in filter(_is_cover, container.streams.video):
            for packet in container.demux(stream):
                if packet.size:
                    return picture.render(bytes(packet), recipe)
    raise CannotRender("there is neither a film nor a cover in this")


@contextlib.contextmanager
def _open(fd: int) -> Iterator[InputContainer]:
    """The container, of a kind told by its magic number: FFmpeg never guesses.

    Some kinds (playlists) name other files; none of those is allowed, and nothing else is opened.
    """
    kind = _sniff(os.pread(fd, 16, 0))
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        with (
            os.fdopen(os.dup(fd), "rb", buffering=0) as file,
            av.open(
                file, mode="r", format=kind, options=_LIMITS, io_open=_refuse_file
            ) as container,
        ):
            yield container
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, MemoryError):
            raise TooLargeToRender("decoding this film takes too much memory") from None
        raise CannotRender(f"this film or sound is damaged ({error})"[:200]) from None


def _refuse_file(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("one file is all there is")


def _sniff(magic: bytes) -> str:
    if magic[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free"}:
        return "mov"
    if magic[:4] == b"RIFF" and magic[8:12] == b"WAVE":
        return "wav"
    for start, kind in (
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"OggS", "ogg"),
        (b"fLaC", "flac"),
        (b"ID3", "mp3"),
        (b"\xff\xf1", "aac"),
        (b"\xff\xf9", "aac"),
        (b"\xff\xfb", "mp3"),
        (b"\xff\xf3", "mp3"),
        (b"\xff\xf2", "mp3"),
    ):
        if magic.startswith(start):
            return kind
    raise NotAnImage("this is no MP4, QuickTime, WebM, Matroska, Ogg, MP3, AAC, FLAC or WAV file")


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _film(container: InputContainer) -> VideoStream | None:
    film = next((s for s in container.streams.video if not _is_cover(s)), None)
    if film is None or film.codec_context is None:
        return None
    if film.codec_context.width * film.codec_context.height > MOST_PIXELS:
        raise TooLargeToRender("the frames of this film are too large")
    film.codec_context.thread_count = 1
    film.codec_context.thread_type = "NONE"
    film.codec_context.skip_frame = "NONKEY"
    film.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    return film


def _keyframes(container: InputContainer, film: VideoStream) -> Iterator[VideoFrame]:
    found = 0
    for number, packet in enumerate(container.demux(film)):
        for frame in packet.decode():
            if isinstance(frame, VideoFrame):
                yield frame
                found += 1
        if found >= _MOST_KEYFRAMES or number >= _MOST_PACKETS:
            return


def _choose_frame(container: InputContainer, film: VideoStream) -> pyvips.Image:
    """From the keyframe before the moment we like on; a short film is just begun again."""
    if (container.duration or 0) > _POSTER_AT:
        with contextlib.suppress(av.FFmpegError):  # not every file can be sought in
            container.seek(_POSTER_AT)
    first = None
    for frame in _keyframes(container, film):
        image = _pixels(frame)
        if image.avg() > _DARK:
            return image
        first = first or image
    if first is None:
        raise CannotRender("no frame of this film can be decoded")
    return first


def _pixels(frame: VideoFrame) -> pyvips.Image:
    plane = frame.reformat(format="rgb24").planes[0]
    row = plane.line_size
    # Rows are padded, and their length need not be a multiple of a pixel's.
    flat = pyvips.Image.new_from_memory(bytes(plane), row, frame.height, 1, "uchar")
    pixels = flat.crop(0, 0, 3 * frame.width, frame.height).bandfold(factor=3)
    image = pixels.copy(interpretation="srgb")
    match frame.rotation % 360:
        case 90:
            return image.rot270()
        case 180:
            return image.rot180()
        case 270:
            return image.rot90()
    return image


def _size(film: VideoStream, frame: VideoFrame | None) -> tuple[int, int]:
    width, height = film.codec_context.width, film.codec_context.height
    return (height, width) if frame and frame.rotation % 180 else (width, height)
