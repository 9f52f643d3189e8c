"""Pages to look through a bag offline: plain HTML without scripts, all words of others escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING

from archiver.export.names import extension_of, safe_name
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Row

INDEX = "data/index.html"

_TOP = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src 'self' file:; \
media-src 'self' file:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 1rem/1.4 sans-serif; margin: 1rem auto; max-width: 50rem; padding: 0 1rem }}
article {{ border-top: 1px solid #999; padding: .5rem 0 }}
img, video {{ display: block; max-height: 20rem; max-width: 100% }}
p {{ margin: .3rem 0; overflow-wrap: anywhere; white-space: pre-wrap }}
small {{ color: #555 }}
</style></head><body>
<h1>{title}</h1>
"""
_END = "</body></html>\n"
_PICTURES = frozenset({"jpg", "png", "gif", "webp", "avif", "bmp"})
_FILMS = frozenset({"mp4", "webm", "mov", "ogv"})
_SOUNDS = frozenset({"mp3", "m4a", "ogg", "wav", "flac", "aac", "weba"})


def page_name(number: int) -> str:
    """Where a page lies, the first being number 1."""
    return INDEX if number == 1 else f"data/page-{number}.html"


def page(
    title: str,
    number: int,
    articles: Iterable[str],
    *,
    last: bool,
) -> bytes:
    """A page with links to its neighbours."""
    links = []
    if number > 1:
        links.append(_link(number - 1, "Earlier"))
    if not last:
        links.append(_link(number + 1, "Later"))
    way = f"<nav>{' · '.join(links)}</nav>\n"
    parts = [_TOP.format(title=escape(title)), way, *articles, way, _END]
    return "".join(parts).encode("utf-8", "replace")


def article(
    event: Row, references: Iterable[Row], media: Mapping[Mxc, Row], paths: Mapping[Mxc, str]
) -> str:
    """An event with the media that it names. `paths`: where in the bag their bytes lie."""
    when = event["sent_at"].strftime("%Y-%m-%d %H:%M:%S UTC")
    who = f"<b>{_words(event['sender'] or 'somebody')}</b>"
    head = f"<p>{who} <small>{when} in {_words(event['room_id'] or 'no room')}</small></p>"
    if event["redacted_by"]:
        head += "<p><small>redacted</small></p>"
    shown = []
    for reference in references:
        mxc = Mxc(reference["server_name"], reference["media_id"])
        shown.append(_media(reference, mxc, media.get(mxc), paths.get(mxc)))
    return f"<article>{head}{''.join(shown)}</article>\n"


def _media(reference: Row, mxc: Mxc, row: Row | None, path: str | None) -> str:
    caption = f"<p>{_words(reference['caption'])}</p>" if reference["caption"] else ""
    if row is None or path is None:
        why = f"{row['state']}: {row['reason'] or 'not archived'}" if row else "not archived"
        return f"{caption}<p><small>{_words(str(mxc))} is not here ({_words(why)})</small></p>"
    extension = extension_of(row["mimetype"])
    name = safe_name(reference["filename"] or row["upload_name"], extension)
    source = escape(path.removeprefix("data/"))
    words = _words(reference["filename"] or name)
    told = f'<a href="{source}" download="{escape(name)}">{words}</a>'
    size = f" <small>{reference['role']}, {row['size']:,} bytes</small>"
    return f"{_look(source, extension)}{caption}<p>{told}{size}</p>"


def _look(source: str, extension: str) -> str:
    if extension in _PICTURES:
        return f'<img src="{source}" alt="" loading="lazy">'
    if extension in _FILMS:
        return f'<video src="{source}" controls preload="none"></video>'
    if extension in _SOUNDS:
        return f'<audio src="{source}" controls preload="none"></audio>'
    return ""


def _link(number: int, words: str) -> str:
    return f'<a href="{page_name(number).removeprefix("data/")}">{words}</a>'


def _words(text: str) -> str:
    """Words of others: no markup, and nothing that turns the direction of what follows."""
    plain = "".join(c if c == "\n" or c.isprintable() else "\ufffd" for c in text)
    return f"<bdi>{escape(plain)}</bdi>" if not plain.isascii() else escape(plain)
