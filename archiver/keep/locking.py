"""Holds as locks: in a bucket with Object Lock, what is held has a legal hold as long as it is.

A legal hold and no retention, because a hold of ours has no end. Each round begins with the holds
and ends with the bucket, so it may be broken off anywhere, and the next one makes good what is
missing: what was archived, moved or released meanwhile, too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from archiver.catalogue import holds, locks
from archiver.catalogue.targets import LONG_AGO
from archiver.db.turns import outliving, woken
from archiver.errors import StoreUnavailable

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool
    from archiver.store.hybrid import HybridStore
    from archiver.store.s3 import S3Store

EVERY_SECONDS = 1800.0
AGAIN_SECONDS = 30.0  # after an outage
RELEASES_SECONDS = 24 * 3600.0  # nothing is released without a word, but words may be missed
MISSING = timedelta(minutes=10)  # an object may be on its way into the bucket
# What is in a span is mostly at its end. What comes late, as from history or after days of trying
# to fetch it, is found when all before that end is walked through again.
WALK_SECONDS = 24 * 3600.0
LATE = timedelta(days=1)
AT_ONCE = 8
ANSWERS_WITHIN = 60.0  # seconds

LOCK = 0x6D6D61_0C  # one of all processes locks and unlocks, lest they do it in the wrong order
TRY_LOCK = "SELECT pg_try_advisory_lock($1)"


class Walk(NamedTuple):
    """When a span was walked through to its end last, and when all of it was (monotonic)."""

    at: datetime
    whole_at: float


class Trouble:
    """A bucket may refuse one object, which must not hinder others; if many, it is the bucket."""

    def __init__(self) -> None:
        self._errors: list[StoreUnavailable] = []

    def bear(self, error: StoreUnavailable) -> None:
        """Of one object. Raises the error where it is one too many."""
        self._errors.append(error)
        if len(self._errors) > AT_ONCE:
            raise error

    def tell(self) -> None:
        """When the others are done. Raises the first error, if there was one."""
        if self._errors:
            raise self._errors[0]


class Locking:
    """One of all processes works at a time, whichever holds the advisory lock."""

    def __init__(self, dsn: str, pool: Pool, store: HybridStore) -> None:
        self._dsn = dsn
        self._pool = pool
        self._store = store
        self._wake = asyncio.Event()
        self._released: tuple[int, float] | None = None
        self._walks: dict[tuple[str, datetime], Walk] = {}
        self._address: str | None = None  # of the bucket, once it is known what is locked there

    def wake(self) -> None:
        """Something is held or released: look at once."""
        self._wake.set()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            self._wake.clear()
            wait = AGAIN_SECONDS
            with outliving("locking what is held", StoreUnavailable):
                if await self.once():
                    wait = EVERY_SECONDS
            await woken(self._wake, wait)

    async def once(self) -> bool:
        """Everything that is to be locked or unlocked, where the bucket has Object Lock; False
        where another process is at it. Raises StoreUnavailable, and what asyncpg does."""
        bucket = self._store.bucket
        if bucket is None or not await self._is_wanted() or not (await bucket.look()).locks:
            return True
        holder = await asyncpg.connect(self._dsn, command_timeout=ANSWERS_WITHIN)
        try:
            if not await holder.fetchval(TRY_LOCK, LOCK):
                return False
            await self._all(bucket, holder)
            return True
        finally:
            holder.terminate()  # and with it the lock, a moment later

    async def _is_wanted(self) -> bool:
        """Where nothing was ever held, no bucket is asked."""
        async with self._pool.acquire() as conn:
            return await locks.wanted(conn)

    async def _all(self, bucket: S3Store, holder: Connection) -> None:
        if self._store.former is not bucket:  # what leaves the bucket is not locked there any more
            await self._enlist(holder)
            await self._find_elsewhere(bucket, holder)
            await self._lock_all(bucket, holder)
        async with self._pool.acquire() as conn:
            released = await locks.released(conn)
        known, looked_at = self._released or (-1, 0.0)
        if released != known or time.monotonic() - looked_at > RELEASES_SECONDS:
            await self._unlock_all(bucket, holder)
            self._released = released, time.monotonic()

    async def _enlist(self, holder: Connection) -> None:
        async with self._pool.acquire() as conn:
            live = await holds.live(conn)
        # By when they were placed as well: another process may have unlocked what was held before.
        names = {(hold["target"], hold["created_at"]): hold["kind"] for hold in live}
        self._walks = {name: walk for name, walk in self._walks.items() if name in names}
        for name, kind in names.items():
            since, walk = self._since(name)
            async for _ in locks.enlist(self._pool, kind, name[0], since):
                _check(holder)
            if kind == "span":
                self._walks[name] = walk

    def _since(self, name: tuple[str, datetime]) -> tuple[datetime, Walk]:
        """Where to begin a span, and what is to be remembered once its end is reached."""
        now, whole_at = datetime.now(UTC), time.monotonic()
        before = self._walks.get(name)
        if before is None or whole_at - before.whole_at > WALK_SECONDS:
            return LONG_AGO, Walk(now, whole_at)
        return before.at - LATE, Walk(now, before.whole_at)

    async def _find_elsewhere(self, bucket: S3Store, holder: Connection) -> None:
        """Somebody may have copied everything into another bucket, and configured that."""
        if self._address == bucket.address:
            return
        async for _ in locks.anew(self._pool, bucket.address):
            _check(holder)
        self._address = bucket.address

    async def _lock_all(self, bucket: S3Store, holder: Connection) -> None:
        trouble = Trouble()

        async def lock(sha256: bytes) -> None:
            try:
                there = await bucket.lock(sha256)
            except StoreUnavailable as error:
                await self._put_off(sha256, timedelta())  # behind the others
                trouble.bear(error)
                return
            if not there:
                await self._put_off(sha256, MISSING)
                return
            async with self._pool.acquire() as conn:
                await locks.locked(conn, sha256, bucket.address)

        while True:
            async with self._pool.acquire() as conn:
                due = await locks.due(conn)
            if not due:
                return
            _check(holder)
            await _each(due, lock)
            trouble.tell()

    async def _put_off(self, sha256: bytes, delay: timedelta) -> None:
        async with self._pool.acquire() as conn:
            await locks.put_off(conn, sha256, delay)

    async def _unlock_all(self, bucket: S3Store, holder: Connection) -> None:
        trouble = Trouble()

        async def unlock(sha256: bytes) -> None:
            try:
                unlocked = await bucket.unlock(sha256)
            except StoreUnavailable as error:
                trouble.bear(error)
                return
            if unlocked:
                async with self._pool.acquire() as conn:
                    await locks.forget(conn, sha256)

        async for page in locks.listed(self._pool):
            _check(holder)
            await _each([one.sha256 for one in page if not one.held], unlock)
        trouble.tell()


async def _each(digests: Sequence[bytes], work: Callable[[bytes], Awaitable[None]]) -> None:
    """A few at a time; raises the first error once none of them is on its way any more."""
    for start in range(0, len(digests), AT_ONCE):
        some = map(work, digests[start : start + AT_ONCE])
        for outcome in await asyncio.gather(*some, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome


def _check(holder: Connection) -> None:
    """Raises asyncpg.InterfaceError once the lock is lost, and another process may have it."""
    if holder.is_closed():
        raise asyncpg.InterfaceError("the connection that holds the lock is closed")
