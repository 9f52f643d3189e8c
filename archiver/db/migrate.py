"""Brings a database to the present schema: plain SQL files, each applied once, in order.

An advisory lock lets one of several starters do the work while the others wait; each file is one
transaction with the row that says it was applied. A file that was edited after it was applied, and
a database newer than this program, are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import structlog

from archiver.errors import OperationError

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

_LOCK = 0x6D6D61  # "mma": any number that nobody else locks
_PATIENCE = 7 * 86_400.0  # an index over years of events takes longer than any query of ours may

CREATE_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migration (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    sha256     bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
LEDGER_EXISTS = "SELECT to_regclass('schema_migration') IS NOT NULL"
APPLIED = "SELECT version, sha256 FROM schema_migration"
RECORD = "INSERT INTO schema_migration (version, name, sha256) VALUES ($1, $2, $3)"
ANY_TABLE = "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = current_schema())"

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Migration:
    """One numbered file, like `0001_initial.sql`."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> bytes:
        """What tells an edited file from the one that was applied."""
        return hashlib.sha256(self.sql.encode()).digest()


def migrations_folder() -> Path:
    """Inside an installed package the files lie within it, in a checkout at its top."""
    package = Path(__file__).parent.parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def available() -> list[Migration]:
    """Every migration this program knows, in order."""
    files = sorted(migrations_folder().glob("[0-9]*.sql"))
    return [
        Migration(int(re.match(r"\d+", file.name)[0]), file.stem, file.read_text("utf-8"))  # type: ignore[index]  # the glob says so
        for file in files
    ]


async def is_empty(conn: Connection) -> bool:
    """True when nobody has made a table here yet."""
    return not await conn.fetchval(ANY_TABLE)


async def is_archive(conn: Connection) -> bool:
    """True when this database was ever migrated."""
    return bool(await conn.fetchval(LEDGER_EXISTS))


async def pending(conn: Connection) -> list[Migration]:
    """What `migrate` would apply. Raises OperationError where it must not go on."""
    applied: dict[int, bytes] = {}
    if await is_archive(conn):
        applied = {row["version"]: row["sha256"] for row in await conn.fetch(APPLIED)}
    known = {migration.version: migration for migration in available()}
    if newer := sorted(applied.keys() - known.keys()):
        raise OperationError(
            f"the database is newer than this program (it has migration {newer[-1]}): "
            "install the archiver's newer version again"
        )
    for version, sha256 in applied.items():
        if known[version].sha256 != sha256:
            raise OperationError(
                f"migration {known[version].name} was edited after it had been applied: "
                "restore the file as it was released"
            )
    return [migration for version, migration in known.items() if version not in applied]


async def migrate(conn: Connection) -> list[str]:
    """Applies what is pending and returns its names. Safe to start several times at once.

    Raises OperationError; of the migration that it names nothing was applied.
    """
    async with alone(conn):
        todo = await pending(conn)
        for migration in todo:
            try:
                await _apply(conn, migration)
            except asyncpg.PostgresError as error:
                raise OperationError(
                    f"migration {migration.name} was not applied ({error}): the user in "
                    "database.url must own the database, or may at least create tables in it"
                ) from error
        return [migration.name for migration in todo]


@asynccontextmanager
async def alone(conn: Connection) -> AsyncIterator[None]:
    """Nobody else makes or changes tables here meanwhile: other starters wait."""
    await conn.execute("SELECT pg_advisory_lock($1)", _LOCK, timeout=_PATIENCE)
    try:
        yield
    finally:
        await conn.execute("SELECT pg_advisory_unlock($1)", _LOCK)


async def _apply(conn: Connection, migration: Migration) -> None:
    async with conn.transaction():
        await conn.execute(CREATE_LEDGER)
        await conn.execute(migration.sql, timeout=_PATIENCE)
        await conn.execute(RECORD, migration.version, migration.name, migration.sha256)


async def bring_up_to_date(pool: Pool, *, embedded: bool) -> None:
    """Migrates a database that is ours alone; one that others may care for only on command.

    Raises OperationError where that command is missing.
    """
    async with pool.acquire() as conn:
        if embedded or await is_empty(conn):
            for name in await migrate(conn):
                log.info("the database was migrated", migration=name)
        elif waiting := await pending(conn):
            raise OperationError(
                f"the database lacks {len(waiting)} migration(s), from {waiting[0].name} on: "
                "make a backup, then run `archiver migrate`"
            )
