"""Times, counts and people in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from archiver.control.words import ago, moment, person, plural, short, span

NOON = datetime(2026, 5, 31, 12, 0, 59, tzinfo=UTC)


def test_a_moment_is_in_utc_to_the_minute() -> None:
    """Whatever zone it was told in; None is never."""
    assert moment(NOON) == "2026-05-31 12:00"
    assert moment(NOON.astimezone(timezone(timedelta(hours=5)))) == "2026-05-31 12:00"
    assert moment(None) == "never"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "just now"), (0.5, "just now"), (1, "1 s ago"), (59.9, "59 s ago"), (60, "1 min ago"),
     (3599, "59 min ago"), (3600, "1 h ago"), (86_400, "1 d ago"), (86_400 * 4000, "4,000 d ago")],
)  # fmt: skip
def test_how_long_ago(seconds: float, shown: str) -> None:
    """In its largest whole unit; what a clock ahead of ours says is now."""
    assert ago(NOON - timedelta(seconds=seconds), NOON) == shown


def test_never_is_not_long_ago() -> None:
    """And a span of nothing has a unit."""
    assert ago(None) == "never"
    assert span(0) == "0 s"


def test_counts_agree_with_their_nouns() -> None:
    """One room, two rooms, two media."""
    assert plural(1, "room") == "1 room"
    assert plural(0, "room") == "0 rooms"
    assert plural(1_234, "match", "matches") == "1,234 matches"


def test_a_person_has_an_id_always() -> None:
    """Because anybody may take anybody's name."""
    assert person("Al", "@a:b") == "Al (@a:b)"
    assert person(None, "@a:b") == "@a:b"


def test_what_is_long_is_cut() -> None:
    """To the very width."""
    assert short("a" * 40) == "a" * 40
    assert short("a" * 41) == "a" * 39 + "…"
