"""Sizes and times as people write them."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archiver.units import format_size, parse_duration, parse_size

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        (17, 17),
        (" 17", 17),
        ("17 B", 17),
        ("100 kB", 100_000),
        ("100k", 100_000),
        ("1 KiB", 1024),
        ("5 MiB", 5 * MIB),
        ("5mib", 5 * MIB),
        ("  5   MiB ", 5 * MIB),
        ("2.5 MB", 2_500_000),
        (1.5, 1),
        ("3 GB", 3_000_000_000),
        ("1 TiB", 1024**4),
        (2**63 - 1, 2**63 - 1),
    ],
)
def test_a_size_is_bytes(written: object, size: int) -> None:
    """Numbers are bytes; kB counts in thousands, KiB in 1024s; no digit is lost."""
    assert parse_size(written) == size


NO_SIZE = ["", "MiB", "5 XiB", "-5", "5 MiB 3", "1e3", 1e16, "5,5 MiB", None, True, [], {}]


@pytest.mark.parametrize("written", NO_SIZE)
def test_what_is_no_size_is_said_so(written: object) -> None:
    """Anything else is a ValueError with a sentence that shows how to write one."""
    with pytest.raises(ValueError, match=r"^is no size: .* like 5 MiB or 100 kB$"):
        parse_size(written)


@pytest.mark.parametrize(
    ("written", "span"),
    [
        ("30 d", timedelta(days=30)),
        ("12h", timedelta(hours=12)),
        ("1.5 h", timedelta(minutes=90)),
        ("90 s", timedelta(seconds=90)),
        ("90 sec", timedelta(seconds=90)),
        ("5 m", timedelta(minutes=5)),
        ("5 min", timedelta(minutes=5)),
        ("2 W", timedelta(weeks=2)),
        ("0 s", timedelta()),
    ],
)
def test_a_span_of_time_has_a_unit(written: object, span: timedelta) -> None:
    """Days, hours, minutes, seconds and weeks, in any case, with or without a space."""
    assert parse_duration(written) == span


@pytest.mark.parametrize(
    "written", ["", "30", 30.5, "d", "30 y", "-1 d", "1 d 2 h", None, True, []]
)
def test_what_is_no_span_of_time_is_said_so(written: object) -> None:
    """A number without a unit is refused as well: nobody can tell seconds from days."""
    with pytest.raises(ValueError, match=r"^is no span of time: .* 30 d, 12 h or 90 s$"):
        parse_duration(written)


@pytest.mark.parametrize("written", ["9999999999 d", "9" * 500 + " s"])
def test_a_span_of_time_has_an_end(written: str) -> None:
    """Spans beyond what can be counted are refused with a sentence."""
    with pytest.raises(ValueError, match=r"^is too long a span of time$"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * MIB, "5.0 MiB"),
        (3 * 1024 * MIB, "3.0 GiB"),
        (2_000 * 1024**4, "2000.0 TiB"),
    ],
)
def test_a_size_is_shown_in_its_unit(size: int, shown: str) -> None:
    """The largest unit of which there is one, and nothing above TiB."""
    assert format_size(size) == shown


@settings(deadline=None)
@given(st.text() | st.floats() | st.integers())
@example("9" * 5_000)
def test_whatever_is_written_is_a_value_or_a_sentence(written: object) -> None:
    """No text and no number does anything else than be read or raise ValueError."""
    for parse in (parse_size, parse_duration):
        with suppress(ValueError):
            parse(written)
