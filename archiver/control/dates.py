"""Points and spans of time as arguments: dates, times, how long ago, how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from archiver.units import parse_duration


class DateParam(click.ParamType[datetime]):
    """A day, a time, or how long ago."""

    name = "date"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """`2024-05-31`, `2024-05-31T12:00+02:00`, or `30d` before now; UTC unless it says so."""
        if isinstance(value, datetime):
            return value
        try:
            at = datetime.fromisoformat(str(value))
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            try:
                return datetime.now(UTC) - parse_duration(value)
            except (ValueError, OverflowError):
                self.fail(
                    f"{value!r} is no date like 2024-05-31, and no time ago like 30d", param, ctx
                )


class DurationParam(click.ParamType[timedelta]):
    """A span of time."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """`30d`, `12h`, `90s`."""
        if isinstance(value, timedelta):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


DATE = DateParam()
DURATION = DurationParam()
