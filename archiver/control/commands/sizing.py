"""How large the archive is, how it grew, and how it will grow: for `stats`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from archiver.control.reply import Table
from archiver.control.watching.disks import Space
from archiver.control.words import span
from archiver.units import format_size

DAY = 86_400
ENDLESS = 36_500  # days: what lasts longer is not told


def sizes(figures: Mapping[str, Any], disk: Space | None) -> Iterator[tuple[str, Table]]:
    """What `disk` has to do with it is when the files that are objects fill it."""
    totals = figures["totals"]
    if not totals["files"]:
        return
    largest = totals["largest"]
    rows = [
        ("files of media", f"{totals['files']:,}", format_size(totals["bytes"])),
        ("saved by keeping the same bytes once", format_size(totals["deduplicated_bytes"]), ""),
        ("average", format_size(totals["average_bytes"]), ""),
        ("read so far", f"{totals['accesses']:,}", ""),
        *_reads(figures["served"]),
    ]
    if largest:
        rows.insert(3, ("largest", format_size(largest["bytes"]), largest["mxc"]))
    yield "How much there is:", Table(("", "", ""), tuple(rows))
    grown = tuple(
        (row["month"], f"{row['media']:,}", format_size(row["bytes"]))
        for row in figures["growth"]
        if row["media"] or row["bytes"]
    )
    if grown:
        yield "Archived by month:", Table(("", "media", ""), grown)
    yield "If it goes on as in the last 90 days:", Table(("", ""), _ahead(figures, disk))


def _reads(served: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    ever, recent = served["ever"], served["recent"]
    kinds = {"memory": "from memory", "store": "from a store", "missed": "fetched or made for it"}
    for source, told in kinds.items():
        if ever[source]:
            yield f"given {told}", f"{ever[source]:,}", f"{recent[source]:,} in 30 days"


def _ahead(figures: Mapping[str, Any], disk: Space | None) -> tuple[tuple[str, str], ...]:
    forecast = figures["forecast"]
    rows = [
        ("a day", format_size(forecast["bytes_per_day"])),
        ("in all in 30 days", format_size(forecast["bytes_in_30_days"])),
        ("in all in 90 days", format_size(forecast["bytes_in_90_days"])),
    ]
    daily = forecast["object_bytes_per_day"]
    if disk and daily and disk.free / daily < ENDLESS:
        paths = ", ".join(map(str, disk.paths))
        rows.append((f"the disk of {paths} is full in", span(disk.free / daily * DAY)))
    return tuple(rows)
