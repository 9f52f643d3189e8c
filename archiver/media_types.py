"""Media types: when a declared one may be believed, and which may be shown inside a page."""

from __future__ import annotations

import filetype

# What the specification lets a browser show inline. No SVG, HTML or PDF: those can run scripts.
# https://spec.matrix.org/v1.16/client-server-api/#serving-inline-content
INLINE_TYPES = frozenset(
    {"text/css", "text/plain", "text/csv", "application/json", "application/ld+json",
     "image/jpeg", "image/gif", "image/png", "image/apng", "image/webp", "image/avif",
     "video/mp4", "video/webm", "video/ogg", "video/quicktime",
     "audio/mp4", "audio/webm", "audio/aac", "audio/mpeg", "audio/ogg", "audio/wave", "audio/wav",
     "audio/x-wav", "audio/x-pn-wav", "audio/flac", "audio/x-flac"}
)  # fmt: skip

# Containers and spellings under which the same bytes go.
_FAMILIES = (
    frozenset({"audio/ogg", "video/ogg", "application/ogg", "audio/opus"}),
    frozenset({"audio/mp4", "video/mp4", "audio/x-m4a", "audio/m4a", "audio/aac", "video/x-m4v",
               "video/quicktime", "video/3gpp", "audio/3gpp", "application/mp4"}),
    frozenset({"audio/webm", "video/webm", "video/x-matroska", "audio/x-matroska"}),
    frozenset({"audio/wav", "audio/wave", "audio/x-wav", "audio/x-pn-wav", "audio/vnd.wave"}),
    frozenset({"audio/flac", "audio/x-flac"}),
    frozenset({"audio/mpeg", "audio/mp3", "video/mpeg"}),
    frozenset({"image/jpeg", "image/jpg", "image/pjpeg"}),
    frozenset({"image/png", "image/apng", "image/vnd.mozilla.apng"}),
    frozenset({"image/heic", "image/heif", "image/avif"}),
    frozenset({"application/gzip", "application/x-gzip"}),
)  # fmt: skip
_RECOGNISED = frozenset(kind.mime for kind in filetype.TYPES) | frozenset().union(*_FAMILIES)


def essence(declared: str | None) -> str:
    """`text/plain` from `Text/Plain; charset=utf-8`; empty for none."""
    return (declared or "").partition(";")[0].strip().lower()


def agrees(declared: str | None, magic: str | None) -> bool:
    """True when a declared type may be believed: the magic number says the same, or nothing.

    Types that have no magic number (plain text, JSON) are believed as long as none is found; a
    type that would have shown one is not.
    """
    kind = essence(declared)
    if kind in {"", "application/octet-stream"}:
        return True
    if magic is None:
        return kind not in _RECOGNISED
    if magic == "application/zip":  # office documents and many others are zip archives
        return kind.startswith("application/")
    return kind == magic or any(kind in family and magic in family for family in _FAMILIES)
