"""Who read which media: gathered in memory, written in batches, kept for a while, and told.

A process that is killed loses what it gathered since its last batch, as `Usage` does.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import structlog
from aiohttp import web

from archiver.catalogue import readers
from archiver.catalogue.readers import Read, Reads
from archiver.db.pool import Pool
from archiver.model import Mxc, Scope
from archiver.serve.database import DatabaseUnavailable, connection

FLUSH_SECONDS = 10.0
MOST_READS = 100_000  # beyond these, while the database is away, reads go unrecorded
TIDY_SECONDS = 86_400.0
TIDY_AT_ONCE = 1000
_NOTHING = timedelta(0)

log = structlog.get_logger(__name__)


class Reader(NamedTuple):
    """Who asks: `token:NAME`, `user:@ID` or `key:NAME`, by the key `via` if the URL was signed."""

    name: str
    scope: Scope
    via: str | None = None


# On every request that was let in.
READER = web.RequestKey("reader", Reader)


@dataclass(slots=True)
class _Reads:
    """What `Reads` tells, as it is gathered: seconds since 1970, and one object for all."""

    times: int
    first: float
    last: float

    def told(self) -> Reads:
        first, last = (datetime.fromtimestamp(at, UTC) for at in (self.first, self.last))
        return Reads(self.times, first, last)


class Readings:
    """Reads of media since the last flush. `keep`: how long they are told; None: for ever; zero:
    nothing is recorded."""

    def __init__(self, pool: Pool, keep: timedelta | None) -> None:
        self._pool = pool
        self._keep = keep
        self._reads: dict[Read, _Reads] = {}
        self._unrecorded = 0

    def add(self, reader: Reader, mxc: Mxc) -> None:
        """Whoever asks is given bytes of this media, now."""
        if self._keep == _NOTHING:
            return
        now = time.time()
        read = Read(reader.name, reader.via, mxc)
        if before := self._reads.get(read):
            before.times += 1
            before.last = now
        else:
            self._add(read, _Reads(1, now, now))

    async def run(self) -> None:
        """Flushes every FLUSH_SECONDS until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Writes what was gathered; what cannot be written waits for the next time."""
        gathered, self._reads = self._reads, {}
        if self._unrecorded:
            log.error("reads went unrecorded: there were too many", reads=self._unrecorded)
            self._unrecorded = 0
        if not gathered:
            return
        try:
            async with connection(self._pool) as conn:
                await readers.add(conn, {read: some.told() for read, some in gathered.items()})
        except DatabaseUnavailable as error:
            log.warning("reads are not recorded yet", reason=str(error))
            for read, some in gathered.items():
                self._add(read, some)

    async def tidy(self) -> None:
        """Deletes what is older than `keep` once a day, in small batches, until cancelled."""
        while self._keep is not None:
            try:
                async with connection(self._pool) as conn:
                    deleted = await readers.delete_old(conn, self._keep, TIDY_AT_ONCE)
            except DatabaseUnavailable as error:
                log.warning("old reads are not deleted yet", reason=str(error))
                deleted = 0
            await asyncio.sleep(0 if deleted == TIDY_AT_ONCE else TIDY_SECONDS)

    def _add(self, read: Read, some: _Reads) -> None:
        if before := self._reads.get(read):
            before.times += some.times
            before.first, before.last = min(before.first, some.first), max(before.last, some.last)
        elif len(self._reads) >= MOST_READS:
            self._unrecorded += some.times
        else:
            self._reads[read] = some


READINGS = web.AppKey("readings", Readings)


def given(request: web.Request, mxc: Mxc) -> None:
    """To be called whenever a request is answered with bytes of a media, of any size and form."""
    request.app[READINGS].add(request[READER], mxc)
