"""deploy/roles.sql: the archive works as a role that cannot change custody."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
from yarl import URL

from archiver.catalogue import readers
from archiver.catalogue.readers import Read, Reads
from archiver.db.migrate import bring_up_to_date
from archiver.db.pool import open_pool
from archiver.fetch.archive import Parts
from tests.support.custody import check, gather, seal
from tests.support.fetching import INLINE_LIMIT, parts
from tests.support.homeserver import Homeserver
from tests.support.keeping import archive, custody
from tests.support.keeping import read as content
from tests.support.redacting import image, mxc, push

if TYPE_CHECKING:
    from archiver.db.pool import Pool

ROLES = Path(__file__).parents[2] / "deploy" / "roles.sql"
SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)
DAY = timedelta(days=1)


@pytest.fixture
async def runner(pool: Pool, database_url: str) -> AsyncIterator[Pool]:
    """As `archiver run` has it. Roles are of a whole server, where other tests may be as well."""
    name = f"archiver_run_{os.urandom(4).hex()}"
    await pool.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    await pool.execute(ROLES.read_text("utf-8").replace("archiver_run", name))
    url = URL(database_url).with_user(name).with_password("secret")
    async with open_pool(str(url), 5) as connected:
        yield connected
    await pool.execute(f"DROP OWNED BY {name}")
    await pool.execute(f"DROP ROLE {name}")


@pytest.fixture
async def ours(runner: Pool, tmp_path: Path, homeserver: Homeserver) -> AsyncIterator[Parts]:
    async with parts(runner, tmp_path, homeserver.url) as built:
        yield built


async def test_it_archives_and_seals(ours: Parts, homeserver: Homeserver) -> None:
    """Media and reads come into custody, and old reads go, as with a role that owns all."""
    await bring_up_to_date(ours.pool, embedded=False)
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    assert await content(ours, "cat") == SMALL
    now = datetime.now(UTC)
    old = Reads(1, now - 9 * DAY, now - 9 * DAY)
    async with ours.pool.acquire() as conn:
        await readers.add(conn, {Read("token:a", None, mxc("cat")): Reads(1, now, now)})
        await readers.add(conn, {Read("token:a", None, mxc("dog")): old})
        await gather(ours.pool)
        assert await readers.delete_old(conn, DAY, 10) == 1
    await seal(ours.pool)
    assert [line[2] for line in await custody(ours.pool)] == ["capture", "read", "reads expired"]
    assert (await check(ours.pool)).wrong == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE custody SET actor = 'eve'",
        "DELETE FROM custody",
        "TRUNCATE custody",
        "UPDATE custody_seal SET hash = sha256('')",
        "DELETE FROM custody_seal",
        "ALTER TABLE custody DISABLE TRIGGER USER",
        "ALTER TABLE custody_seal DISABLE TRIGGER custody_seal_stays",
        "DROP TRIGGER custody_stays ON custody",
        "DROP TABLE custody CASCADE",
        "CREATE OR REPLACE FUNCTION keep_custody() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NULL; END'",
        "SET session_replication_role = replica",
        "UPDATE reading SET reader = 'eve'",
        "UPDATE reading SET id = DEFAULT",
        "TRUNCATE reading",
        "ALTER TABLE reading DISABLE TRIGGER USER",
        "UPDATE captured SET sha256 = sha256('')",
        "UPDATE reading_anchor SET entries = ''",
        "DELETE FROM schema_migration",
    ],
)
async def test_it_cannot_change_custody(runner: Pool, statement: str) -> None:
    """Neither rows nor what protects them."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await runner.execute(statement)


async def test_it_may_use_every_other_table(runner: Pool) -> None:
    """A table that is added needs no change of the file."""
    rows = await runner.fetch(
        "SELECT DISTINCT relname FROM pg_class, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE',"
        " 'DELETE']) AS privilege WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        " AND NOT has_table_privilege(oid, privilege)"
    )
    assert {row["relname"] for row in rows} == {
        "captured", "custody", "custody_seal", "reading", "reading_anchor", "schema_migration",
    }  # fmt: skip
