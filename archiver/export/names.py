"""Names under which hostile media can lie in a folder: nothing that opens as a page or program."""

from __future__ import annotations

import re
import unicodedata

NAME_BYTES = 200
NO_NAME = "file"
HARMLESS = "bin"

# By magic number. SVG, HTML and whatever else a browser would carry out is none of them.
EXTENSIONS = {
    "image/jpeg": "jpg", "image/png": "png", "image/apng": "png", "image/gif": "gif",
    "image/webp": "webp", "image/avif": "avif", "image/heic": "heic", "image/bmp": "bmp",
    "image/tiff": "tiff", "image/jxl": "jxl",
    "video/mp4": "mp4", "video/webm": "webm", "video/quicktime": "mov", "video/ogg": "ogv",
    "video/x-matroska": "mkv", "video/mpeg": "mpg", "video/3gpp": "3gp", "video/x-msvideo": "avi",
    "audio/mpeg": "mp3", "audio/mp4": "m4a", "audio/ogg": "ogg", "audio/wav": "wav",
    "audio/flac": "flac", "audio/aac": "aac", "audio/webm": "weba", "audio/amr": "amr",
    "audio/midi": "mid", "audio/x-aiff": "aiff",
    "application/pdf": "pdf", "application/zip": "zip", "application/gzip": "gz",
    "application/x-7z-compressed": "7z", "application/x-tar": "tar", "application/x-bzip2": "bz2",
    "application/x-xz": "xz",
}  # fmt: skip

# Cc and Cf: NUL, line breaks, and what writes exe.gpj backwards; Cs: halves of characters.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_RESERVED = re.compile(r'[/\\:*?"<>|]')
_DEVICE = re.compile(r"(?i)(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)")


def extension_of(mimetype: str | None) -> str:
    """What a file of this type, told by its magic number, ends with: letters and digits."""
    return EXTENSIONS.get(mimetype or "", HARMLESS)


def blob_name(sha256: bytes, mimetype: str | None) -> str:
    """Where a blob lies in a bag."""
    name = sha256.hex()
    return f"data/blobs/{name[:2]}/{name}.{extension_of(mimetype)}"


def safe_name(filename: str | None, extension: str) -> str:
    """A plain file name after the sender's own, which ends in `.extension`.

    At most 200 bytes of UTF-8; no path, nothing hidden, nothing unseen, no name that a system
    keeps for itself.
    """
    seen = "".join(c for c in filename or "" if unicodedata.category(c) not in _UNSEEN)
    name = _RESERVED.sub("_", seen).lstrip(". ").rstrip(". ")
    stem = name.removesuffix(f".{extension}")
    room = NAME_BYTES - len(extension) - 1
    stem = stem.encode()[:room].decode("utf-8", "ignore").rstrip(". ") or NO_NAME
    if _DEVICE.match(stem):
        stem = f"_{stem}"[:room]
    return f"{stem}.{extension}"
