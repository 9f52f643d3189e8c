"""How reading old messages is told: while it goes on, and at the end."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from prometheus_client import REGISTRY

from archiver.catalogue import backfill
from archiver.control.reply import Reply, Table, said
from archiver.control.words import plural, span
from archiver.model import Place
from archiver.units import format_size

# Longer than a worker rests after a homeserver that was away.
QUIET_SECONDS = 120.0
# What fits on a phone; `--json` on the shell has all.
MOST_TROUBLES = 20


class Outcome(NamedTuple):
    """What is told at the end. `left_out`: rooms that the configuration leaves out. `advice`: how
    the bot would be allowed to read more."""

    progress: backfill.Progress
    troubles: list[backfill.Trouble]
    media: list[backfill.Outcome]
    left_out: int
    advice: str | None


class Reading:
    """What was there when somebody began to watch, so that speed can be told."""

    def __init__(self) -> None:
        self._began = self._moved = time.monotonic()
        self._bytes = bytes_fetched()
        self._first: backfill.Progress | None = None
        self._last: backfill.Progress | None = None

    def shown(self, now: backfill.Progress) -> Reply:
        """How far it is."""
        first = self._first = self._first or now
        at = time.monotonic()
        if self._last is None or now.events != self._last.events:
            self._moved = at
        self._last = now
        seconds, settled = max(at - self._began, 1.0), now.done + now.failed
        here = bytes_fetched() - self._bytes
        parts = [
            f"{settled:,} of {plural(now.rooms, 'room')} read",
            f"{now.events:,} events, {(now.events - first.events) / seconds:,.0f}/s",
            f"{plural(now.media, 'media', 'media')} queued by them",
        ]
        if now.untried:
            parts.append(f"{now.untried:,} to fetch")
        if here:
            parts.append(f"{format_size(here)}, {format_size(here / seconds)}/s")
        if left := _left(settled - first.done - first.failed, now.rooms - settled, seconds):
            parts.append(left)
        sentence = " · ".join(parts)
        if at - self._moved < QUIET_SECONDS:
            return said(sentence)
        return said(
            sentence,
            f"Nothing was read for {span(at - self._moved)}: `archiver run` does it, in a process "
            "that has the part `worker`; its log says what holds it up.",
        )


def told(outcome: Outcome) -> Reply:
    """What came of it; failed where a room could not be read."""
    now = outcome.progress
    parts: list[str | Table] = [
        f"{plural(now.done, 'room')} read: {now.events:,} events, of these {now.kept:,} new to "
        f"the archive; {plural(now.media, 'media', 'media')} queued by them."
    ]
    if outcome.media:
        parts.append(Table(("media of these rooms", "number", "bytes", "reason"), _rows(outcome)))
    some = outcome.troubles[:MOST_TROUBLES]  # no table, which would cut what is to be copied
    parts += [f"{room.room_id} is not read: {room.reason}" for room in some]
    if more := len(outcome.troubles) - len(some):
        parts.append(f"And {plural(more, 'room')} more.")
    if now.paced:
        parts.append(
            f"{now.paced:,} media of other servers wait for their turn (history.remote_rate): "
            "`archiver run` goes on with them."
        )
    if outcome.left_out:
        parts.append(f"{plural(outcome.left_out, 'room')} left out by capture.rooms.")
    if outcome.advice:
        parts.append(outcome.advice)
    if now.failed:
        parts.append(
            f"{now.failed} of {now.rooms} rooms could not be read: the reasons are above, and the "
            "same command tries them again."
        )
    return Reply(tuple(parts), data=_document(outcome), failed=bool(now.failed))


def bytes_fetched() -> float:
    """By this process; others may help."""
    name = "archiver_archived_bytes_total"
    return sum(REGISTRY.get_sample_value(name, {"place": place}) or 0 for place in Place)


def _left(settled: int, rest: int, seconds: float) -> str | None:
    """A guess: the rooms to come are like those before."""
    if settled <= 0 or rest <= 0:
        return None
    return f"about {span(seconds / settled * rest)} left"


def _rows(outcome: Outcome) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            "waiting" if row.state == "pending" else row.state,
            f"{row.media:,}",
            format_size(row.bytes),
            row.reason or "",
        )
        for row in outcome.media
    )


def _document(outcome: Outcome) -> dict[str, Any]:
    now = outcome.progress
    return {
        "rooms": {
            "asked": now.rooms,
            "done": now.done,
            "failed": now.failed,
            "left_out": outcome.left_out,
        },
        "events": {"read": now.events, "new": now.kept},
        "media": {"queued": now.media, "states": [row._asdict() for row in outcome.media]},
        "troubles": [row._asdict() for row in outcome.troubles],
    }
