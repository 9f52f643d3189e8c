"""What commands are about: media, events, people and rooms, in every way that Matrix names them.

https://spec.matrix.org/v1.16/appendices/#uris
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple
from urllib.parse import unquote

import click

from archiver.catalogue.holds import span_of
from archiver.errors import OperationError, RoomUnreadable
from archiver.matrix.history import History
from archiver.model import Mxc

Kind = Literal["mxc", "event", "user", "room", "alias", "hash", "span"]

_MXC = re.compile(r"mxc://([^/?#]*)/([^/?#]*)")
_IDENTIFIER = re.compile(r"[$@!#][^\s\0]{1,254}")
_LINK = re.compile(r"https?://matrix\.to/#/([^?]+)(?:\?.*)?", re.DOTALL)
_URI = re.compile(r"matrix:([^?]+)(?:\?.*)?", re.DOTALL)
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_SIGILS: dict[str, Kind] = {"$": "event", "@": "user", "!": "room", "#": "alias"}
_URI_SIGILS = {"u": "@", "user": "@", "r": "#", "room": "#", "roomid": "!", "e": "$", "event": "$"}
_NAMES = {
    "mxc": "a media like mxc://server/id",
    "event": "an event ($... or its matrix.to link)",
    "user": "a user like @name:server",
    "room": "a room (!..., #alias:server or its matrix.to link)",
    "hash": "bytes (sha256: and 64 hexadecimal digits)",
    "span": "a span of time (2024-01-01..2024-01-31)",
}


class Target(NamedTuple):
    """What a command is about. An `alias` becomes a `room` by `settled`."""

    kind: Kind
    value: str

    def __str__(self) -> str:
        return self.value


def target_of(text: str) -> Target | None:
    """What the text names: an identifier, an mxc, a matrix.to link or a matrix: URI."""
    match = _MXC.fullmatch(text)
    if match:
        mxc = Mxc.checked(match[1], match[2])
        return Target("mxc", str(mxc)) if mxc else None
    identifier = _identifier(text)
    if not _IDENTIFIER.fullmatch(identifier) or not identifier.isprintable():
        return None
    if identifier[0] in "@#" and ":" not in identifier:
        return None
    return Target(_SIGILS[identifier[0]], identifier)


def bytes_or_span_of(text: str) -> Target | None:
    """What the text names besides: bytes by their SHA-256, or a span of time `from..to`."""
    if _HASH.fullmatch(text.lower()):
        return Target("hash", text.lower())
    return Target("span", text) if span_of(text) else None


def mxc_of(target: Target) -> Mxc:
    """The media that a target of the kind `mxc` names."""
    server_name, media_id = target.value.removeprefix("mxc://").split("/")
    return Mxc(server_name, media_id)


async def settled(target: Target, history: History) -> Target:
    """The same, with a room's id for its alias. Raises OperationError where there is none."""
    if target.kind != "alias":
        return target
    try:
        return Target("room", await history.room_id(target.value))
    except RoomUnreadable as error:
        raise OperationError(f"{target.value}: {error}") from error


class TargetType(click.ParamType[Target]):
    """One of some kinds of target."""

    name = "target"

    def __init__(self, *kinds: Literal["mxc", "event", "user", "room", "hash", "span"]) -> None:
        self._kinds = kinds

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Target:
        """Refuses what names nothing, or another kind, and says what was expected."""
        if isinstance(value, Target):
            return value
        target = target_of(str(value)) or bytes_or_span_of(str(value))
        if (
            target is None
            or ("room" if target.kind == "alias" else target.kind) not in self._kinds
        ):
            expected = " or ".join(_NAMES[kind] for kind in self._kinds)
            self.fail(f"{str(value)!r} is not {expected}", param, ctx)
        return target


MXC = TargetType("mxc")
EVENT = TargetType("event")
ROOM = TargetType("room")
USER = TargetType("user")
ANY_TARGET = TargetType("mxc", "event", "user", "room")
HIDEABLE = TargetType("mxc", "event", "user", "room", "hash")
HOLDABLE = TargetType("mxc", "event", "user", "room", "hash", "span")


def _identifier(text: str) -> str:
    """The last identifier of a link, else the text as it is."""
    if match := _LINK.fullmatch(text):
        return unquote(match[1].strip("/").rpartition("/")[2])
    if match := _URI.fullmatch(text):
        parts = match[1].split("/")
        if len(parts) in (2, 4) and parts[-2] in _URI_SIGILS:
            return _URI_SIGILS[parts[-2]] + unquote(parts[-1])
    return text
