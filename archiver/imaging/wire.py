"""How the archiver and a helper speak: one Unix stream socket, one request at a time.

A request is one line of JSON with the source as a passed file descriptor. The answer is one line
of JSON; its `length` says how many bytes follow. What comes from a helper is as hostile as the
picture it works on, and is checked as such.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from archiver.imaging.recipe import LARGEST_SIDE, Format, Method, Probe, Recipe

LINE = 4096  # bytes, at most
LARGEST_RESULT = 64 * 1024 * 1024


class Malformed(ValueError):
    """This is no message of ours."""


class Rendered(NamedTuple):
    """A picture that was made: no metadata in it, upright, in sRGB."""

    data: bytes
    mimetype: str
    width: int
    height: int
    frames: int


class Footage(NamedTuple):
    """What a film or a piece of music says of itself. Upright; None for what it does not say."""

    duration_ms: int | None
    width: int | None
    height: int | None
    has_cover: bool


def line(message: dict[str, Any]) -> bytes:
    """A message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def parse(data: bytes) -> dict[str, Any]:
    """The message in one line. Raises Malformed."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise Malformed("no JSON") from None
    if not isinstance(message, dict):
        raise Malformed("no JSON object")
    return message


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe for a request."""
    return {**vars(recipe), "formats": list(recipe.formats)}


def recipe_from_json(value: dict[str, Any]) -> Recipe:
    """The recipe of a request. Ours, so not suspected."""
    formats = tuple(Format(name) for name in value["formats"])
    return Recipe(**{**value, "method": Method(value["method"]), "formats": formats})


def probe_to_json(found: Probe) -> dict[str, Any]:
    """An answer."""
    return found._asdict()


def rendered_to_json(made: Rendered) -> dict[str, Any]:
    """An answer; the bytes follow it."""
    size = {"width": made.width, "height": made.height}
    return {"format": made.mimetype, **size, "frames": made.frames}


def probe_of(answer: dict[str, Any]) -> Probe:
    """What was found. Raises Malformed."""
    width, height, frames = (_count(answer, key, 2**31) for key in ("width", "height", "frames"))
    return Probe(_format(answer), width, height, frames, answer.get("has_alpha") is True)


def rendered_of(answer: dict[str, Any], data: bytes) -> Rendered:
    """What was made. Raises Malformed."""
    if not data:
        raise Malformed("no bytes")
    width, height = (_count(answer, key, LARGEST_SIDE) for key in ("width", "height"))
    frames = _count(answer, "frames", 2**31)
    return Rendered(data, _format(answer).value, width, height, frames)


def footage_of(answer: dict[str, Any]) -> Footage:
    """What a film says. Raises Malformed."""
    duration, width, height = (
        None if answer.get(key) is None else _count(answer, key, 2**53)
        for key in ("duration_ms", "width", "height")
    )
    return Footage(duration, width, height, answer.get("has_cover") is True)


def length_of(answer: dict[str, Any]) -> int:
    """How many bytes follow this answer. Raises Malformed."""
    length = answer.get("length")
    if type(length) is not int or not 0 <= length <= LARGEST_RESULT:
        raise Malformed("no length")
    return length


def _format(answer: dict[str, Any]) -> Format:
    try:
        return Format(answer["format"])
    except (KeyError, ValueError):
        raise Malformed("no format") from None


def _count(answer: dict[str, Any], key: str, most: int) -> int:
    value = answer.get(key)
    if type(value) is not int or not 1 <= value <= most:
        raise Malformed(f"no number: {key}")
    return value
