"""Which media a request is about, and whether the reader may see it."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeVar

from aiohttp import web

from archiver.catalogue.media import Media
from archiver.catalogue.variants import View
from archiver.errors import InvalidParam, NotFound, Waiting
from archiver.model import Blob, Mxc, Scope, State
from archiver.serve.auth import SCOPE

ADMINS_ASK = "a token with scope admin sees it with ?hidden=true"

Found = TypeVar("Found", Media, View)

_checked = lru_cache(4096)(Mxc.checked)  # what is read now is mostly read again soon


def asked_for(request: web.Request) -> Mxc:
    """The media that the path names. Raises InvalidParam."""
    mxc = _checked(request.match_info["server"], request.match_info["id"])
    if mxc is None:
        raise InvalidParam("the path names no media: it holds a server name and a media id")
    return mxc


def sees_hidden(request: web.Request) -> bool:
    """True for an administrator who says that it is on purpose: no list of pictures shows by
    accident what was hidden for a reason."""
    return request[SCOPE] is Scope.ADMIN and request.query.get("hidden") == "true"


def unknown(mxc: Mxc) -> NotFound:
    """No event that the archive has seen names this media."""
    return NotFound(f"{mxc} is not in the archive")


def redacted(mxc: Mxc) -> NotFound:
    """Every event that names it was redacted, and the reader is no admin who asks for such."""
    return NotFound(f"{mxc} was redacted: {ADMINS_ASK}")


def ready(mxc: Mxc, media: Found | None, *, unhides: bool) -> tuple[Found, Blob]:
    """The media with its blob. Raises Waiting, or NotFound with the reason why there is none."""
    if media is None:
        raise unknown(mxc)
    if media.blob and media.state is State.QUARANTINED and not unhides:
        raise NotFound(f"{mxc} is in quarantine: {ADMINS_ASK}")
    if media.blob and media.state in (State.READY, State.QUARANTINED):
        return media, media.blob
    reason = f": {media.reason}" if media.reason else ""
    if media.state is State.PENDING:
        raise Waiting(f"{mxc} is not archived yet, and still being tried{reason}")
    raise NotFound(f"{mxc} is not to be had ({media.state}){reason}")
