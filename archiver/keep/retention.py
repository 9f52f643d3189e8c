"""Lets go what rules of retention let go: looked for page by page, deleted in small commits.

Whatever a page told is judged once more when its media are locked: a hold, a new event that names
one, or a reader who came meanwhile, keeps it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, nullcontext
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import structlog

from archiver import metrics
from archiver.catalogue import custody, erasure, moments
from archiver.catalogue import retention as catalogue
from archiver.catalogue.moments import Moment
from archiver.catalogue.retention import Scope, Stored
from archiver.catalogue.room_use import Over, RoomUse, Use, counting
from archiver.config.retention import Rule
from archiver.db.turns import outliving
from archiver.keep.gentle import gently
from archiver.keep.quarantine import OURSELVES, Who
from archiver.keep.rules import Cut, Quota, Verdict, hour_of, judge, label, reason
from archiver.model import Mxc, State

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

ATTEMPTS = 5  # of a commit: two who drop shared blobs at once may wait for each other
POLL_SECONDS = 10.0
NOBODY = Mxc("", "")

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
        self._room_quotas = {
            number: rule.quota_per_room
            for number, rule in enumerate(rules, 1)
            if rule.quota_per_room is not None
        }
        self._scope = Scope(
            None if self._room_quotas else [rule.room for rule in rules if rule.room],
            [rule.sender for rule in rules if rule.sender],
        )
        self._quotas: dict[int, Quota] = {}
        self._cuts: dict[tuple[int, str], Cut] = {}
        self._numbers = count()  # of media in several rooms
        self.over: list[Over] = []  # the rooms over their quota, as far as `plan` has come

    async def plan(self) -> AsyncGenerator[list[Doomed], None]:
        """What would go now, page by page, many of which are empty. Destroys nothing."""
        self._quotas = {
            number: Quota(rule.quota)
            for number, rule in enumerate(self._rules, 1)
            if rule.quota is not None
        }
        if self._quotas or self._room_quotas:
            async with counting(self._pool) if self._room_quotas else nullcontext() as use:
                async for page in self._pages():
                    await self._count(page, use)
                    yield []
                if use:
                    self.over = await use.over(self._room_quotas)
            self._cuts = {(one.rule, one.room_id): Cut(one.last, one.rest) for one in self.over}
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

    async def _count(self, page: Sequence[Stored], use: RoomUse | None) -> None:
        """All of a media counts in each of its rooms."""
        free = {found.media.mxc for found in await self._free(page)}
        uses = []
        for media in page:
            judged, may_go = self._judged(media), media.mxc in free
            for rule in judged.quotas:
                self._quotas[rule].count(media, may_go=may_go)
            number = next(self._numbers) if len(judged.rooms) > 1 else None
            hour = hour_of(media)
            uses += [Use(*room, hour, media.size, may_go, number) for room in judged.rooms]
        if use and uses:
            await use.add(uses)

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
        picked = {one.media.mxc: one.media for one in page}
        async with self._pool.acquire() as conn, conn.transaction():
            locked = await erasure.lock_free(conn, list(picked))
            stored = await catalogue.these(conn, self._scope, locked)
            free = await self._free_of(conn, stored)
            gone = [one for one in free if self._is_as_picked(one.media, picked[one.media.mxc])]
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

    def _is_as_picked(self, media: Stored, before: Stored) -> bool:
        """Who is read by now makes no room for others, nor does who counts for another quota."""
        now, then = self._judged(media), self._judged(before)
        if not now.quotas and not now.rooms:
            return True
        agreed = now.quotas <= then.quotas and now.rooms <= then.rooms
        return agreed and media.used_at == before.used_at

    def _quotas_of(self, media: Stored) -> list[Cut]:
        """All have to agree: where one is not over, nobody has to make room."""
        judged = self._judged(media)
        rooms = [self._cuts.get(room, Cut()) for room in judged.rooms]
        return [*(self._quotas[number] for number in judged.quotas), *rooms]


class Expiry:
    """Applies the rules from time to time. Of all processes one does so each time."""

    def __init__(self, pool: Pool, retention: Retention, every: timedelta) -> None:
        self._pool = pool
        self._retention = retention
        self._every = every

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            with outliving("retention"):
                await self.work()
            await asyncio.sleep(POLL_SECONDS)

    async def work(self) -> None:
        """All that is to go now, if it is time; with rests, for the sake of readers."""
        async with self._pool.acquire() as conn:
            if not await moments.begin(conn, Moment.RETENTION, self._every):
                return
        media = size = 0
        async for gone in gently(self._retention.run(OURSELVES)):
            media, size = media + len(gone.media), size + gone.size
        if media:
            log.info("rules of retention let go", media=media, bytes=size)


def _add_to_metrics(gone: Sequence[Doomed], size: int) -> None:
    metrics.MEDIA_SETTLED.labels(State.DELETED).inc(len(gone))
    metrics.RETENTION_BYTES.inc(size)
    for one in gone:
        metrics.RETENTION.labels(str(one.rule)).inc()
