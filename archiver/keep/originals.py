"""`capture.on_redaction: keep`: events that came emptied are asked for as they were before.

A push that waited comes rebuilt from the homeserver's database, and history comes as it is now:
what was redacted meanwhile is empty. The homeserver shows its administrators the original for a
while (Synapse: `redaction_retention_period`, 7 days).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from archiver.capture.batch import Batch, NotJSON
from archiver.capture.record import record
from archiver.capture.rows import Kept, keep_one
from archiver.catalogue import redactions
from archiver.db.pool import DATABASE_AWAY
from archiver.errors import FetchFailed, Retryable
from archiver.model import Source

if TYPE_CHECKING:
    from archiver.capture.policy import CapturePolicy
    from archiver.db.pool import Connection, Pool
    from archiver.matrix.history import History

POLL_SECONDS = 5.0
RETRY_SECONDS = 30.0
REST = 9  # times as long as an answer took: the homeserver is asked a tenth of the time

LOCK = 0x6D6D61_02  # one of all processes asks
TRY_LOCK = "SELECT pg_try_advisory_lock($1)"
UNLOCK = "SELECT pg_advisory_unlock($1)"


log = structlog.get_logger(__name__)


class Originals:
    """Asks one by one, while our bot is an administrator; else they stay wanted."""

    def __init__(self, pool: Pool, history: History, policy: CapturePolicy) -> None:
        self._pool = pool
        self._history = history
        self._policy = policy

    async def run(self) -> None:
        """Asks until cancelled."""
        while True:
            pause = POLL_SECONDS
            try:
                await self.ask_for_all()
            except Retryable as error:
                log.info("originals wait for the homeserver", reason=str(error))
                pause = RETRY_SECONDS
            except DATABASE_AWAY as error:
                log.warning("originals wait for the database", reason=str(error))
            await asyncio.sleep(pause)

    async def ask_for_all(self) -> None:
        """Everything wanted, unless another process is at it. Raises Retryable."""
        async with self._pool.acquire() as conn:
            if not await redactions.next_wanted(conn, "") or not await self._history.is_admin():
                return
            if not await conn.fetchval(TRY_LOCK, LOCK):
                return
            try:
                await self._ask_for_each(conn)
            finally:
                await conn.execute(UNLOCK, LOCK)

    async def _ask_for_each(self, conn: Connection) -> None:
        event_id, failed = "", None
        while wanted := await redactions.next_wanted(conn, event_id):
            event_id, source = wanted
            started = time.monotonic()
            try:
                body = await self._history.original(event_id)
            except FetchFailed as error:  # of this one: the others need not wait for it
                failed = error
            else:
                if body is None and not await self._history.is_admin():
                    return
                await self._take(conn, event_id, Source(source), body)
            await asyncio.sleep(REST * (time.monotonic() - started))
        if failed:
            raise failed

    async def _take(
        self, conn: Connection, event_id: str, source: Source, body: bytes | None
    ) -> None:
        batch = _batch(body, event_id)
        if batch is None:
            await redactions.give_up_original(conn, event_id)
            log.info("the homeserver has no original any more", event_id=event_id)
        elif kept := _keep(batch, self._policy):
            await record(conn, [kept], source, self._policy)
            log.info("the original of a redacted event was kept", event_id=event_id)
        else:
            await redactions.forget(conn, event_id)


def _keep(batch: Batch, policy: CapturePolicy) -> Kept | None:
    """As if nothing had been redacted, which the homeserver says beside the content."""
    unsigned = batch.events[0].get("unsigned")
    if isinstance(unsigned, dict):
        for sign in ("redacted_because", "redacted_by"):
            unsigned.pop(sign, None)
    return keep_one(batch, 0, policy)


def _batch(body: bytes | None, event_id: str) -> Batch | None:
    """The event under `event`, which is all of the body; None where it is empty even so."""
    if body is None:
        return None
    start, stop = body.find(b":") + 1, body.rfind(b"}")
    try:
        batch = Batch(b'{"events":[' + body[start:stop] + b"]}")
    except NotJSON:
        return None
    event = batch.events[0] if len(batch.events) == 1 else None
    if isinstance(event, dict) and event.get("event_id") == event_id and event.get("content"):
        return batch
    return None
