"""What goes with the bytes. Media is hostile: nothing here may become a page of ours.

https://spec.matrix.org/v1.16/client-server-api/#serving-inline-content
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from multidict import CIMultiDict

from archiver.media_types import INLINE_TYPES, agrees, essence

OCTET_STREAM = "application/octet-stream"
NAME_BYTES = 200
EXTENSION_BYTES = 16

# A page of any origin may ask, because it can only do so with a token in hand.
# https://spec.matrix.org/v1.16/client-server-api/#web-browser-clients
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": (
        "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, Retry-After,"
        " X-Cache"
    ),
}
PREFLIGHT = {
    **CORS,
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, If-None-Match, If-Range, Range, X-Requested-With"
    ),
    "Access-Control-Max-Age": "86400",
}
# Of everything that is not media: answers depend on the token, and change.
PRIVATE = {**CORS, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
# The bytes behind an mxc URI never change.
_MEDIA = CIMultiDict(
    {
        **CORS,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Security-Policy": (
            "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf;"
            " style-src 'unsafe-inline'; media-src 'self'; object-src 'self';"
        ),
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Referrer-Policy": "no-referrer",
        "X-Cache": "HIT",
        "X-Content-Type-Options": "nosniff",
        "X-Robots-Tag": "noindex, nofollow, noarchive, noimageindex",
    }
)

# RFC 9110, section 8.3.1, in visible ASCII only.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(
    rf'{_WORD}/{_WORD}(?:[ \t]*;[ \t]*{_WORD}=(?:{_WORD}|"[ !#-\[\]-~]*"))*', re.ASCII
)
_NOT_IN_QUOTES = re.compile(r'[^ !#$&-\[\]-~]|["\\%]')
# RFC 8187, section 3.2.1, leaves these as they are.
_ATTRIBUTE_CHARACTERS = "!#$&+-.^_`|~"


class Shown(NamedTuple):
    """How a body is labelled: its Content-Type, and whether a page may show it."""

    content_type: str
    inline: bool


@lru_cache(512)
def shown_as(declared: str | None, magic: str | None) -> Shown:
    """The declared type where it can be believed, or the magic number's where none is declared.

    What contradicts its own magic number is bytes to download, and so is what is no media type.
    """
    content_type = declared or magic or OCTET_STREAM
    believed = len(content_type) <= 255 and _MEDIA_TYPE.fullmatch(content_type)
    if not believed or not agrees(declared, magic):
        return Shown(OCTET_STREAM, inline=False)
    return Shown(content_type, essence(content_type) in INLINE_TYPES)


def media_headers(etag: str, shown: Shown, filename: str | None) -> CIMultiDict[str]:
    """All headers of a media but its length."""
    headers = _MEDIA.copy()
    headers["ETag"] = etag
    headers["Content-Type"] = shown.content_type
    headers["Content-Disposition"] = disposition(inline=shown.inline, filename=filename)
    return headers


@lru_cache(512)
def disposition(*, inline: bool, filename: str | None) -> str:
    """Content-Disposition as RFC 6266 has it, with a name that can do no harm."""
    kind = "inline" if inline else "attachment"
    name = _safe_name(filename) if filename else ""
    if not name:
        return kind
    plain = _NOT_IN_QUOTES.sub("_", name)
    if plain == name:
        return f'{kind}; filename="{name}"'
    encoded = quote(name, safe=_ATTRIBUTE_CHARACTERS)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def _safe_name(filename: str) -> str:
    """A plain file name: no path, no control or direction characters, not long, not hidden."""
    name = filename.replace("/", "_").replace("\\", "_")
    if not (name.isascii() and name.isprintable()):
        # Cc and Cf: NUL, CR, LF, and what writes exe.gpj backwards; Cs: halves of characters.
        name = "".join(c for c in name if unicodedata.category(c) not in _UNSEEN)
    name = name.strip().lstrip(".")
    if len(name.encode()) <= NAME_BYTES:
        return name
    stem, dot, extension = name.rpartition(".")
    if not dot or len(extension.encode()) > EXTENSION_BYTES:
        return _cut(name, NAME_BYTES)
    return f"{_cut(stem, NAME_BYTES - EXTENSION_BYTES)}.{extension}"


_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def _cut(text: str, size: int) -> str:
    return text.encode()[:size].decode("utf-8", "ignore")
