"""What is kept of a batch, as the columns that its one statement takes: each row once, sorted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from archiver.capture.policy import REMOTE_EXCLUDED, ROOM_EXCLUDED, CapturePolicy
from archiver.capture.rows import EventRow, Kept, storable_json
from archiver.catalogue.lexemes import said_by
from archiver.model import Mxc, Source


class _MediaRow(NamedTuple):
    server_name: str
    media_id: str
    ts: int | None
    reason: str | None
    paced: bool


def event_rows(kept: Sequence[Kept]) -> list[EventRow]:
    """One row an event, in the order given: one that comes twice counts with content, if once."""
    rows: dict[str, EventRow] = {}
    for found in kept:
        row = found.row
        before = rows.setdefault(row.event_id, row)
        if before.original and not row.original:
            rows[row.event_id] = row
    return list(rows.values())


def media_rows(kept: Sequence[Kept], source: Source, policy: CapturePolicy) -> list[_MediaRow]:
    """One row a media, sorted; wanted wins where one event leaves it out and another does not.

    Old media of other servers is `paced`: the homeserver has to fetch it, and has its limits.
    """
    rows: dict[Mxc, _MediaRow] = {}
    for found in kept:
        for reference in found.references:
            mxc = reference.mxc
            reason = ROOM_EXCLUDED if found.left_out else None
            if reason is None and policy.leaves_out_media(mxc):
                reason = REMOTE_EXCLUDED
            if mxc not in rows or reason is None:
                paced = source is Source.BACKFILL and mxc.server_name != policy.server_name
                rows[mxc] = _MediaRow(*mxc, found.row.origin_server_ts, reason, paced)
    return [rows[mxc] for mxc in sorted(rows)]


def reference_rows(kept: Sequence[Kept]) -> list[tuple[Any, ...]]:
    """One row for each time that an event names a media, sorted."""
    rows = [
        (
            found.row.event_id,
            *named.mxc,
            *named[1:7],  # up to the encryption
            storable_json(named.encryption) if named.encryption else None,
            said_by(named.filename, named.caption),
        )
        for found in kept
        for named in found.references
    ]
    return sorted(rows, key=itemgetter(slice(4)))


def columns(width: int, rows: Iterable[Sequence[Any]]) -> Iterable[Sequence[Any]]:
    """Rows turned into the arrays that `unnest` takes; it fills up the shorter ones with NULL.

    A column of None alone goes as an empty array, which costs nothing to send.
    """
    columns = zip(*rows, strict=True)
    lean = [() if all(value is None for value in column) else column for column in columns]
    return lean or [()] * width
