"""bench/RESULTS.md: a section a part, each with its own date and machine.

A run of some parts replaces their sections and leaves the others as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import Figures, Goal, Row, Section, number
from bench.machine import machine, versions

TITLE = """\
# Measured

`make bench` writes this file; `make bench BENCH=serve` measures a part again. A figure is the
median of the rounds, with the lowest and the highest; a ratio is taken within each round, and its
median shown. The goals are the project's own.
"""
HEADER = """\
| what | the archive | compared with | ratio | goal | |
|---|---|---|---|---|---|"""


def write(path: Path, sections: Sequence[Section], busy: float, order: Sequence[str]) -> None:
    """Puts the sections into the file at `path`, where all keep the given order."""
    kept = _read(path)
    about = (
        f"Measured on {datetime.now(UTC):%Y-%m-%d} on {machine()}; load average before it began:"
        f" {busy:.1f}. {versions()}."
    )
    for section in sections:
        kept[section.name] = "\n".join([*_lines(section), "", about])
    known = [name for name in order if name in kept]
    parts = [TITLE, *(f"## {name}\n\n{kept[name].strip()}\n" for name in known)]
    path.write_text("\n".join(parts), "utf-8")


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    return "\n".join([HEADER, *map(_line, rows)])


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    pieces = re.split(r"^## (.+)\n", path.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def _lines(section: Section) -> Iterator[str]:
    yield section.how
    yield from section.remarks
    yield f"\n{table(section.rows)}\n"
    yield "<details><summary>Every round</summary>\n"
    for row in section.rows:
        yield f"- {row.what}: {_each(row.archive)}"
        for other in row.others:
            yield f"  - {other.name}: {_each(other.figures)}"
    yield "\n</details>"


def _each(figures: Figures) -> str:
    return " · ".join(map(number, figures.values))


def _line(row: Row) -> str:
    others = "<br>".join(f"{other.name}: {other.figures}" for other in row.others)
    ratios = [(row.archive.over(other.figures), other.goal) for other in row.others]
    goals = [(row.archive, row.goal)] if row.goal else ratios
    cells = (
        row.what,
        str(row.archive),
        others,
        "<br>".join(number(ratio.median) for ratio, _ in ratios),
        _under(f"{goal}{'' if row.goal else ' times'}" if goal else "" for _, goal in goals),
        _under(_verdict(figures, goal) for figures, goal in goals),
    )
    return "| " + " | ".join(cells) + " |"


def _verdict(figures: Figures, goal: Goal | None) -> str:
    if goal is None:
        return ""
    return "**met**" if goal.met(figures) else "**not met**"


def _under(lines: Iterable[str]) -> str:
    """Each beside what it is about, and nothing below the last."""
    kept = list(lines)
    while kept and not kept[-1]:
        kept.pop()
    return "<br>".join(kept)
