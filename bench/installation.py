"""The archive under measurement: the real `archiver` command, with parts started one by one."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg
import yaml

from bench.ground import SERVER_NAME, Ground
from bench.push import EVENTS, Pusher, transaction
from tests.support.archiver import ARCHIVER, Archiver
from tests.support.process import Server

IS_UP = "the archive is up"
DEADLINE = 180
HOT_CACHE = "64 MiB"  # the default of serve.hot_cache
STATES = """
SELECT json_object_agg(state, n)::text
FROM (SELECT state, count(*) AS n FROM media GROUP BY state) AS s
"""
UNPICTURED = "SELECT count(*) FROM blob WHERE processing = 'pending'"


class Archive:
    """An archive's files and ports. Its database and store are chosen before each run."""

    def __init__(self, ground: Ground, name: str = "archive") -> None:
        self.ground = ground
        self.files = Archiver(ground.folder / name, server_name=SERVER_NAME)
        self.files.init()
        self.registration: dict[str, Any] = yaml.safe_load(self.files.registration.read_text())
        self.database = ""
        self._runs = 0

    def configure(
        self,
        homeserver_url: str,
        storage: Mapping[str, Any],
        history: Mapping[str, Any] | None = None,
        serve: Mapping[str, Any] | None = None,
    ) -> None:
        """A fresh database, and the sections as in config.yaml."""
        if self.database:
            self.ground.drop(self.database)
        self.database = self.ground.database()
        settings = {
            "database": {"url": self.database},
            "storage": storage,
            "history": history or {},
            "serve": {"rate_limit": None, "hot_cache": HOT_CACHE, **(serve or {})},
            "log": {"level": "info", "format": "json"},
        }
        self.files.configure(homeserver_url, settings)

    def change(self, section: str, settings: Mapping[str, Any]) -> None:
        """Some keys of config.yaml; the next run has them."""
        values = yaml.safe_load(self.files.config.read_text("utf-8"))
        values[section] = {**values.get(section, {}), **settings}
        self.files.config.write_text(yaml.safe_dump(values), "utf-8")

    @contextmanager
    def running(self, *parts: str) -> Iterator[Server]:
        """`archiver run --only …`, from when it is up."""
        self._runs += 1
        log = self.files.folder / f"run-{self._runs}.log"
        command = [*ARCHIVER, "run", "--only", ",".join(parts), "-c", str(self.files.config)]
        server = Server("archiver", command, log, ready=lambda: IS_UP in log.read_text())
        server.start()
        try:
            yield server
        finally:
            server.stop(60)

    def token(self) -> str:
        """A new token of the present database, with scope read."""
        name = secrets.token_hex(4)
        arguments = ("token", "create", name, "--scope", "read", "-c", str(self.files.config))
        return self.files.command(*arguments).strip()

    def push(self, mxcs: Sequence[str]) -> None:
        """Events that name these media; the intake must be running."""
        pusher = Pusher(self.files.push_port, self.registration["hs_token"])
        for start in range(0, len(mxcs), EVENTS):
            some = mxcs[start : start + EVENTS]
            pusher.push(transaction(some, secrets.token_hex(8)))
        pusher.close()

    def until_ready(self, count: int) -> None:
        """Waits until `count` media, and no others, are archived."""
        deadline = time.monotonic() + DEADLINE
        while (states := json.loads(self.sql(STATES) or "{}")) != {"ready": count}:
            assert time.monotonic() < deadline, f"{count} media are not ready: {states}"
            time.sleep(0.2)

    def until_pictured(self) -> None:
        """Waits until the thumbnails that are made ahead of readers are there."""
        deadline = time.monotonic() + DEADLINE
        while waiting := self.sql(UNPICTURED):
            assert time.monotonic() < deadline, f"{waiting} media still have no thumbnails"
            time.sleep(0.2)

    def sql(self, statement: str) -> Any:
        """The first column of the first row."""
        return asyncio.run(_fetch_value(self.database, statement))


async def _fetch_value(dsn: str, statement: str) -> Any:
    conn = await asyncpg.connect(dsn)
    try:
        return await conn.fetchval(statement)
    finally:
        await conn.close()
