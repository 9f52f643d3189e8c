"""One room compared with the homeserver's history, in one request when nothing is missing.

A page's events and the position behind it are one commit, so that whoever is killed anywhere goes
on where it was, and who lost the claim on the room writes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta

import structlog

from archiver import metrics
from archiver.capture.policy import CapturePolicy
from archiver.capture.record import record
from archiver.capture.rows import Kept
from archiver.catalogue import moments, rooms
from archiver.catalogue.rooms import Claim, Progress
from archiver.db.pool import Pool
from archiver.errors import TokenRefused
from archiver.history.pace import Pace
from archiver.history.pages import ClaimLost, Page, keep_page, read_page
from archiver.matrix.history import Direction, History
from archiver.model import Source

NEW_AT_ONCE = 500
RECENT = 100
# Pages back from the newest event, so that one room does not keep all others waiting for hours.
FARTHEST = 200
# Longer than a request and the rest after it can take.
LEASE = timedelta(minutes=15)
# Nothing of the room's row changes but the lease.
ON_THE_WAY = Progress(None)

log = structlog.get_logger(__name__)


class Visitor:
    """Compares rooms for whoever holds the claim on them.

    `every`: how often an active room has its turn. `grace`: the wait between two looks whether
    what is missing was merely on its way.
    """

    def __init__(
        self,
        pool: Pool,
        history: History,
        pace: Pace,
        policy: CapturePolicy,
        every: timedelta,
        grace: Callable[[], Awaitable[object]],
    ) -> None:
        self._pool = pool
        self._history = history
        self._pace = pace
        self._policy = policy
        self._every = every
        self._grace = grace
        self._made: datetime | None = None

    async def compare(self, claim: Claim) -> int:
        """Records what is missing, and returns how much that was.

        Raises ClaimLost, what History does, and what asyncpg does.
        """
        if claim.position is None:
            return await self._begin(claim)
        try:
            found, position, until = await self._read_on(claim, claim.position)
        except TokenRefused as error:
            log.warning(
                "the homeserver does not know its own position any more: the room is read back to "
                "where it was compared",
                room_id=claim.room_id,
                reason=str(error),
            )
            return await self._begin(claim)
        if claim.look_back:
            progress = Progress(position, until, looked_back=True, over=True)
            found += await self._look_back(claim, progress)
        return found

    async def _read_on(self, claim: Claim, position: str) -> tuple[int, str, datetime]:
        """Everything since the position. Events counted, the new position, the time of it."""
        found, until = 0, claim.at
        while True:
            page = await self._page(claim, "f", position, NEW_AT_ONCE)
            last = page.end in (None, position) or 0 < len(page.events.events) < NEW_AT_ONCE
            position = page.end or position
            kept = await self._missing(await keep_page(page.events, self._policy))
            progress = Progress(
                position,
                until if last else None,
                newest=page.middle(),
                over=last and not claim.look_back,
            )
            number, at = await self._commit(claim, kept, [], progress)
            found += number
            if last:
                return found, position, until
            until = at

    async def _begin(self, claim: Claim) -> int:
        """Without a position: back to what is known, and from here on what follows."""
        page = await self._page(claim, "b", None, RECENT)
        position, newest, found, pages = page.start, page.middle(), 0, 1
        while (hole := await self._is_after_a_hole(claim, page)) and pages < FARTHEST:
            found += await self._keep_sorted(claim, page, ON_THE_WAY)
            page = await self._page(claim, "b", page.end, NEW_AT_ONCE)
            pages += 1
        if hole:
            log.warning(
                "a room was missed for so long that it needs a backfill", room_id=claim.room_id
            )
        reaches = page.middle() or claim.at
        progress = Progress(position, claim.at, _is_whole(page), reaches, hole, True, newest, True)
        state = await self._state(claim)
        return found + await self._keep_sorted(claim, page, progress, state)

    async def _is_after_a_hole(self, claim: Claim, page: Page) -> bool:
        """True when something older than this page is known, and the room was not compared since.
        A restored database has such holes, and a room that the bot may read only now."""
        middle = page.middle()
        if middle is None or _is_whole(page):
            return False
        since = await self._archive_made()
        async with self._pool.acquire() as conn:
            return await rooms.known_before(conn, claim.room_id, since, middle)

    async def _look_back(self, claim: Claim, progress: Progress) -> int:
        """What federation delivers late is older than the position by the order of the room."""
        page = await self._page(claim, "b", None, RECENT)
        return await self._keep_sorted(claim, page, progress)

    async def _page(
        self, claim: Claim, direction: Direction, token: str | None, limit: int
    ) -> Page:
        body = await self._pace.ask(
            lambda: self._history.messages(claim.room_id, direction, token, limit)
        )
        page = await read_page(body)
        metrics.HISTORY_EVENTS.labels(Source.RECONCILE).inc(len(page.events.events))
        return page

    async def _state(self, claim: Claim) -> list[Kept]:
        body = await self._pace.ask(lambda: self._history.state(claim.room_id))
        page = await read_page(body, "state")
        return await self._unknown(await keep_page(page.events, self._policy))

    async def _keep_sorted(
        self, claim: Claim, page: Page, progress: Progress, state: Iterable[Kept] = ()
    ) -> int:
        """What of a page is missing, and what of the state is new. Returns how much was lost."""
        lost, old = await self._sorted_out(page)
        here = {kept.row.event_id for kept in (*lost, *old)}
        old += [kept for kept in state if kept.row.event_id not in here]
        number, _ = await self._commit(claim, lost, old, progress)
        return number

    async def _sorted_out(self, page: Page) -> tuple[list[Kept], list[Kept]]:
        """What of a page is missing although it should have been pushed, and what is old: sent
        before there was an archive to push it to."""
        made = (await self._archive_made()).timestamp() * 1000
        unknown = await self._unknown(await keep_page(page.events, self._policy))
        old = [found for found in unknown if (found.row.origin_server_ts or made) < made]
        lost = [found for found in unknown if (found.row.origin_server_ts or made) >= made]
        return await self._missing(lost), old

    async def _archive_made(self) -> datetime:
        if self._made is None:
            async with self._pool.acquire() as conn:
                self._made = await moments.archive_made(conn)
        return self._made

    async def _missing(self, kept: list[Kept]) -> list[Kept]:
        """What of it stays unknown: as long as pushes bring some of it, the rest may follow."""
        missing = await self._unknown(kept)
        while missing:
            await self._grace()
            before, missing = len(missing), await self._unknown(missing)
            if len(missing) == before:
                break
        return missing

    async def _unknown(self, kept: list[Kept]) -> list[Kept]:
        if not kept:
            return []
        async with self._pool.acquire() as conn:
            unknown = await rooms.unknown(conn, [found.row.event_id for found in kept])
        return [found for found in kept if found.row.event_id in unknown]

    async def _commit(
        self, claim: Claim, lost: list[Kept], old: list[Kept], progress: Progress
    ) -> tuple[int, datetime]:
        wait = self._every if progress.over else LEASE
        if lost:
            progress = progress._replace(newest=claim.at)
        async with self._pool.acquire() as conn, conn.transaction():
            # Events before rooms, as a backfill does it, or the two could wait for each other.
            recorded = await record(conn, lost, Source.RECONCILE, self._policy)
            past = [await record(conn, some, Source.BACKFILL, self._policy) for some in _in(old)]
            at = await rooms.advance(conn, claim, progress, wait)
            if at is None:
                raise ClaimLost(claim.room_id)
        recorded.add_to_metrics(Source.RECONCILE)
        for some in past:
            some.add_to_metrics(Source.BACKFILL)
        if recorded.events:
            metrics.GAP_EVENTS.inc(recorded.events)
            log.warning(
                "events were never pushed, and are archived now",
                room_id=claim.room_id,
                events=recorded.events,
            )
        return recorded.events, at


def _in(kept: list[Kept]) -> Iterable[list[Kept]]:
    """Slices: the members of a large room would be too much for one statement."""
    return (kept[start : start + NEW_AT_ONCE] for start in range(0, len(kept), NEW_AT_ONCE))


def _is_whole(page: Page) -> bool:
    """True when a page of the newest events reaches the room's first one.

    https://spec.matrix.org/v1.16/client-server-api/#mroomcreate
    """
    events = page.events.events
    oldest = events[-1] if events else None
    return page.end is None or (
        isinstance(oldest, dict)
        and oldest.get("type") == "m.room.create"
        and oldest.get("state_key") == ""
    )
