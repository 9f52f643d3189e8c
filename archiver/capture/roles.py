"""The places where Matrix puts a media, and the role each place gives it.

The fields of a place are read from the raw JSON: any of them may have any type, or be missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from archiver.capture.walk import SCHEME, Found
from archiver.model import Role

# Tuples and not sets: whatever JSON holds can be looked up in them, lists and objects too.
# https://spec.matrix.org/v1.16/client-server-api/#mroommessage-msgtypes
_ATTACHMENTS = ("m.image", "m.video", "m.file", "m.audio")
_THUMBNAILED = (*_ATTACHMENTS, "m.location")
_GALLERIES = ("m.gallery", "dm.filament.gallery")
_PROFILES = ("m.per_message_profile", "com.beeper.per_message_profile")
_PREVIEWS = ("m.url_previews", "com.beeper.linkpreviews")
# MSC4095 says "encryption"; there are clients that say "encrypted".
_PREVIEW_FILES = (
    "matrix:image:encrypted",
    "matrix:image:encryption",
    "beeper:image:encryption",
)
_FILE_BLOCKS = ("m.file", "org.matrix.msc1767.file")
_THUMBNAIL_BLOCKS = ("m.thumbnail", "org.matrix.msc1767.thumbnail")
_CAPTION_BLOCKS = ("m.caption", "org.matrix.msc1767.caption")
_TEXT_BLOCKS = ("m.text", "org.matrix.msc1767.text")

_ENCRYPTION_KEYS = ("v", "key", "iv", "hashes")
_ANYWHERE = frozenset(
    ("formatted_body", *_PREVIEWS, *_PROFILES, *_FILE_BLOCKS, *_THUMBNAIL_BLOCKS)
)

_IMG = re.compile(r"<img\b", re.IGNORECASE)
# Read from where `<img` ends. Quoted values are stepped over whole: an alt text may hold a ">".
_IMG_SRC = re.compile(
    r"""(?:[^>"']|"[^"]*"|'[^']*')*?(?<![\w-])src\s*=\s*["']?(?P<url>mxc://[^\s"'<>]*)""",
    re.IGNORECASE,
)


def assign_roles(found: Found, event: dict[str, Any]) -> None:
    """Report every media that sits where Matrix has a name for it."""
    kind = event.get("type")
    collect = _BY_TYPE.get(kind) if isinstance(kind, str) else None
    content = _object(event.get("content"))
    # What an edit replaces with comes first: its outer names are fallbacks with a "* " before.
    for part in (content.get("m.new_content"), content):
        if isinstance(part, dict):
            if collect is not None:
                collect(found, part)
            _anywhere(found, part)
    if kind == "m.room.member":
        _member(found, _object(_object(event.get("unsigned")).get("prev_content")))


def _message(found: Found, content: dict[str, Any]) -> None:
    kind = content.get("msgtype")
    _attachment(found, content, kind, 0)
    if kind in _GALLERIES:  # MSC4274
        for item, fields in _objects(content.get("itemtypes")):
            _attachment(found, fields, fields.get("itemtype"), item)
            _emoticons(found, fields)


def _attachment(found: Found, fields: dict[str, Any], kind: Any, item: int) -> None:
    info = _object(fields.get("info"))
    if kind in _ATTACHMENTS:
        names = _names(fields.get("filename"), fields.get("body"))
        _file_and_url(found, fields, ("file", "url"), Role.CONTENT, item, info=info, **names)
    if kind in _THUMBNAILED:
        _thumbnail(found, info, item)


def _names(filename: Any, body: Any) -> dict[str, Any]:
    """v1.10 (MSC2530): beside a filename, a body that differs from it is a caption."""
    if not _string(filename):
        return {"filename": body}
    return {"filename": filename, "caption": body if body != filename else None}


def _thumbnail(found: Found, info: dict[str, Any], item: int = 0) -> None:
    keys = ("thumbnail_file", "thumbnail_url")
    declared = _object(info.get("thumbnail_info"))
    _file_and_url(found, info, keys, Role.THUMBNAIL, item, info=declared)


def _file_and_url(
    found: Found,
    fields: dict[str, Any],
    keys: tuple[str, str],
    role: Role,
    item: int = 0,
    **details: Any,
) -> None:
    """Report both, the encrypted file first: of two findings it is the one that says more."""
    file_key, url_key = keys
    file = fields.get(file_key)
    if isinstance(file, dict):
        found.add(file.get("url"), role, item, encrypted=file, **details)
    found.add(fields.get(url_key), role, item, **details)


def _sticker(found: Found, content: dict[str, Any]) -> None:
    info = _object(content.get("info"))
    body = content.get("body")
    _file_and_url(found, content, ("file", "url"), Role.STICKER, info=info, caption=body)
    _thumbnail(found, info)


def _room_avatar(found: Found, content: dict[str, Any]) -> None:
    info = _object(content.get("info"))
    found.add(content.get("url"), Role.AVATAR, info=info)
    _thumbnail(found, info)


def _member(found: Found, content: dict[str, Any]) -> None:
    found.add(content.get("avatar_url"), Role.AVATAR)


def _image_pack(found: Found, content: dict[str, Any]) -> None:
    # MSC2545: an image without a body is described by its shortcode.
    for item, (shortcode, image) in enumerate(_object(content.get("images")).items()):
        if isinstance(image, dict):
            info, caption = _object(image.get("info")), _string(image.get("body")) or shortcode
            found.add(image.get("url"), Role.PACK_IMAGE, item, info=info, caption=caption)
    found.add(_object(content.get("pack")).get("avatar_url"), Role.AVATAR)


def _reaction(found: Found, content: dict[str, Any]) -> None:
    # MSC4027
    found.add(_object(content.get("m.relates_to")).get("key"), Role.EMOTICON)


_BY_TYPE: dict[str, Callable[[Found, dict[str, Any]], None]] = {
    "m.room.message": _message,
    "m.sticker": _sticker,
    "m.room.avatar": _room_avatar,
    "m.room.member": _member,
    "m.room.image_pack": _image_pack,
    "im.ponies.room_emotes": _image_pack,
    "m.reaction": _reaction,
}


def _anywhere(found: Found, content: dict[str, Any]) -> None:
    """What any event's content may carry, whatever its type."""
    if _ANYWHERE.isdisjoint(content):  # nearly always, and each event passes here
        return
    _emoticons(found, content)
    _previews(found, content)
    for key in _PROFILES:  # MSC4144
        profile = content.get(key)
        if isinstance(profile, dict):
            _file_and_url(found, profile, ("avatar_file", "avatar_url"), Role.AVATAR)
    _extensible(found, content)


def _emoticons(found: Found, fields: dict[str, Any]) -> None:
    """MSC2545. Split at each tag first: the time grows with the text's length and no faster."""
    html = fields.get("formatted_body")
    if isinstance(html, str) and SCHEME in html:
        for attributes in _IMG.split(html)[1:]:
            if match := _IMG_SRC.match(attributes):
                found.add(match["url"], Role.EMOTICON)


def _previews(found: Found, content: dict[str, Any]) -> None:
    """MSC4095."""
    for item, preview in chain.from_iterable(_objects(content.get(key)) for key in _PREVIEWS):
        info = {"mimetype": preview.get("og:image:type"), "size": preview.get("matrix:image:size")}
        for key in _PREVIEW_FILES:
            file = preview.get(key)
            if isinstance(file, dict):
                found.add(file.get("url"), Role.PREVIEW, item, info=info, encrypted=file)
        found.add(preview.get("og:image"), Role.PREVIEW, item, info=info)


def _extensible(found: Found, content: dict[str, Any]) -> None:
    """MSC1767, 3551, 3552, 3553, 3927 and 3245: the file is a block of its own in any event."""
    for key in _FILE_BLOCKS:
        block = content.get(key)
        if isinstance(block, dict):
            name, caption = _string(block.get("name")), _string(_caption(content))
            if caption == name:
                caption = None
            _file_block(found, block, Role.CONTENT, filename=name, caption=caption)
    for _, thumbnail in chain.from_iterable(_objects(content.get(k)) for k in _THUMBNAIL_BLOCKS):
        # Older drafts had the file's keys right in the thumbnail.
        blocks = [b for b in map(thumbnail.get, _FILE_BLOCKS) if isinstance(b, dict)]
        for block in blocks or [thumbnail]:
            _file_block(found, block, Role.THUMBNAIL)


def _file_block(found: Found, block: dict[str, Any], role: Role, **names: Any) -> None:
    encrypted = {key: block[key] for key in _ENCRYPTION_KEYS if key in block}
    for url in (block.get("url"), block.get("uri")):
        found.add(url, role, info=block, encrypted=encrypted, **names)


def _caption(content: dict[str, Any]) -> Any:
    """The plain text of the caption, or of the event itself; any JSON if there is none."""
    block = next((content[k] for k in _CAPTION_BLOCKS + _TEXT_BLOCKS if k in content), None)
    for _ in range(4):  # at most m.caption -> m.text -> a representation -> its body
        if isinstance(block, list):
            block = next(filter(_is_plain, block), None)
        elif isinstance(block, dict):
            block = next((block[k] for k in (*_TEXT_BLOCKS, "body") if k in block), None)
    return block


def _is_plain(representation: Any) -> bool:
    kind = _object(representation).get("mimetype", "text/plain")
    return isinstance(kind, str) and kind.startswith("text/plain")


_NOTHING: dict[str, Any] = {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else _NOTHING


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _objects(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in an array, each with its index."""
    if isinstance(value, list):
        for index, member in enumerate(value):
            if isinstance(member, dict):
                yield index, member
