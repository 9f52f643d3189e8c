"""What an administrator deletes: rows in small commits first, bytes after, words with them.

A crash between leaves what the next run deletes, and garbage that is collected.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from archiver import metrics
from archiver.catalogue import custody
from archiver.catalogue import erasure as catalogue
from archiver.catalogue.erasure import Gone
from archiver.catalogue.targets import Target, events_of, media_of, others_of
from archiver.keep.quarantine import Who
from archiver.model import Mxc, State

if TYPE_CHECKING:
    from archiver.db.pool import Pool

ATTEMPTS = 5  # of a commit: two who drop shared blobs at once may wait for each other


class Erased(NamedTuple):
    """How much went so far: media, bytes that this freed, and events that lost their words."""

    media: int = 0
    size: int = 0
    events: int = 0


class Erasure:
    """Deletes one target for somebody. May be repeated: a second run does what is left."""

    def __init__(self, pool: Pool, target: Target, who: Who) -> None:
        self._pool = pool
        self._target = target
        self._who = who
        self._erased = Erased()

    async def run(self) -> AsyncGenerator[Erased, None]:
        """All that the target names, but what is held or also named by others; tells after each
        step how far it is. Of an event, a user and a room the words go as well."""
        async for media in media_of(self._pool, self._target):
            await self._delete(media)
            yield self._erased
        if self._target.kind == "mxc":
            return
        for pages in (events_of, others_of):
            async for events in pages(self._pool, self._target):
                await self._empty(events)
                yield self._erased

    async def _delete(self, media: Sequence[Mxc]) -> None:
        async with self._pool.acquire() as conn:
            wanted = await catalogue.left(conn, media)
        busy = await self._again(wanted, wait=False) if wanted else ()
        for mxc in sorted(busy):
            await self._again([mxc], wait=True)

    async def _again(self, media: Sequence[Mxc], *, wait: bool) -> set[Mxc]:
        """One commit; after a deadlock once more. Returns what somebody else had locked."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._commit(media, wait=wait)
            except asyncpg.DeadlockDetectedError:
                continue
        return await self._commit(media, wait=wait)

    async def _commit(self, media: Sequence[Mxc], *, wait: bool) -> set[Mxc]:
        target, who = self._target, self._who
        reason = f"delete: by {who.actor}, {target.kind} {target.value}"
        async with self._pool.acquire() as conn, conn.transaction():
            if wait:
                locked = await catalogue.lock(conn, media[0])
            else:
                locked = await catalogue.lock_free(conn, media)
            gone = await catalogue.delete_locked(conn, target, locked, reason)
            if gone.media:
                names = [str(mxc) for mxc in gone.media]
                size = gone.size
                await custody.note(conn, *who, "delete", target.value, media=names, bytes=size)
        self._count(gone)
        return set() if wait else set(media).difference(locked)

    def _count(self, gone: Gone) -> None:
        metrics.MEDIA_SETTLED.labels(State.DELETED).inc(len(gone.media))
        media, size, events = self._erased
        self._erased = Erased(media + len(gone.media), size + gone.size, events)

    async def _empty(self, events: Sequence[str]) -> None:
        if not events:
            return
        async with self._pool.acquire() as conn, conn.transaction():
            emptied = await catalogue.empty_words(conn, events)
            if emptied:
                target = self._target.value
                await custody.note(conn, *self._who, "delete", target, events=emptied)
        self._erased = self._erased._replace(events=self._erased.events + emptied)
