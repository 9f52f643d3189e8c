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
class Goal:
    """A limit for the median."""

    limit: float
    at_most: bool = False

    def met(self, figures: Figures) -> bool:
        """True when their median keeps it."""
        return figures.median <= self.limit if self.at_most else figures.median >= self.limit

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {number(self.limit)}"


@dataclass(frozen=True)
class Other:
    """What a row is compared with. The goal is on the archive's figures over these."""

    name: str
    figures: Figures
    goal: Goal | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table. Its own goal is on the archive's figures as they are."""

    what: str
    archive: Figures
    others: Sequence[Other] = ()
    goal: Goal | None = None


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
