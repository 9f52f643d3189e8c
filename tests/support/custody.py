"""Custody as the tests write, seal, change and verify it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import aiohttp

from archiver.capture.policy import CapturePolicy
from archiver.config import Config
from archiver.control.asked import Asked, Means
from archiver.control.registry import find
from archiver.control.reply import Reply
from archiver.keep.custody_check import CustodyCheck
from archiver.keep.sealing import Sealer
from archiver.matrix.history import History
from archiver.matrix.registration import Registration
from archiver.matrix.speech import Speech
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore

if TYPE_CHECKING:
    from archiver.db.pool import Pool

TABLES = ("custody", "custody_seal", "reading")
UNLOCK = "ALTER TABLE {0} DISABLE TRIGGER USER"
RELOCK = "ALTER TABLE {0} ENABLE TRIGGER USER"


async def gather(pool: Pool) -> None:
    """Everything that was captured and read."""
    while await Sealer(pool).gather():
        pass


async def seal(pool: Pool, batch: int = 1000) -> None:
    """Everything that is there."""
    while await Sealer(pool, batch).seal():
        pass


async def tamper(pool: Pool, statement: str, *values: object) -> None:
    """What a superuser can do who gets round the triggers."""
    async with pool.acquire() as conn, conn.transaction():
        for table in TABLES:
            await conn.execute(UNLOCK.format(table))
        await conn.execute(statement, *values)
        for table in TABLES:
            await conn.execute(RELOCK.format(table))


async def check(pool: Pool, wanted: bytes | None = None) -> CustodyCheck:
    """What verifying comes to."""
    found = CustodyCheck(pool, wanted)
    async for _ in found.run():
        pass
    assert found.bad == len(found.wrong)
    return found


class Desk:
    """An administrator on a shell."""

    def __init__(
        self,
        pool: Pool,
        http: aiohttp.ClientSession,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        url = "http://127.0.0.1:1"
        server = {"homeserver": {"url": url, "server_name": "archive.test"}}
        config = Config.model_validate({**server, **(settings or {})})
        store = HybridStore(PostgresStore(pool), PostgresStore(pool), 1000)
        history = History(http, url, "token", "@bot:archive.test")
        speech = Speech(http, url, Registration("a", "token", "hs", "@bot:a", "@as:a"))
        policy = CapturePolicy("archive.test")
        self._means = Means(config, pool, store, history, speech, policy)

    async def give(self, *words: str) -> Reply:
        """A command."""
        found = find(words)
        assert found is not None
        command, rest = found
        asked = Asked(self._means, "shell:al", "shell", self._show, self._show, asyncio.sleep)
        params: dict[str, Any] = command.parse(rest)
        return await command.run(asked, **params)

    async def _show(self, _reply: Reply) -> None:
        pass
