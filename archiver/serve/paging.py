"""What readers write into paths and queries: names, limits, and where a page goes on."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson
from aiohttp import web

from archiver.catalogue.knowledge import Place
from archiver.errors import InvalidParam

PAGE = 50
MOST_A_PAGE = 100

T = TypeVar("T")


def named(request: web.Request, key: str) -> str:
    """The identifier in a part of the path, whatever its grammar. Raises InvalidParam."""
    value = request.match_info[key]
    if not is_text(value):
        raise InvalidParam(f"the path holds no {key.replace('_', ' ')}")
    return value


def limit(query: Mapping[str, str]) -> int:
    """How many a page is to have. Raises InvalidParam."""
    text = query.get("limit", str(PAGE))
    if not (text.isascii() and text.isdecimal() and int(text[:9])):
        raise InvalidParam(f"limit is no number from 1 to {MOST_A_PAGE}")
    return min(int(text[:9]), MOST_A_PAGE)


def cursor(place: Sequence[Any]) -> str:
    """What a reader gives back in `from` for the next page."""
    return base64.urlsafe_b64encode(orjson.dumps(list(place))).decode().rstrip("=")


def after(query: Mapping[str, str]) -> Place | None:
    """Where the page begins: behind this. Raises InvalidParam."""
    return unpacked(query, _place)


def unpacked(query: Mapping[str, str], unpack: Callable[[Any], T]) -> T | None:
    """What `cursor` packed; `unpack` makes it of JSON, and raises ValueError or TypeError where it
    is something else. Raises InvalidParam."""
    text = query.get("from")
    if text is None:
        return None
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return unpack(orjson.loads(base64.b64decode(padded, b"-_", validate=True)))
    except (ValueError, TypeError):
        raise InvalidParam("from is no `next` of a page: leave it out to start anew") from None


def moment(text: Any) -> datetime:
    """The time of a cursor. Raises ValueError or TypeError."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time of no place")
    return at


def identifier(value: Any) -> str:
    """A name in a cursor. Raises ValueError."""
    if not isinstance(value, str) or not is_text(value):
        raise ValueError("no text")
    return value


def time(query: Mapping[str, str], name: str) -> datetime | None:
    """A time in RFC 3339, or a day; UTC where no zone is named. Raises InvalidParam."""
    text = query.get(name)
    if text is None:
        return None
    try:
        # In a query that nobody encoded, the + of a zone has become a space.
        at = datetime.fromisoformat(text.replace(" ", "+"))
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidParam(
            f"{name} is no time: write it like 2025-12-31 or 2025-12-31T18:00:00Z"
        ) from None


def is_text(value: str) -> bool:
    """True for what PostgreSQL can look for: no NUL, no half of a character."""
    return "\0" not in value and value == value.encode("utf-8", "replace").decode()


def _place(parts: Any) -> Place:
    at, name = parts
    return Place(moment(at), identifier(name))
