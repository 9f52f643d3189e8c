"""The database as one file, and a database from such a file, by PostgreSQL's own programs.

The file has pg_dump's custom format. It is what one moment's transactions see, however long it
takes, and whoever writes meanwhile goes on.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from archiver.db.embedded.binaries import wheel_folders
from archiver.db.migrate import alone, is_archive, is_empty
from archiver.db.pool import Connection, open_pool
from archiver.disk import private, sync_folder
from archiver.errors import OperationError

LEAN = ("--no-owner", "--no-privileges", "--no-password")  # whoever restores it owns it
PATIENCE = 86_400.0  # seconds for planning anew over all that was restored

# What pg_dump and pg_restore say, and what to do about it.
ADVICE = (
    ("no space left on device", "make room there"),
    ("unsupported version", "the dump was made by a newer PostgreSQL: install its programs"),
    ("not appear to be a valid", "this is no dump of `archiver database dump`"),
    ("input file", "the dump is not whole: take another one"),
    ("end of file", "the dump is not whole: take another one"),
    ("permission denied", "the user in database.url must own the database"),
)
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")


class Program(NamedTuple):
    """One of PostgreSQL's programs, and its major version."""

    path: Path
    major: int


async def dump(dsn: str, out: Path | None) -> None:
    """Writes the database to a file, under its name once it is whole; None: standard output.

    Raises OperationError; a file of that name stays as it was then.
    """
    async with _connected(dsn) as conn:
        if not await is_archive(conn):
            raise OperationError(
                "there is no archive in this database: see that database.url and database.data_dir"
                " in the configuration are those of the archive that runs"
            )
        program = await asyncio.to_thread(_found, "pg_dump", conn.get_server_version().major)
    uri, env = for_libpq(dsn)
    command = [str(program.path), "--format=custom", *LEAN, "--dbname", uri]
    if out is None:
        await _run(command, env, "the database was not dumped")
        return
    with _whole(out) as part:
        # By name: what it is given as standard output it only appends to, which leaves the list of
        # contents without places.
        await _run([*command, f"--file={part}"], env, f"{out} was not written")


async def restore(dsn: str, source: Path | None) -> None:
    """Brings a dump into an empty database, all of it or nothing; None: from standard input.

    Raises OperationError.
    """
    async with _connected(dsn) as conn, alone(conn):
        if not await is_empty(conn):
            raise OperationError(
                "the database is not empty, and nothing in it was touched: restore into a new"
                " one, with another database.url, or another database.data_dir"
            )
        program = await asyncio.to_thread(_found, "pg_restore", conn.get_server_version().major)
        uri, env = for_libpq(dsn)
        all_or_nothing = "--single-transaction", "--exit-on-error"
        command = [str(program.path), *all_or_nothing, *LEAN, "--dbname", uri]
        with _opened(source) as file:
            await _run(command, env, "nothing was restored", file)
        if not await is_archive(conn):
            raise OperationError("what was restored is no archive's database: see what dump it is")
        await conn.execute("ANALYZE", timeout=PATIENCE)


def fitting(found: Sequence[Program], name: str, major: int) -> Program:
    """The program for a server of this major version: of the same, else of the next newer one.

    An older one does not read what the server has. Raises OperationError.
    """
    fit = [program for program in found if program.major >= major]
    if fit:
        return min(fit, key=lambda program: program.major)
    newest = max((program.major for program in found), default=None)
    told = f"only that of PostgreSQL {newest} was found" if newest else "none was found"
    raise OperationError(
        f"the database is PostgreSQL {major}, which needs {name} of {major} or newer, and {told}:"
        f" install PostgreSQL's client programs (Debian: apt install postgresql-client-{major})"
    )


def for_libpq(dsn: str) -> tuple[str, dict[str, str]]:
    """The same way into the database for PostgreSQL's programs, the password in the environment:
    everybody on the machine sees what is on a command line."""
    parts = urlsplit(dsn)
    account, at, hosts = parts.netloc.rpartition("@")
    user, _, password = account.partition(":")
    query = dict(parse_qsl(parts.query))
    secret = query.pop("password", None) or unquote(password)
    asked = f"?{urlencode(query, quote_via=quote)}" if query else ""
    # In English, as ADVICE is.
    env = {**os.environ, "LC_ALL": "C", **({"PGPASSWORD": secret} if secret else {})}
    return f"{parts.scheme}://{user}{at}{hosts}{parts.path}{asked}", env


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Connection]:
    async with open_pool(dsn, 1) as pool, pool.acquire() as conn:
        yield conn


def _found(name: str, major: int) -> Program:
    return fitting(list(_installed(name)), name, major)


def _installed(name: str) -> Iterator[Program]:
    """Where they are: in the wheel, in a distribution's own folders, on the path."""
    on_path = shutil.which(name)
    folders = [*wheel_folders(), *Path("/usr/lib/postgresql").glob("*/bin")]
    # What a link on the path leads to may be a program that chooses one, with a name of its own.
    folders += [Path(on_path).resolve().parent] if on_path else []
    for path in (folder / name for folder in folders):
        if path.is_file():
            done = subprocess.run(  # noqa: S603 -- a program of the installation, without input
                [path, "--version"], capture_output=True, text=True, check=False
            )
            if match := _VERSION.search(done.stdout):
                yield Program(path, int(match[1]))


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A file that is called `out` at the end of the block, and durable then; else there is none.

    Whoever is killed leaves `….part`, which the next one empties.
    """
    part = out.with_name(f"{out.name}.part")
    try:
        with open(part, "ab", opener=private) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                file.truncate(0)
                yield part
                os.fsync(file.fileno())
                part.replace(out)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        sync_folder(out.absolute().parent)
    except BlockingIOError:
        raise OperationError(f"another dump is being written to {out}: wait for it") from None
    except OSError as error:
        raise OperationError(f"{out} was not written: {error.strerror}") from error


@contextmanager
def _opened(source: Path | None) -> Iterator[IO[bytes] | None]:
    if source is None:
        yield None
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise OperationError(f"{source} cannot be read: {error.strerror}") from error
    with file:
        yield file


async def _run(
    command: Sequence[str],
    env: dict[str, str],
    what: str,
    stdin: IO[bytes] | int | None = subprocess.DEVNULL,
) -> None:
    """Raises OperationError that begins with `what` happened."""
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdin=stdin, stderr=subprocess.PIPE
    )
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise OperationError(f"{what}: {_told(said.decode('utf-8', 'replace'))}")


def _told(said: str) -> str:
    """The first error is the cause of the others."""
    lines = said.strip().splitlines() or ["its program was ended"]
    cause = next((line for line in lines if "error:" in line), lines[-1])
    cause = cause.partition("error: ")[2] or cause
    advice = next((advice for words, advice in ADVICE if words in said.lower()), None)
    return f"{cause}; {advice}" if advice else cause
