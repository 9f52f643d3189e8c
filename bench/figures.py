"""What was measured: the figures of several rounds, what they are held against, and the goal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """One figure a round, in the order of the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The figure to speak of."""
        return statistics.median(self.values)

    def over(self, other: Figures) -> Figures:
        """The ratio within each round, so that what slows the machine slows both."""
        pairs = zip(self.values, other.values, strict=True)
        return Figures(tuple(mine / theirs for mine, theirs in pairs))

    def __str__(self) -> str:
        if len(self.values) == 1:
            return number(self.median)
        low, high = number(min(self.values)), number(max(self.values))
        return f"{number(self.median)} ({low} to {high})"


@dataclass(frozen=True)
class Other:
    """What a row is compared with."""

    name: str
    figures: Figures


@dataclass(frozen=True)
class Goal:
    """A limit for the median: of the ratio where `of_ratio`, of the archive's figure elsewhere."""

    limit: float
    at_most: bool = False
    of_ratio: bool = False

    def met(self, row: Row) -> bool:
        """True when the median keeps it."""
        ratio = row.ratio if self.of_ratio else row.archive
        assert ratio is not None, f"{row.what}: a ratio needs something to be compared with"
        return ratio.median <= self.limit if self.at_most else ratio.median >= self.limit

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {number(self.limit)}{' times' if self.of_ratio else ''}"


@dataclass(frozen=True)
class Row:
    """One line of a table. The goal is on the first of `others`."""

    what: str
    archive: Figures
    others: Sequence[Other] = ()
    goal: Goal | None = None

    @property
    def ratio(self) -> Figures | None:
        """The archive's figures over those of the first it is compared with."""
        return self.archive.over(self.others[0].figures) if self.others else None


@dataclass(frozen=True)
class Section:
    """What one part found, and how."""

    name: str
    how: str
    rows: Sequence[Row]
    remarks: Sequence[str] = ()


def lower(first: Other, second: Other) -> Other:
    """The slower of two, by their medians."""
    return min(first, second, key=lambda other: other.figures.median)


def number(value: float) -> str:
    """Three digits are as much as a measurement is good for."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
