"""Conditional and partial requests: RFC 9110, sections 13 and 14."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from archiver.errors import RequestError

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

# More digits than any size has: such a range is as good as malformed.
_ONE_RANGE = re.compile(r"[ \t]*bytes[ \t]*=[ \t,]*([0-9]{0,18})-([0-9]{0,18})[ \t,]*", re.I)
_ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')


class Span(NamedTuple):
    """The bytes from `start` up to, not including, `stop`."""

    start: int
    stop: int


class RangeNotSatisfiable(RequestError):
    """416: the range lies outside the media, which has `size` bytes."""

    status = 416

    def __init__(self, size: int) -> None:
        super().__init__(f"the range is outside the media, which has {size} bytes")
        self.size = size


def is_known(headers: CIMultiDictProxy[str], etag: str) -> bool:
    """True when If-None-Match says that the reader has these bytes already: answer 304."""
    tags = ",".join(headers.getall("If-None-Match", ()))
    return tags.strip() == "*" or etag in _ENTITY_TAG.findall(tags)


def wanted(headers: CIMultiDictProxy[str], etag: str, size: int) -> Span | None:
    """The one range that is asked for; None for the whole. Raises RangeNotSatisfiable.

    What is malformed, in another unit, of several ranges or made for other bytes (If-Range) gets
    the whole, as the RFC allows or demands.
    """
    ranges = headers.getall("Range", ())
    match = _ONE_RANGE.fullmatch(ranges[0]) if len(ranges) == 1 else None
    if match is None or size == 0 or headers.get("If-Range", etag).strip() != etag:
        return None
    first, last = match.groups()
    if not first:
        return _suffix(last, size)
    start, stop = int(first), int(last) + 1 if last else size
    if stop <= start and last:
        return None
    if start >= size:
        raise RangeNotSatisfiable(size)
    return Span(start, min(stop, size))


def _suffix(length: str, size: int) -> Span | None:
    if not length:
        return None
    if int(length) == 0:
        raise RangeNotSatisfiable(size)
    return Span(max(0, size - int(length)), size)
