"""What fetching stands on, as the configuration has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archiver.fetch.archive import Parts
from archiver.fetch.download import MediaSource
from archiver.store.spool import Spool

if TYPE_CHECKING:
    import aiohttp

    from archiver.config import Config
    from archiver.db.pool import Pool
    from archiver.matrix.registration import Registration
    from archiver.store.hybrid import HybridStore

SMALL = 1024 * 1024  # bodies up to here never touch the spool's disk, whatever the inline limit


def configured(
    config: Config,
    registration: Registration,
    pool: Pool,
    session: aiohttp.ClientSession,
    store: HybridStore,
) -> Parts:
    """The parts of `worker.concurrency` downloads at a time, of their own at each call."""
    storage, bot, as_token = config.storage, registration.bot, registration.as_token
    storage.spool.mkdir(parents=True, exist_ok=True)
    return Parts(
        pool,
        MediaSource(session, config.homeserver.url, as_token, bot, config.worker.concurrency),
        Spool(storage.spool, max(storage.inline_limit, SMALL)),
        store,
        config.capture.max_size,
        config.history.remote_rate,
    )
