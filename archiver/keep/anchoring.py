"""Anchors reads in custody, a batch in a line, and tells whether those that exist are the same.

A line of action `read` tells the first and the last id that it covers, how many reads there were,
the time of the newest of them, and the SHA-256 of the batch's entries. An entry has 48 bytes: the
id and the microseconds since 1970 of `last_at`, eight bytes each, big-endian, and the SHA-256 of
the read. Its bytes are a JSON object as those of a row of custody: first_at, id, last_at,
media_id, reader, server_name, times and via. So custody itself knows nothing of any reader.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue import anchors
from archiver.keep.canonical import canonical, utc

if TYPE_CHECKING:
    from archiver.catalogue.anchors import Reading
    from archiver.catalogue.seals import Line
    from archiver.db.pool import Connection

ACTOR, ACTION, EXPIRED = "archiver", "read", "reads expired"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
ENTRY = struct.Struct(">qq32s")


class Anchor(NamedTuple):
    """What a line of custody tells of a batch of reads."""

    first: int
    last: int
    newest: datetime
    sha256: str


class Expired(NamedTuple):
    """Reads that are no more: how many, how old the youngest was, and the line of custody that
    tells of that one."""

    reads: int
    youngest: timedelta
    line: int


async def anchor(conn: Connection, limit: int) -> int:
    """Anchors up to `limit` reads, and returns how many; none while somebody adds some. To be
    called by one process at a time."""
    if not await anchors.lock(conn):
        return 0
    after = await anchors.last(conn)
    reads = await anchors.rows(conn, after, limit=limit)
    if not reads:
        return 0
    entries = b"".join(map(_entry, reads))
    last, newest = reads[-1].id, max(read.last_at for read in reads)
    told = {
        "first": after + 1,
        "last": last,
        "count": len(reads),
        "newest": utc(newest),
        "sha256": hashlib.sha256(entries).hexdigest(),
    }
    await anchors.put(conn, last, newest, entries, told)
    return len(reads)


class ReadsCheck:
    """Goes through the lines of custody by id. `reads`: how many of them were compared; `expired`:
    what the lines tell of those that are no more."""

    def __init__(self) -> None:
        self.reads = 0
        self.expired: Expired | None = None
        self._last = 0

    async def look(self, conn: Connection, line: Line) -> Sequence[str]:
        """What is wrong with the reads that this line is about, in sentences."""
        strange = f"row {line.id} tells of reads, and not as the archive does"
        if (line.actor, line.action) == (ACTOR, EXPIRED):
            return () if self._expire(line) else (strange,)
        if (line.actor, line.action) != (ACTOR, ACTION):
            return ()
        told = _anchor(line)
        if told is None:
            return (strange,)
        before, self._last = self._last, max(self._last, told.last)
        wrong = list(await self._compare(conn, told))
        if told.first != before + 1:
            wrong.append(f"row {line.id} tells of reads from {told.first}, not from {before + 1}")
        return wrong

    async def rest(self, conn: Connection, limit: int) -> tuple[int, list[str]]:
        """How many reads no line tells of so far, and those that none ever will."""
        ids = await anchors.outside(conn, limit)
        wrong = [f"read {one} was added by hand" for one in ids]
        return await anchors.count_after(conn, self._last), wrong

    def _expire(self, line: Line) -> bool:
        """Adds what the line tells; False where it is none of ours."""
        found, before = _expired(line), self.expired
        if found and before:
            reads = before.reads + found.reads
            found = min(before, found, key=attrgetter("youngest"))._replace(reads=reads)
        self.expired = found or before
        return found is not None

    async def _compare(self, conn: Connection, told: Anchor) -> Sequence[str]:
        # Whoever deletes says so in the same commit: what is missing now, the next question tells.
        rows = await anchors.rows(conn, told.first - 1, told.last)
        entries = await anchors.entries(conn, told.last)
        expired = await anchors.expired_before(conn) or EPOCH
        self.reads += len(rows)
        if told.newest < expired:
            late = (row for row in rows if row.last_at > told.newest)
            return [f"read {row.id} was added afterwards" for row in late]
        batch = f"the digests of reads {told.first} to {told.last}"
        if entries is None:
            return [f"{batch} are gone"]
        if hashlib.sha256(entries).hexdigest() != told.sha256:
            return [f"{batch} were changed"]
        return list(_differences(rows, entries, expired))


def _differences(rows: Sequence[Reading], entries: bytes, expired: datetime) -> Iterator[str]:
    known = {row.id: row for row in rows}
    told = {one: (at, digest) for one, at, digest in ENTRY.iter_unpack(entries)}
    for one in sorted(known.keys() | told.keys()):
        if one not in told:
            yield f"read {one} was added afterwards"
        elif one in known:
            if ENTRY.pack(one, *told[one]) != _entry(known[one]):
                yield f"read {one} was changed"
        elif (at := EPOCH + told[one][0] * MICROSECOND) >= expired:
            yield f"read {one}, of {at:%Y-%m-%d %H:%M}, is gone"


def _entry(read: Reading) -> bytes:
    told = read._asdict() | {"first_at": utc(read.first_at), "last_at": utc(read.last_at)}
    digest = hashlib.sha256(canonical(told)).digest()
    return ENTRY.pack(read.id, (read.last_at - EPOCH) // MICROSECOND, digest)


def _expired(line: Line) -> Expired | None:
    told = json.loads(line.detail)
    try:
        before, newest = (datetime.fromisoformat(told[key]) for key in ("before", "newest"))
        sound = newest < before <= line.at and int(told["count"]) > 0
        return Expired(int(told["count"]), line.at - newest, line.id) if sound else None
    except (KeyError, TypeError, ValueError):
        return None


def _anchor(line: Line) -> Anchor | None:
    told = json.loads(line.detail)
    try:
        first, last = int(told["first"]), int(told["last"])
        newest = datetime.fromisoformat(told["newest"])
        found = Anchor(first, last, newest, str(told["sha256"]))
    except (KeyError, TypeError, ValueError):
        return None
    sound = 0 < first <= last < anchors.LAST_ID and newest.tzinfo is not None
    return found if sound else None
