"""Seals custody in batches, beside everything else: each seal is bound to the one before.

The bytes of a row are a JSON object in UTF-8, without spaces and its keys sorted: action, actor,
at (UTC, `2026-05-31T12:00:00.000000+00:00`), detail (a string: the jsonb as PostgreSQL writes it),
id, place and target. The bytes of a seal are such an object of count, ids, last_id, missing,
previous (hexadecimal), rows (the SHA-256 of the digests of its rows, one after another), seal (its
id) and sealed_at. Its hash is the SHA-256 of that; `previous` of the first is all zeros.

What was captured and what persons read comes into custody here, many in a line: who captures and
who serves only note it, in tables of their own.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from archiver.catalogue import captures, seals
from archiver.catalogue.seals import Line, Seal
from archiver.db.turns import outliving
from archiver.keep.anchoring import anchor
from archiver.keep.canonical import canonical, utc

if TYPE_CHECKING:
    from archiver.db.pool import Pool

EVERY_SECONDS = 60.0
BATCH = 1_000
GATHERED = 500  # captures or reads, in a line
FIRST = bytes(32)  # what the first seal has for the hash before


class Sealer:
    """Any number of them may run, in any number of processes: one at a time seals."""

    def __init__(self, pool: Pool, batch: int = BATCH) -> None:
        self._pool = pool
        self._batch = batch

    async def run(self) -> None:
        """Gathers and seals what is new every minute, until cancelled."""
        while True:
            with outliving("sealing custody"):
                while await self.gather():
                    pass
                while await self.seal() == self._batch:
                    pass
            await asyncio.sleep(EVERY_SECONDS)

    async def gather(self) -> bool:
        """Brings a batch of captures and one of reads into custody. True: there may be more."""
        async with self._pool.acquire() as conn, conn.transaction():
            if not await seals.lock(conn):
                return False
            captured = await captures.gather(conn, GATHERED)
            return GATHERED in (captured, await anchor(conn, GATHERED))

    async def seal(self) -> int:
        """Seals a batch, and returns how many rows it has; none while another process is at it."""
        async with self._pool.acquire() as conn, conn.transaction():
            if not await seals.lock(conn):
                return 0
            newest = await seals.last(conn)
            lines = await seals.unsealed(conn, newest, self._batch)
            if not lines:
                return 0
            ids = [line.id for line in lines]
            last_id = max(ids[-1], newest.last_id if newest else 0)
            at, spans, missing = await seals.covered(conn, newest, ids, last_id)
            digests = b"".join(map(digest, lines))
            number, previous = (newest.id + 1, newest.hash) if newest else (1, FIRST)
            seal = Seal(number, spans, len(ids), digests, last_id, missing, at, previous, b"")
            await seals.put(conn, seal._replace(hash=hash_of(seal)))
            return len(ids)


def digest(line: Line) -> bytes:
    """The SHA-256 of a row."""
    return hashlib.sha256(canonical({**line._asdict(), "at": utc(line.at)})).digest()


def hash_of(seal: Seal) -> bytes:
    """What a seal's hash has to be, by all else that it says."""
    told = {
        "seal": seal.id,
        "ids": seal.ids,
        "count": seal.size,
        "rows": hashlib.sha256(seal.digests).hexdigest(),
        "last_id": seal.last_id,
        "missing": seal.missing,
        "sealed_at": utc(seal.sealed_at),
        "previous": seal.previous.hex(),
    }
    return hashlib.sha256(canonical(told)).digest()
