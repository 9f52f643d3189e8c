"""Migrations: applied once, in order, by one of several starters, and never over an edit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import asyncpg
import pytest

from archiver.db.migrate import available, is_empty, migrate, migrations_folder, pending
from archiver.db.pool import open_pool
from archiver.errors import OperationError

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

NAMES = [migration.name for migration in available()]

# Columns, constraints and indexes as PostgreSQL itself would write them, whatever their order.
CATALOG = """
SELECT format('%s.%s %s collate %s not null %s default %s identity %s storage %s',
              c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
              l.collname, a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity,
              a.attstorage) AS line
FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_collation AS l ON l.oid = a.attcollation
LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
UNION ALL
SELECT format('%s %s: %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
UNION ALL
SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
ORDER BY line
"""


@pytest.fixture
async def conn(empty_database_url: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(empty_database_url)
    yield connection
    await connection.close()


async def catalog(conn: Connection) -> list[str]:
    return [row["line"] for row in await conn.fetch(CATALOG)]


async def test_an_empty_database_gets_every_migration_once(conn: Connection) -> None:
    """The first run applies all in order, a second one nothing."""
    assert await is_empty(conn)
    assert [migration.name for migration in await pending(conn)] == NAMES
    assert await migrate(conn) == NAMES
    assert not await is_empty(conn)
    assert await pending(conn) == []
    assert await migrate(conn) == []


async def test_asking_writes_nothing(conn: Connection) -> None:
    """`pending` alone leaves an empty database empty."""
    await pending(conn)
    assert await is_empty(conn)


async def test_several_starters_do_the_work_once(empty_database_url: str) -> None:
    """Of three at the same moment one applies everything, and the others wait and find it done."""
    async with open_pool(empty_database_url, 3) as pool:

        async def start() -> list[str]:
            async with pool.acquire() as conn:
                return await migrate(conn)

        applied = await asyncio.gather(*(start() for _ in range(3)))
    assert sorted(applied) == [[], [], NAMES]


async def test_a_waiting_starter_outwaits_the_pools_patience(empty_database_url: str) -> None:
    """Another's long migration does not end ours by the time limit of ordinary statements."""
    first = await asyncpg.connect(empty_database_url, command_timeout=0.05)
    second = await asyncpg.connect(empty_database_url)
    try:
        await second.execute("SELECT pg_advisory_lock(7171425)")
        waiting = asyncio.create_task(migrate(first))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        await second.execute("SELECT pg_advisory_unlock(7171425)")
        assert not done
        assert await waiting == NAMES
    finally:
        await first.close()
        await second.close()


async def test_an_edited_file_is_refused(conn: Connection) -> None:
    """What was applied is no longer what the file says: a sentence with its name."""
    await migrate(conn)
    await conn.execute("UPDATE schema_migration SET sha256 = 'edited' WHERE version = 1")
    for refused in (pending, migrate):
        with pytest.raises(OperationError, match=f"{NAMES[0]} was edited.*restore the file"):
            await refused(conn)


async def test_a_newer_database_is_refused(conn: Connection) -> None:
    """A program that is older than the schema does not touch it."""
    await migrate(conn)
    await conn.execute("INSERT INTO schema_migration VALUES (9999, 'future', '')")
    for refused in (pending, migrate):
        with pytest.raises(OperationError, match=r"newer than this program .*9999"):
            await refused(conn)


async def test_after_a_refusal_the_lock_is_free(conn: Connection, empty_database_url: str) -> None:
    """Who was refused stands in nobody's way."""
    await migrate(conn)
    await conn.execute("INSERT INTO schema_migration VALUES (9999, 'future', '')")
    with pytest.raises(OperationError):
        await migrate(conn)
    other = await asyncpg.connect(empty_database_url)
    assert await other.fetchval("SELECT pg_try_advisory_lock(7171425)")
    await other.close()


async def test_a_migration_that_fails_leaves_nothing(conn: Connection) -> None:
    """A table that somebody else made is in the way: a sentence, and none of ours is there."""
    await conn.execute("CREATE TABLE reference (x integer)")
    with pytest.raises(OperationError, match=f'{NAMES[0]} was not applied .*"reference" already'):
        await migrate(conn)
    tables = await conn.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert [row[0] for row in tables] == ["reference"]


async def test_a_user_who_may_not_make_tables_is_told_so(conn: Connection) -> None:
    """The commonest mistake with a database of one's own is a sentence, not a traceback."""
    role = f"reader_{await conn.fetchval('SELECT pg_backend_pid()')}"
    await conn.execute(f'CREATE ROLE "{role}"')
    await conn.execute(f'REVOKE CREATE ON SCHEMA public FROM PUBLIC; SET ROLE "{role}"')
    try:
        with pytest.raises(OperationError, match=r"permission denied.*must own the database"):
            await migrate(conn)
    finally:
        await conn.execute(f'RESET ROLE; DROP ROLE "{role}"')


async def test_the_schema_at_a_glance_is_what_the_migrations_make(
    pool: Pool, conn: Connection
) -> None:
    """migrations/schema.sql makes the very same columns, constraints, indexes and triggers."""
    await conn.execute((migrations_folder() / "schema.sql").read_text("utf-8"))
    async with pool.acquire() as migrated:
        assert await catalog(conn) == await catalog(migrated)


async def test_inline_bytes_are_not_compressed(pool: Pool) -> None:
    """The catalog above would tell the difference: EXTERNAL is among what it shows."""
    async with pool.acquire() as conn:
        lines = await catalog(conn)
    assert any(line.startswith("blob_data.data bytea") and "storage e" in line for line in lines)


async def test_a_database_url_that_cannot_be_read_shows_no_password() -> None:
    """A password with a slash is a common mistake; the sentence says how to write it."""
    with pytest.raises(OperationError, match=r"password is written as %2F") as caught:
        async with open_pool("postgresql://user:hunter2/x@127.0.0.1/db", 1):
            pass
    assert "hunter2" not in str(caught.value)


async def test_a_database_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, and none coming: a sentence with what to check."""
    monkeypatch.setattr("archiver.db.pool.START_SECONDS", 0.1)
    with pytest.raises(OperationError, match=r"does not answer .*check database\.url"):
        async with open_pool("postgresql://user:x@127.0.0.1:1/db", 1):
            pass
