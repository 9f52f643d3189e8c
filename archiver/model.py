"""The words of the archive as types: media, where events name it, what became of it."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, NamedTuple

SERVER_NAME_MAX = 255

# Server names: https://spec.matrix.org/v1.16/appendices/#server-name
# Media ids: https://spec.matrix.org/v1.16/client-server-api/#security-considerations-5
SERVER_NAME_PATTERN = r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z.-]{1,255})(?::[0-9]{1,5})?"
MEDIA_ID_PATTERN = r"[0-9A-Za-z_-]{1,255}"

_SERVER_NAME = re.compile(SERVER_NAME_PATTERN)
_MEDIA_ID = re.compile(MEDIA_ID_PATTERN)
_ONLY_DOTS = re.compile(r"\.*")


class Mxc(NamedTuple):
    """The two halves of `mxc://server_name/media_id`: the name of a media."""

    server_name: str
    media_id: str

    def __str__(self) -> str:
        return f"mxc://{self.server_name}/{self.media_id}"

    @classmethod
    def checked(cls, server_name: str, media_id: str) -> Mxc | None:
        """The name, if both halves obey Matrix's grammar; None otherwise."""
        if len(server_name) > SERVER_NAME_MAX or _ONLY_DOTS.fullmatch(server_name):
            return None
        if _SERVER_NAME.fullmatch(server_name) and _MEDIA_ID.fullmatch(media_id):
            return cls(server_name, media_id)
        return None


class Role(StrEnum):
    """What a reference's media is to the event that names it."""

    CONTENT = "content"
    THUMBNAIL = "thumbnail"
    AVATAR = "avatar"
    STICKER = "sticker"
    EMOTICON = "emoticon"
    PACK_IMAGE = "pack_image"
    PREVIEW = "preview"
    OTHER = "other"


class State(StrEnum):
    """What became of a media. Every one leaves `pending` with a reason or with bytes."""

    PENDING = "pending"
    READY = "ready"
    FAILED = "failed"
    EXCLUDED = "excluded"
    QUARANTINED = "quarantined"
    DELETED = "deleted"


class Place(StrEnum):
    """Where a blob's bytes are: in PostgreSQL, or in the object store."""

    INLINE = "inline"
    OBJECT = "object"


class Source(StrEnum):
    """By which door an event came in."""

    PUSH = "push"
    BACKFILL = "backfill"
    RECONCILE = "reconcile"


class Scope(StrEnum):
    """What a token of ours may do."""

    READ = "read"
    ADMIN = "admin"


class Reference(NamedTuple):
    """One event names one media in one role.

    `item` counts the attachments of an event (a gallery has several): a thumbnail and the content
    it belongs to share it. `encryption` is the sender's EncryptedFile without its url.
    """

    mxc: Mxc
    role: Role
    item: int = 0
    filename: str | None = None
    caption: str | None = None
    declared_type: str | None = None
    declared_size: int | None = None
    encryption: dict[str, Any] | None = None


class Facts(NamedTuple):
    """What the bytes themselves say: type by magic number, pixels, milliseconds."""

    mimetype: str | None = None
    width: int | None = None
    height: int | None = None
    duration_ms: int | None = None


class Blob(NamedTuple):
    """Bytes, named by their SHA-256. Many media may share one."""

    sha256: bytes
    size: int
    place: Place
    facts: Facts = Facts()
