"""Lets go what rules of retention let go: looked for page by page, deleted in small commits.

Whatever a page told is judged once more when its media are locked: a hold, a new event that names
one, or a reader who came meanwhile, keeps it.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import structlog

from archiver import metrics
from archiver.catalogue import custody, erasure, moments
from archiver.catalogue import retention as catalogue
from archiver.catalogue.moments import Moment
from archiver.catalogue.retention import Scope, Stored
from archiver.config.retention import Rule
from archiver.db.pool import DATABASE_AWAY
from archiver.keep.quarantine import Who
from archiver.keep.rules import Quota, Verdict, judge, label, reason
from archiver.model import Mxc, State

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

ATTEMPTS = 5  # of a commit: two who drop shared blobs at once may wait for each other
POLL_SECONDS = 10.0
NOBODY = Mxc("", "")
BY_ITSELF = Who("archiver", "worker")

log = structlog.get_logger(__name__)


class Doomed(NamedTuple):
    """A media, and the number of the rule that lets it go."""

    media: Stored
    rule: int

    @property
    def posted_at(self) -> datetime:
        """When it was posted last."""
        return max(naming.sent_at for naming in self.media.namings)


class Gone(NamedTuple):
    """What one commit deleted, and the bytes that this freed."""

    media: list[Doomed]
    size: int


class Retention:
    """Any number of them may work at once. Without rules nothing goes."""

    def __init__(self, pool: Pool, rules: Sequence[Rule], server_name: str) -> None:
        self._pool = pool
        self._rules = rules
        self._server_name = server_name
        self._scope = Scope(
            [rule.room for rule in rules if rule.room],
            [rule.sender for rule in rules if rule.sender],
        )
        self._quotas: dict[int, Quota] = {}

    async def plan(self) -> AsyncGenerator[list[Doomed], None]:
        """What would go now, page by page, many of which are empty. Destroys nothing."""
        self._quotas = {
            number: Quota(rule.quota)
            for number, rule in enumerate(self._rules, 1)
            if rule.quota is not None
        }
        if self._quotas:
            async for page in self._pages():
                await self._count(page)
                yield []
            for quota in self._quotas.values():
                quota.settle()
        async for page in self._pages():
            yield self._pick(await self._free(page))

    async def run(self, who: Who) -> AsyncGenerator[Gone, None]:
        """Deletes it, and tells after each page what went. May be ended and begun anew at any
        time."""
        async with aclosing(self.plan()) as pages:
            async for page in pages:
                yield await self._again(page, who) if page else Gone([], 0)

    async def _pages(self) -> AsyncGenerator[list[Stored], None]:
        if not self._rules:
            return
        behind = NOBODY
        while True:
            async with self._pool.acquire() as conn:
                page = await catalogue.page(conn, self._scope, behind)
            if not page:
                return
            behind = page[-1].mxc
            yield page

    async def _count(self, page: Sequence[Stored]) -> None:
        free = {found.media.mxc for found in await self._free(page)}
        for media in page:
            for number in self._judged(media).quotas:
                self._quotas[number].count(media, may_go=media.mxc in free)

    async def _free(self, page: Sequence[Stored]) -> list[Doomed]:
        """What may go, quotas aside, and nobody holds."""
        async with self._pool.acquire() as conn:
            return await self._free_of(conn, page)

    async def _free_of(self, conn: Connection, page: Sequence[Stored]) -> list[Doomed]:
        judged = ((media, self._judged(media).rule) for media in page)
        found = [Doomed(media, rule) for media, rule in judged if rule]
        held = await catalogue.held(conn, [one.media.mxc for one in found]) if found else ()
        return [one for one in found if one.media.mxc not in held]

    def _pick(self, free: Sequence[Doomed]) -> list[Doomed]:
        picked = []
        for one in free:
            quotas = self._quotas_of(one.media)
            if all(quota.wants(one.media) for quota in quotas):
                picked.append(one)
                for quota in quotas:
                    quota.give(one.media)
        return picked

    async def _again(self, page: Sequence[Doomed], who: Who) -> Gone:
        """One commit; after a deadlock once more."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._commit(page, who)
            except asyncpg.DeadlockDetectedError:
                continue
        return await self._commit(page, who)

    async def _commit(self, page: Sequence[Doomed], who: Who) -> Gone:
        used = {one.media.mxc: one.media.used_at for one in page}
        async with self._pool.acquire() as conn, conn.transaction():
            locked = await erasure.lock_free(conn, list(used))
            stored = await catalogue.these(conn, self._scope, locked)
            free = await self._free_of(conn, stored)
            # Who is read by now makes no room for others.
            gone = [
                one
                for one in free
                if not self._quotas_of(one.media) or one.media.used_at == used[one.media.mxc]
            ]
            reasons = [reason(self._rules, one.rule) for one in gone]
            size = await erasure.delete_for_ever(conn, [one.media.mxc for one in gone], reasons)
            if gone:
                told = defaultdict(list)
                for one in gone:
                    told[label(self._rules, one.rule)].append(str(one.media.mxc))
                await custody.note(conn, *who, "retention", None, media=told, bytes=size)
        _add_to_metrics(gone, size)
        return Gone(gone, size)

    def _judged(self, media: Stored) -> Verdict:
        return judge(self._rules, self._server_name, media, datetime.now(UTC))

    def _quotas_of(self, media: Stored) -> list[Quota]:
        return [self._quotas[number] for number in self._judged(media).quotas]


class Expiry:
    """Applies the rules from time to time. Of all processes one does so each time."""

    def __init__(self, pool: Pool, retention: Retention, every: timedelta) -> None:
        self._pool = pool
        self._retention = retention
        self._every = every

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            try:
                await self.work()
            except DATABASE_AWAY as error:
                log.warning("retention waits for the database", reason=str(error))
            except asyncpg.PostgresError as error:
                log.error("retention failed, and is tried again", exc_info=error)
            await asyncio.sleep(POLL_SECONDS)

    async def work(self) -> None:
        """All that is to go now, if it is time; at half its speed, for the sake of readers."""
        async with self._pool.acquire() as conn:
            if not await moments.begin(conn, Moment.RETENTION, self._every):
                return
        media = size = 0
        began = time.monotonic()
        async for gone in self._retention.run(BY_ITSELF):
            media, size = media + len(gone.media), size + gone.size
            await asyncio.sleep(min(time.monotonic() - began, 1.0))
            began = time.monotonic()
        if media:
            log.info("rules of retention let go", media=media, bytes=size)


def _add_to_metrics(gone: Sequence[Doomed], size: int) -> None:
    metrics.MEDIA_SETTLED.labels(State.DELETED).inc(len(gone))
    metrics.RETENTION_BYTES.inc(size)
    for one in gone:
        metrics.RETENTION.labels(str(one.rule)).inc()
