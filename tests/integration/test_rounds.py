"""Verification by itself: everything is hashed anew, slowly, by one process, holding nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING

import asyncpg
import pytest
from prometheus_client import REGISTRY

from archiver.catalogue import verification
from archiver.db.migrate import migrate
from archiver.db.pool import DATABASE_AWAY, open_pool
from archiver.fetch.archive import Parts
from archiver.keep import rounds as rounds_module
from archiver.keep.quarantine import OURSELVES
from archiver.keep.rounds import Rounds
from archiver.store.filesystem import FilesystemStore
from tests.support.fetching import INLINE_LIMIT, parts, until
from tests.support.homeserver import Homeserver
from tests.support.keeping import archive, blob_of, custody, file_of
from tests.support.postgres import PostgresProcess
from tests.support.redacting import image, push

if TYPE_CHECKING:
    from archiver.db.pool import Pool

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)
MONTH = timedelta(days=30)
NEVER = "SELECT count(*) FROM blob WHERE verified_at IS NULL"


@pytest.fixture
async def ours(ours: Parts, homeserver: Homeserver) -> Parts:
    """An archive with a small and a large media."""
    await _fill(ours, homeserver)
    return ours


async def _fill(ours: Parts, homeserver: Homeserver) -> None:
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)


async def known(pool: Pool) -> list[verification.Known]:
    async with pool.acquire() as conn:
        return await verification.known_damaged(conn, 10)


def rounds(ours: Parts, url: str, rate: int = 10**9) -> Rounds:
    return Rounds(url, ours.pool, ours.store, rate, MONTH)


async def test_a_round_verifies_what_is_due(
    ours: Parts, database_url: str, tmp_path: Path
) -> None:
    """And finds what is damaged; what was verified within the month is passed over."""
    before = REGISTRY.get_sample_value("archiver_verified_bytes_total") or 0
    await rounds(ours, database_url).once()
    after = REGISTRY.get_sample_value("archiver_verified_bytes_total") or 0
    assert after - before == len(SMALL) + len(LARGE)
    file_of(tmp_path, (await blob_of(ours.pool, "dog")).sha256).unlink()
    await rounds(ours, database_url).once()
    assert await known(ours.pool) == []
    await ours.pool.execute("UPDATE blob SET verified_at = now() - interval '31 days'")
    await rounds(ours, database_url).once()
    [damaged] = await known(ours.pool)
    assert damaged.sha256 == (await blob_of(ours.pool, "dog")).sha256
    [line] = await custody(ours.pool)
    assert line[:3] == (*OURSELVES, "verify")


async def test_a_round_is_one_process_s(ours: Parts, database_url: str) -> None:
    """The others leave it to that one."""
    async with ours.pool.acquire() as conn:
        await conn.execute(rounds_module.TRY_LOCK, rounds_module.LOCK)
        await rounds(ours, database_url).once()
        never = "SELECT count(*) FROM blob WHERE verified_at IS NULL"
        assert await ours.pool.fetchval(never) == 2
        await conn.execute(rounds_module.UNLOCK, rounds_module.LOCK)
    await rounds(ours, database_url).once()
    assert await ours.pool.fetchval(never) == 0


async def test_a_round_keeps_its_pace(ours: Parts, database_url: str) -> None:
    """However fast the disk is: so many bytes a second."""
    slow = rounds(ours, database_url, rate=1)
    working = asyncio.create_task(slow.once())

    async def owes() -> bool:
        return slow._free_at > time.monotonic() + INLINE_LIMIT / 2

    await until(owes, "what was hashed is paid for")
    assert not working.done()
    working.cancel()
    await asyncio.wait([working])


class Doors(FilesystemStore):
    """Its reads wait at a door, and tell that they have come."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reached, self.opens = asyncio.Event(), asyncio.Event()

    async def read(
        self, sha256: bytes, start: int = 0, stop: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        self.reached.set()
        await self.opens.wait()
        async for chunk in super().read(sha256, start, stop):
            yield chunk

    async def open_file(self, sha256: bytes) -> IO[bytes]:
        self.reached.set()
        await self.opens.wait()
        return await super().open_file(sha256)


async def test_no_connection_of_the_pool_is_held_while_bytes_are_read(
    database_url: str, tmp_path: Path, homeserver: Homeserver
) -> None:
    """A pool of a single connection serves the round and everybody else."""
    objects = Doors(tmp_path / "objects")
    async with (
        open_pool(database_url, 1) as pool,
        parts(pool, tmp_path, homeserver.url, objects=objects) as ours,
    ):
        await _fill(ours, homeserver)
        working = asyncio.create_task(rounds(ours, database_url).once())
        async with asyncio.timeout(30):
            await objects.reached.wait()
            for _ in range(10):
                assert await pool.fetchval("SELECT 1") == 1
            objects.opens.set()
            await working
        assert await pool.fetchval(NEVER) == 0


async def test_a_round_outlives_the_database(
    own_postgres: PostgresProcess,
    tmp_path: Path,
    homeserver: Homeserver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped while bytes are hashed, it is begun again, and all is verified in the end."""
    monkeypatch.setattr(rounds_module, "PAUSE_SECONDS", 0.05)
    objects, url = Doors(tmp_path / "objects"), own_postgres.url
    async with (
        open_pool(url, 4) as pool,
        parts(pool, tmp_path, homeserver.url, objects=objects) as ours,
    ):
        async with pool.acquire() as conn:
            await migrate(conn)
        await _fill(ours, homeserver)
        working = asyncio.create_task(rounds(ours, url).run())
        await objects.reached.wait()
        await asyncio.to_thread(own_postgres.stop)
        objects.opens.set()
        await asyncio.to_thread(own_postgres.start)

        async def verified() -> bool:
            try:
                return bool(await pool.fetchval(NEVER) == 0)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return False

        await until(verified, "all is verified")
        assert not working.done()
        assert await known(pool) == []
        working.cancel()
        await asyncio.wait([working])


async def test_who_lost_the_lock_stops_to_read(
    ours: Parts, database_url: str, tmp_path: Path
) -> None:
    """Another process may have it by then: two would read at twice the pace."""
    slow = rounds(ours, database_url, rate=1)
    working = asyncio.create_task(slow.once())

    async def owes() -> bool:
        return slow._free_at > time.monotonic() + INLINE_LIMIT / 2

    await until(owes, "something was hashed")
    held = """SELECT pg_terminate_backend(pid) FROM pg_locks
              WHERE locktype = 'advisory' AND objid = $1 AND database =
                  (SELECT oid FROM pg_database WHERE datname = current_database())"""

    async def cut() -> bool:
        return bool(await ours.pool.fetchval(held, rounds_module.LOCK))

    await until(cut, "its connection is cut")
    await asyncio.wait([working], timeout=30)
    assert working.done()
    assert isinstance(working.exception(), DATABASE_AWAY)
    assert slow._free_at > time.monotonic()  # it did not wait for its turn
