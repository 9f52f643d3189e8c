"""Recomputes the chain of custody, and tells which seal, row or read is not what it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from archiver.catalogue import captures, seals
from archiver.catalogue.seals import Line, Seal
from archiver.keep.anchoring import Expired, ReadsCheck
from archiver.keep.sealing import BATCH, FIRST, digest, hash_of

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

SEALS = 200  # read at once
SHOWN = 20
DIGEST = 32
# A row's time is that of its transaction's begin, and none of ours lasts nearly as long.
LATE = timedelta(hours=1)


class CustodyCheck:
    """What going through the chain came to so far. `wrong` are sentences, the first of them."""

    def __init__(self, pool: Pool, wanted: bytes | None = None) -> None:
        """`wanted` is a head that somebody was told, and that the chain has to have."""
        self._pool = pool
        self._wanted = wanted
        self._before: Seal | None = None
        self._newest_at: datetime | None = None
        self._reads = ReadsCheck()
        self.rows = self.seals = self.unsealed = self.bad = 0
        self.waiting = 0  # captures and reads that are in no row yet
        self.wrong: list[str] = []

    @property
    def reads(self) -> int:
        """How many reads are there of which custody tells."""
        return self._reads.reads

    @property
    def expired(self) -> Expired | None:
        """What custody tells of reads that were deleted; None where none were."""
        return self._reads.expired

    @property
    def head(self) -> bytes:
        """The hash of the last seal that was looked at."""
        return self._before.hash if self._before else FIRST

    async def run(self) -> AsyncIterator[None]:
        """Goes through all of it, in bounded memory, and yields now and then."""
        while page := await self._page():
            for some in _pieces(page):
                # What a changed seal names is not worth looking for.
                sound = [seal for seal in some if self._chain(seal)]
                async with self._pool.acquire() as conn:
                    lines = await seals.lines(conn, sound)
                    for seal in sound:
                        await self._look(conn, seal, lines[seal.id])
                yield
        async with self._pool.acquire() as conn:
            self.unsealed = await seals.count_unsealed(conn, self._before)
            for one in await seals.outside(conn, SHOWN):
                self._say(f"row {one} is in no seal, and was added by hand")
            unanchored, added = await self._reads.rest(conn, SHOWN)
            self.waiting = unanchored + await captures.count(conn)
            for wrong in added:
                self._say(wrong)
        if self._wanted is not None:
            self._say("no seal has the head that was asked for: the chain was replaced")

    async def _page(self) -> list[Seal]:
        async with self._pool.acquire() as conn:
            return await seals.after(conn, self._before.id if self._before else 0, SEALS)

    def _chain(self, seal: Seal) -> bool:
        """Whether the seal is what it was; and its place in the chain."""
        expected = self._before.id + 1 if self._before else 1
        if seal.id != expected:
            several = f"seals {expected} to {seal.id - 1} are"
            self._say(f"{f'seal {expected} is' if seal.id - expected == 1 else several} gone")
        elif seal.previous != self.head:
            self._say(f"seal {seal.id} is not bound to the one before it")
        self.seals += 1
        self._before = seal
        if seal.hash == self._wanted:
            self._wanted = None
        if hash_of(seal) == seal.hash:
            return True
        self._say(f"seal {seal.id} was changed")
        return False

    async def _look(self, conn: Connection, seal: Seal, lines: list[Line]) -> None:
        digests = [seal.digests[i : i + DIGEST] for i in range(0, len(seal.digests), DIGEST)]
        told = dict(zip(await self._ids(conn, seal, lines), digests, strict=False))
        known = {line.id: digest(line) for line in lines}
        for one in sorted(told.keys() | known.keys()):
            if one not in known:
                self._say(f"row {one}, of seal {seal.id}, is gone")
            elif known[one] != told.get(one):
                self._say(f"row {one}, of seal {seal.id}, was changed")
        for line in lines:
            self._in_time(line)
            if known[line.id] == told.get(line.id):
                for wrong in await self._reads.look(conn, line):
                    self._say(wrong)
        self.rows += len(lines)

    async def _ids(self, conn: Connection, seal: Seal, lines: list[Line]) -> list[int]:
        """Those that it names. As many rows as it has were found by these very ids."""
        if len(lines) == seal.size:
            return [line.id for line in lines]
        return await seals.ids_of(conn, seal)

    def _in_time(self, line: Line) -> None:
        if self._newest_at is not None and line.at < self._newest_at - LATE:
            told = f"{line.at:%Y-%m-%d %H:%M}"
            self._say(f"row {line.id} tells of {told}, and was added after later ones")
        self._newest_at = max(line.at, self._newest_at or line.at)

    def _say(self, wrong: str) -> None:
        self.bad += 1
        if len(self.wrong) < SHOWN:
            self.wrong.append(wrong)


def _pieces(page: list[Seal]) -> Iterator[list[Seal]]:
    """Runs of seals that have about BATCH rows."""
    piece: list[Seal] = []
    for seal in page:
        if piece and sum(one.size for one in piece) + seal.size > BATCH:
            yield piece
            piece = []
        piece.append(seal)
    if piece:
        yield piece
