"""The database as a file and back, and every way in which that may go wrong."""

from __future__ import annotations

import asyncio
import fcntl
from pathlib import Path

import asyncpg
import pytest

from archiver.catalogue import custody
from archiver.db.dump import Program, dump, fitting, for_libpq, restore
from archiver.db.migrate import is_empty
from archiver.db.pool import Pool
from archiver.errors import OperationError
from tests.support.keeping import ADMIN


async def _emptied(url: str) -> bool:
    conn = await asyncpg.connect(url)
    try:
        return await is_empty(conn)
    finally:
        await conn.close()


async def test_what_was_dumped_is_restored(
    pool: Pool, database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    """Rows, bytes, sequences and triggers; the file is its owner's alone, and stands alone."""
    await pool.execute("INSERT INTO blob (sha256, size, place) VALUES (sha256('x'), 3, 'inline')")
    await pool.execute("INSERT INTO blob_data VALUES (sha256('x'), '\\x000102')")
    async with pool.acquire() as one:
        await custody.note(one, *ADMIN, "hold", "of this test")
    file = tmp_path / "archive.dump"
    await dump(database_url, file)
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_mode & 0o777 == 0o600
    await restore(empty_database_url, file)
    conn = await asyncpg.connect(empty_database_url)
    try:
        assert await conn.fetchval("SELECT data FROM blob_data") == b"\0\1\2"
        await custody.note(conn, *ADMIN, "release", "of this test")
        assert [row[0] for row in await conn.fetch("SELECT id FROM custody ORDER BY id")] == [1, 2]
        with pytest.raises(asyncpg.PostgresError):
            await conn.execute("DELETE FROM custody")
        same = "SELECT version, sha256 FROM schema_migration ORDER BY version"
        assert await conn.fetch(same) == await pool.fetch(same)
    finally:
        await conn.close()


async def test_a_database_in_use_is_not_restored_into(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    """Nothing in it is touched."""
    file = tmp_path / "archive.dump"
    await dump(database_url, file)
    await pool.execute("INSERT INTO blob (sha256, size, place) VALUES (sha256('x'), 3, 'object')")
    with pytest.raises(OperationError, match="is not empty"):
        await restore(database_url, file)
    assert await pool.fetchval("SELECT count(*) FROM blob") == 1


async def test_a_database_without_an_archive_is_not_dumped(
    empty_database_url: str, tmp_path: Path
) -> None:
    """A backup of a wrong database would be noticed too late; the older dump stays."""
    file = tmp_path / "archive.dump"
    file.write_bytes(b"an older one")
    with pytest.raises(OperationError, match="there is no archive in this database"):
        await dump(empty_database_url, file)
    assert file.read_bytes() == b"an older one"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.usefixtures("pool")
async def test_of_a_cut_dump_nothing_is_restored(
    database_url: str, empty_database_url: str, tmp_path: Path, part: float
) -> None:
    """The whole one comes into the same database afterwards."""
    whole, cut = tmp_path / "archive.dump", tmp_path / "cut.dump"
    await dump(database_url, whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(OperationError, match=r"nothing was restored: .*(not whole|no dump)"):
        await restore(empty_database_url, cut)
    assert await _emptied(empty_database_url)
    await restore(empty_database_url, whole)


async def test_what_is_no_dump_is_told(empty_database_url: str, tmp_path: Path) -> None:
    """In a sentence; so is a file that is not there."""
    file = tmp_path / "archive.dump"
    with pytest.raises(OperationError, match="cannot be read: No such file"):
        await restore(empty_database_url, file)
    file.write_bytes(b"something else" * 100)
    with pytest.raises(OperationError, match="this is no dump"):
        await restore(empty_database_url, file)


@pytest.mark.usefixtures("pool")
async def test_two_dumps_into_one_file_do_not_mix(database_url: str, tmp_path: Path) -> None:
    """The second one is refused; what a killed one left is none's hindrance."""
    file, part = tmp_path / "archive.dump", tmp_path / "archive.dump.part"
    with part.open("wb") as busy:
        busy.write(b"half a dump")
        busy.flush()
        fcntl.flock(busy, fcntl.LOCK_EX)
        with pytest.raises(OperationError, match="another dump"):
            await dump(database_url, file)
        assert part.read_bytes() == b"half a dump"
    await dump(database_url, file)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes()[:5] == b"PGDMP"


@pytest.mark.usefixtures("pool")
async def test_a_cancelled_dump_leaves_nothing(database_url: str, tmp_path: Path) -> None:
    """Neither a file nor the program."""
    conn = await asyncpg.connect(database_url)
    try:
        async with conn.transaction():
            await conn.execute("LOCK TABLE blob")  # pg_dump waits for it
            dumping = asyncio.create_task(dump(database_url, tmp_path / "archive.dump"))
            waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump'"
            waits += " AND wait_event_type = 'Lock' AND datname = current_database()"
            while not await conn.fetchval(waits):
                assert not dumping.done()
                await asyncio.sleep(0.05)
                await conn.execute("SELECT pg_stat_clear_snapshot()")
            dumping.cancel()
            await asyncio.wait([dumping])
            assert dumping.cancelled()
            assert list(tmp_path.iterdir()) == []
    finally:
        await conn.close()


async def test_a_folder_that_is_not_there_is_told(
    pool: Pool, database_url: str, tmp_path: Path
) -> None:
    """Before anything is dumped."""
    del pool
    with pytest.raises(OperationError, match="was not written: No such file"):
        await dump(database_url, tmp_path / "nowhere" / "archive.dump")


@pytest.mark.parametrize(
    ("found", "fits"),
    [((18, 16), 16), ((15, 18, 17), 17), ((15,), None), ((), None), ((16, 16), 16)],
)
def test_the_programs_are_as_new_as_the_server(found: tuple[int, ...], fits: int | None) -> None:
    """Of its own version where there are such, never older."""
    programs = [Program(Path(str(number)), major) for number, major in enumerate(found)]
    if fits:
        assert fitting(programs, "pg_dump", 16).major == fits
        return
    told = "only that of PostgreSQL 15 was found" if found else "none was found"
    with pytest.raises(OperationError, match=rf"16 or newer, and {told}: install"):
        fitting(programs, "pg_dump", 16)


@pytest.mark.parametrize(
    ("dsn", "uri", "password"),
    [
        ("postgresql://a:p%40ss@h:1/d", "postgresql://a@h:1/d", "p@ss"),
        ("postgresql://a:pw@/d?host=%2Frun%2Fx&port=5", None, "pw"),
        ("postgresql://h/d?password=pw&sslmode=require", "postgresql://h/d?sslmode=require", "pw"),
        ("postgres://a@h1,h2:5/d", "postgres://a@h1,h2:5/d", None),
    ],
)
def test_no_password_is_on_a_command_line(
    monkeypatch: pytest.MonkeyPatch, dsn: str, uri: str | None, password: str | None
) -> None:
    """It is in the program's environment, which is its user's alone to see."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    given, env = for_libpq(dsn)
    assert given == (uri or "postgresql://a@/d?host=%2Frun%2Fx&port=5")
    assert env.get("PGPASSWORD") == password
