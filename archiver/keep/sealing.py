"""Seals custody in batches, beside everything else: each seal is bound to the one before.

The bytes of a row are a JSON object in UTF-8, without spaces and its keys sorted: action, actor,
at (UTC, `2026-05-31T12:00:00.000000+00:00`), detail (a string: the jsonb as PostgreSQL writes it),
id, place and target. The bytes of a seal are such an object of count, ids, last_id, missing,
previous (hexadecimal), rows (the SHA-256 of the digests of its rows, one after another), seal (its
id) and sealed_at. Its hash is the SHA-256 of that; `previous` of the first is all zeros.

What persons read and what was captured has tables of its own, which other work writes in batches
and rules empty: it is not sealed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from archiver.catalogue import seals
from archiver.catalogue.seals import Line, Seal
from archiver.db.pool import DATABASE_AWAY

if TYPE_CHECKING:
    from archiver.db.pool import Pool

EVERY_SECONDS = 60.0
BATCH = 1_000
FIRST = bytes(32)  # what the first seal has for the hash before

log = structlog.get_logger(__name__)


class Sealer:
    """Any number of them may run, in any number of processes: one at a time seals."""

    def __init__(self, pool: Pool, batch: int = BATCH) -> None:
        self._pool = pool
        self._batch = batch

    async def run(self) -> None:
        """Seals what is new every minute, until cancelled."""
        while True:
            try:
                while await self.seal() == self._batch:
                    pass
            except DATABASE_AWAY as error:
                log.warning("custody is sealed later", reason=str(error))
            await asyncio.sleep(EVERY_SECONDS)

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
    return hashlib.sha256(_json({**line._asdict(), "at": _time(line.at)})).digest()


def hash_of(seal: Seal) -> bytes:
    """What a seal's hash has to be, by all else that it says."""
    told = {
        "seal": seal.id,
        "ids": seal.ids,
        "count": seal.size,
        "rows": hashlib.sha256(seal.digests).hexdigest(),
        "last_id": seal.last_id,
        "missing": seal.missing,
        "sealed_at": _time(seal.sealed_at),
        "previous": seal.previous.hex(),
    }
    return hashlib.sha256(_json(told)).digest()


def _json(told: dict[str, Any]) -> bytes:
    return json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")
