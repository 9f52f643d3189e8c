"""How times, counts and people are put into words in a reply."""

from __future__ import annotations

from datetime import UTC, datetime

_STEPS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def moment(when: datetime | None) -> str:
    """A time in UTC to the minute, such as `2026-05-31 12:00`; `never` for None."""
    return "never" if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def span(seconds: float) -> str:
    """A length of time in its largest whole unit: `5 min`, `3 d`; `0 s` for less than one."""
    whole = max(int(seconds), 0)
    for size, unit in _STEPS:
        if whole >= size:
            return f"{whole // size:,} {unit}"
    return "0 s"


def ago(when: datetime | None, now: datetime | None = None) -> str:
    """How long ago a time was: `5 min ago`, `just now` within a second; `never` for None."""
    if when is None:
        return "never"
    passed = ((now or datetime.now(UTC)) - when).total_seconds()
    return "just now" if passed < 1 else f"{span(passed)} ago"


def plural(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun: `1 room`, `2 rooms`; `many` for a noun that takes no s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def person(name: str | None, user_id: str) -> str:
    """A person as shown: the display name with the Matrix ID behind it, or only the ID."""
    return f"{name} ({user_id})" if name else user_id


def short(text: str, width: int = 40) -> str:
    """What others wrote, cut to so many characters."""
    return text if len(text) <= width else text[: width - 1] + "…"
