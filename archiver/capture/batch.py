"""Raw events as a homeserver sent them, whatever they hold.

orjson reads nearly everything. What it refuses although it is JSON (lone surrogates, numbers
beyond a double, a thousand levels of nesting) takes slower ways, so that one hostile event never
stops its neighbours.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

import orjson

# A whole string, or one character that opens, closes or separates.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)

# Python refuses to read integers of thousands of digits, because the time grows with the square.
_DIGITS_MAX = 1_000


class NotJSON(ValueError):
    """The body as a whole is no JSON object, or the events in it are no list."""


class Batch:
    """The events in a body under `key`, parsed, with the bytes of each within reach.

    An event that no parser can read is its own text instead: the walk still finds media in it.
    `exact` tells that orjson read everything, so that nothing is lost by writing it again.
    Raises NotJSON.
    """

    def __init__(self, body: bytes, key: str = "events") -> None:
        self._body = body
        self._key = key
        self.exact = True
        self.events = self._parse()

    def raw(self, index: int) -> bytes:
        """The bytes of one event, exactly as they came. Raises NotJSON if they cannot be told."""
        if index >= len(self._spans):
            raise NotJSON(f"the list under {self._key!r} is written in a way no homeserver uses")
        start, stop = self._spans[index]
        return self._body[start:stop].strip()

    @cached_property
    def fields(self) -> dict[str, Any]:
        """What the body holds beside the events. Raises NotJSON."""
        body, spans = self._body, self._spans
        rest = body[: spans[0][0]] + body[spans[-1][1] :] if spans else body
        try:
            document = orjson.loads(rest)
        except orjson.JSONDecodeError as error:
            raise NotJSON(f"the body beside its {self._key!r} cannot be read: {error}") from None
        return document if isinstance(document, dict) else {}

    def _parse(self) -> list[Any]:
        try:
            document = orjson.loads(self._body)
        except orjson.JSONDecodeError:
            self.exact = False
            try:
                document = _parse_slowly(self._body)
            except RecursionError:
                return [_parse_alone(self._body[start:stop]) for start, stop in self._spans]
            except ValueError as error:
                raise NotJSON(f"the body is no JSON: {error}") from None
        events = document.get(self._key, []) if isinstance(document, dict) else None
        if not isinstance(events, list):
            raise NotJSON(f"the body holds no list under {self._key!r}")
        return events

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        return _element_spans(self._body, self._key.encode())


def _parse_slowly(body: bytes) -> Any:
    return json.loads(body, parse_int=_integer)


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= _DIGITS_MAX else float(digits)


def _parse_alone(raw: bytes) -> Any:
    for parse in (orjson.loads, _parse_slowly):
        try:
            return parse(raw)
        except (ValueError, RecursionError):
            continue
    return raw.decode("utf-8", "replace")


def _element_spans(body: bytes, key: bytes) -> list[tuple[int, int]]:
    """Where each element of the top-level array `key` starts and stops; counts brackets only.

    Raises NotJSON where they do not match, so that a body cut short is not taken for a whole one.
    """
    spans: list[tuple[int, int]] = []
    depth, start, inside = 0, 0, False
    opening = re.compile(rb'"%s"\s*:\s*\[' % re.escape(key))
    for token in _TOKEN.finditer(body):
        text = token[0]
        if text in b"[{":
            depth += 1
            if depth == 2:
                start = token.end()
        elif inside and depth == 2 and text in b"]},":
            if body[start : token.start()].strip():
                spans.append((start, token.start()))
            start, inside = token.end(), text == b","
        elif depth == 1 and opening.match(body, token.start()):
            spans, inside = [], True  # a key given twice counts once, the last one, as parsers do
        depth -= text in b"]}"
    if depth or not body.lstrip().startswith(b"{"):
        raise NotJSON("the body is no JSON object")
    return spans
