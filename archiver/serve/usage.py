"""Who read what, gathered in memory and written in batches: a read costs no write."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from archiver import metrics
from archiver.catalogue import accesses, tokens
from archiver.catalogue import served as counts
from archiver.catalogue.accesses import Accesses
from archiver.catalogue.served import Source
from archiver.db.pool import Pool
from archiver.model import Mxc
from archiver.serve.database import DatabaseUnavailable, connection

FLUSH_SECONDS = 10.0
MOST_MEDIA = 100_000  # beyond these, while the database is away, reads go uncounted

_READS = {source: metrics.READS.labels(source) for source in Source}

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Accesses:
    """What `Accesses` tells, as it is gathered: seconds since 1970, and one object for all."""

    times: int
    last: float

    def told(self) -> Accesses:
        return Accesses(self.times, _at(self.last))


class Usage:
    """Reads of media and uses of tokens since the last flush."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._media: dict[Mxc, _Accesses] = {}
        self._tokens: dict[int, float] = {}
        self._served: Counter[Source] = Counter()

    def media_read(self, mxc: Mxc, source: Source) -> None:
        """Somebody was given this media, now."""
        self._served[source] += 1
        _READS[source].inc()
        now = time.time()
        if before := self._media.get(mxc):
            before.times += 1
            before.last = now
        else:
            self._add(mxc, _Accesses(1, now))

    def token_used(self, token_id: int) -> None:
        """Somebody came with this token, now."""
        self._tokens[token_id] = time.time()

    async def run(self) -> None:
        """Flushes every FLUSH_SECONDS until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Writes what was gathered; what cannot be written waits for the next time."""
        media, self._media = self._media, {}
        used, self._tokens = self._tokens, {}
        served, self._served = self._served, Counter()
        try:
            async with connection(self._pool) as conn:
                if served:
                    await counts.add(conn, served)
                    served = Counter()
                if media:
                    await accesses.add(conn, {mxc: read.told() for mxc, read in media.items()})
                    media = {}
                if used:
                    await tokens.mark_used(conn, {id_: _at(last) for id_, last in used.items()})
        except DatabaseUnavailable as error:
            log.warning("reads are not counted yet", reason=str(error))
            self._tokens = used | self._tokens
            self._served.update(served)
            for mxc, read in media.items():
                self._add(mxc, read)

    def _add(self, mxc: Mxc, read: _Accesses) -> None:
        if before := self._media.get(mxc):
            before.times += read.times
            before.last = max(before.last, read.last)
        elif len(self._media) < MOST_MEDIA:
            self._media[mxc] = read


def source_of(headers: Mapping[str, str], *, hot: bool) -> Source:
    """Whence the bytes of an answer with these headers come."""
    if headers["X-Cache"] == "MISS":
        return Source.MISSED
    return Source.MEMORY if hot else Source.STORE


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
