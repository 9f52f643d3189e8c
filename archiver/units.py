"""Sizes and times as people write them: `5 MiB`, `30 d`."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")

_BYTES = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "kib": 1024,
    "m": 1000**2, "mb": 1000**2, "mib": 1024**2,
    "g": 1000**3, "gb": 1000**3, "gib": 1024**3,
    "t": 1000**4, "tb": 1000**4, "tib": 1024**4,
}  # fmt: skip

_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_size(value: object) -> int:
    """Bytes from `5 MiB`, `100 kB` or a plain number. Raises ValueError with a sentence."""
    match = _split(value)
    if match is None or (unit := match[2].lower()) not in _BYTES:
        raise ValueError("is no size: write a number and a unit, like 5 MiB or 100 kB")
    return int(Decimal(match[1]) * _BYTES[unit])


def parse_duration(value: object) -> timedelta:
    """A span of time from `30 d`, `12 h`, `90 s`. Raises ValueError with a sentence."""
    match = _split(value)
    if match is None or (unit := match[2].lower()) not in _SECONDS:
        raise ValueError("is no span of time: write a number and a unit, like 30 d, 12 h or 90 s")
    try:
        return timedelta(seconds=float(match[1]) * _SECONDS[unit])
    except OverflowError:
        raise ValueError("is too long a span of time") from None


def format_size(size: float) -> str:
    """`5.0 MiB` from bytes, for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_duration(span: timedelta) -> str:
    """`90 d`, in the largest unit that leaves no rest."""
    seconds = span.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:g} s"


def _split(value: object) -> re.Match[str] | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return _NUMBER_AND_UNIT.fullmatch(str(value))
