"""`scan`: who looks at what is archived, and how long that may take."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, model_validator

from archiver.config.section import Section
from archiver.units import parse_duration, parse_size

MIB = 1024 * 1024


def _clamd(value: object) -> str:
    text = str(value).strip()
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^:\s/]+):(\d{1,5})", text)
    if not re.fullmatch(r"/\S.*", text) and (match is None or not 0 < int(match[1]) < 65536):
        raise ValueError(
            "is neither an address like 127.0.0.1:3310 nor the path of a socket like"
            " /run/clamav/clamd.ctl"
        )
    return text


def _timeout(span: timedelta) -> timedelta:
    if not timedelta(seconds=1) <= span <= timedelta(hours=1):
        raise ValueError("is outside a second to an hour")
    return span


def _concurrency(number: int) -> int:
    if not 1 <= number <= 64:
        raise ValueError("is outside 1 to 64")
    return number


class Scan(Section):
    with_: Literal["clamd", "command"] | None = None
    clamd: Annotated[str, BeforeValidator(_clamd)] = "127.0.0.1:3310"
    command: tuple[str, ...] = ()
    max_size: Annotated[int, BeforeValidator(parse_size)] = 100 * MIB
    timeout: Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_timeout)] = (
        timedelta(minutes=2)
    )
    concurrency: Annotated[int, AfterValidator(_concurrency)] = 2

    model_config = ConfigDict(alias_generator=lambda name: name.rstrip("_"))

    @model_validator(mode="after")
    def _names_its_program(self) -> Self:
        if self.with_ == "command" and not (self.command and self.command[0]):
            raise ValueError("with is command, and command names no program: write a list of it")
        return self
