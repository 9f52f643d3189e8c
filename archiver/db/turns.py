"""Work in turns, until cancelled: one may fail with the database, and the next one goes on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType

import asyncpg
import structlog

from archiver.db.pool import DATABASE_AWAY

log = structlog.get_logger(__name__)


class outliving:  # noqa: N801 -- a statement, as contextlib.suppress is
    """A turn of `what`, which ends with a line in the log where the database, or what these errors
    tell of, is away, and where PostgreSQL breaks it off. Any other error goes through."""

    def __init__(self, what: str, *outages: type[Exception]) -> None:
        self._waits, self._failed = f"{what} waits", f"{what} failed, and is tried again"
        self._outages = outages

    def __enter__(self) -> None:
        """The turn begins."""

    def __exit__(
        self, _kind: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        """True where the next turn may go better."""
        if isinstance(error, self._outages):
            log.warning(self._waits, reason=str(error))
        elif isinstance(error, DATABASE_AWAY):
            log.warning(self._waits, reason=f"the database does not answer: {error}")
        elif isinstance(error, asyncpg.PostgresError):
            log.error(self._failed, exc_info=error)
        else:
            return False
        return True


async def woken(wake: asyncio.Event, seconds: float) -> None:
    """Returns once it is set, or after so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()
