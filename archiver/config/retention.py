"""`retention`: what goes, by which rules, and how often that is looked at."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from archiver.config.section import Section, user_id
from archiver.units import format_duration, format_size, parse_duration, parse_size

FOREVER = "forever"


def _keep(value: object) -> timedelta | None:
    if value is None or value == FOREVER:
        return None
    try:
        return _long(parse_duration(value))
    except ValueError as error:
        raise ValueError(f"{error}; or forever") from None


def _long(span: timedelta) -> timedelta:
    if span < timedelta(seconds=1):
        raise ValueError("is shorter than a second")
    return span


def _room_id(value: str) -> str:
    if not re.fullmatch(r"![^\s]+", value):
        raise ValueError("is no room id: it starts with ! (an alias will not do)")
    return value


def _mimetype(value: str) -> str:
    if not re.fullmatch(r"[^\s/*;]+/(\*|[^\s/*;]+)", value):
        raise ValueError("is no type like image/gif or video/*")
    return value.lower()


Span = Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_long)]
Size = Annotated[int, BeforeValidator(parse_size)]
Kind = Literal[
    "image", "video", "audio", "file", "sticker", "emoticon", "avatar", "pack_image", "preview",
    "other",
]  # fmt: skip


class Rule(Section):
    """What it is about, every condition that is given, and what happens: at most one of `keep`
    (since it was posted), `keep_unread` (since it was last read, or else archived), `quota` (what
    was read longest ago goes first) and `quota_per_room` (as much for each room)."""

    room: Annotated[str, AfterValidator(_room_id)] | None = None
    sender: Annotated[str, AfterValidator(user_id)] | None = None
    kind: Kind | None = None
    mimetype: Annotated[str, AfterValidator(_mimetype)] | None = None
    larger_than: Size | None = None
    remote: bool | None = None
    keep: Annotated[timedelta | None, BeforeValidator(_keep)] = None
    keep_unread: Span | None = None
    quota: Size | None = None
    quota_per_room: Size | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        outcomes = {"keep", "keep_unread", "quota", "quota_per_room"}
        if len(outcomes & self.model_fields_set) > 1:
            raise ValueError("says more than one of keep, keep_unread, quota and quota_per_room")
        return self

    @property
    def says(self) -> str:
        """What happens, in words: `keep 90 d`."""
        if self.quota is not None:
            return f"quota {format_size(self.quota)}"
        if self.quota_per_room is not None:
            return f"quota_per_room {format_size(self.quota_per_room)}"
        if self.keep_unread is not None:
            return f"keep_unread {format_duration(self.keep_unread)}"
        return f"keep {FOREVER if self.keep is None else format_duration(self.keep)}"


class Retention(Section):
    rules: tuple[Rule, ...] = ()
    every: Span = timedelta(hours=1)
