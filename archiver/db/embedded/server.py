"""The PostgreSQL process: a cluster made once, a server started and stopped as our child."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import tempfile
import time

import asyncpg
import structlog

from archiver.db.embedded.binaries import Binaries
from archiver.db.embedded.folder import DATABASE, PORT, ROLE, SOCKET, DataFolder
from archiver.db.embedded.processes import POLL_SECONDS, SHUTDOWNS, end_leftovers, until
from archiver.disk import sync_folder
from archiver.errors import OperationError

log = structlog.get_logger(__name__)

START_SECONDS = 300  # recovery after a crash reads up to max_wal_size of log
_CONNECT_SECONDS = 10
_LOG_MAX = 16 * 1024 * 1024
_TAIL_BYTES = 2000
_PR_SET_PDEATHSIG = 1  # prctl(2)

_SETTINGS = (
    "listen_addresses=",
    f"port={PORT}",
    "unix_socket_permissions=0700",
    "max_connections=200",
    "shared_buffers=128MB",
    "max_wal_size=2GB",
    "fsync=on",
    # In files: /dev/shm is 64 MB in a container, and logind empties it when a user logs out.
    "dynamic_shared_memory_type=mmap",
    "jit=off",
    "timezone=UTC",
    "log_timezone=UTC",
    "logging_collector=off",
    "log_destination=stderr",
)
# libc's collations change with the system and break indexes. PostgreSQL's own, since 17, do not,
# and know upper and lower case beyond ASCII.
_LOCALE = ("--encoding=UTF8", "--locale=C")
_BUILTIN_LOCALE = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
_BUILTIN_SINCE = 17
_NOT_YET = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
)
_prctl = ctypes.CDLL(None).prctl  # looked up here: a forked child had better not


class Server:
    """The server of one cluster, for the process that holds the folder's lock."""

    def __init__(self, binaries: Binaries, folder: DataFolder) -> None:
        self._binaries = binaries
        self._folder = folder
        self._data = folder.path / str(binaries.major)
        self._log = folder.open("server.log", os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """False before the start, and once the process is gone for whatever reason."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Returns when the database takes connections; makes the cluster where there is none.

        Ends a server that a killed archiver left behind. Call it in the thread that lives as long
        as the archiver: the kernel stops the server when that thread ends.
        Raises OperationError with the end of the log.
        """
        self.bound_log()
        await end_leftovers(self._data)
        for stale in (SOCKET, f"{SOCKET}.lock"):
            (self._folder.socket_folder / stale).unlink(missing_ok=True)
        if not self._data.exists():
            await self._create_cluster()
        settings = (*_SETTINGS, f"unix_socket_directories={self._folder.socket_folder}")
        arguments = ["-D", str(self._data), *(part for s in settings for part in ("-c", s))]
        self._process = self._spawn("postgres", arguments, signal.SIGINT)
        await self._wait_ready()

    async def stop(self) -> None:
        """The fast shutdown, for good: connections are cut, all is written, no process is left."""
        try:
            for word, seconds in SHUTDOWNS:
                if self._process and self.running:
                    self._process.send_signal(word)
                    await until(lambda: not self.running, seconds)
            if self.running:
                log.error("the embedded PostgreSQL does not end", folder=str(self._data))
        finally:
            os.close(self._log)

    def bound_log(self) -> None:
        """Empties server.log when it has grown large; PostgreSQL goes on at its new end."""
        if os.fstat(self._log).st_size > _LOG_MAX:
            os.ftruncate(self._log, 0)

    async def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        dsn = self._folder.dsn()
        while not await accepts(dsn):
            if not self.running:
                raise OperationError(f"the embedded PostgreSQL did not start:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise OperationError(
                    f"the embedded PostgreSQL is not up after {START_SECONDS} s:\n{self._tail()}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def _create_cluster(self) -> None:
        """Makes the cluster beside its place, so that a kill leaves nothing half-made there."""
        major = self._binaries.major
        self._folder.remove(f"{major}.new-*")
        new = self._folder.new_folder(f"{major}.new-")
        locale = (*_LOCALE, *(_BUILTIN_LOCALE if major >= _BUILTIN_SINCE else ()))
        access = ("-A", "scram-sha-256", f"--pwfile={self._folder.path / 'password'}")
        command = ["-D", str(new), "-U", ROLE, *access, *locale, "-k", "--no-instructions"]
        await self._run("initdb", command)
        single = ["--single", "-D", str(new), "-c", "exit_on_error=on", "postgres"]
        await self._run("postgres", single, f"CREATE DATABASE {DATABASE}\n")
        new.rename(self._data)
        await asyncio.to_thread(sync_folder, self._folder.path)

    async def _run(self, program: str, arguments: list[str], words: str = "") -> None:
        """Runs a program to its end. It does not outlive a cancelled start, or our own death."""
        with tempfile.TemporaryFile() as given:
            given.write(words.encode())
            given.seek(0)
            process = self._spawn(program, arguments, signal.SIGKILL, given.fileno())
        try:
            await until(lambda: process.poll() is not None, START_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            raise OperationError(f"PostgreSQL's {program} failed:\n{self._tail()}")

    def _spawn(
        self,
        program: str,
        arguments: list[str],
        when_we_die: signal.Signals,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """A child in a session of its own: Ctrl-C reaches us alone, and we end it in order."""
        account, parent = self._folder.account, os.getpid()

        def tie_to_parent() -> None:  # after the change of user, which would undo it
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would swallow it
            _prctl(_PR_SET_PDEATHSIG, int(when_we_die))
            if os.getppid() != parent:
                os._exit(1)

        return subprocess.Popen(  # noqa: S603 -- PostgreSQL's programs, no user's words
            [self._binaries.bin / program, *arguments],
            stdin=stdin,
            stdout=self._log,
            stderr=self._log,
            cwd=self._folder.path,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            umask=0o077,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            preexec_fn=tie_to_parent,
        )

    def _tail(self) -> str:
        size = os.fstat(self._log).st_size
        end = os.pread(self._log, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        return end.decode("utf-8", "replace").strip()


async def accepts(dsn: str) -> bool:
    """Whether the server takes connections yet. Raises OperationError when it never will."""
    try:
        conn = await asyncpg.connect(dsn, timeout=_CONNECT_SECONDS)
        await conn.close(timeout=_CONNECT_SECONDS)
    except _NOT_YET:
        return False
    except asyncpg.PostgresError as error:
        raise OperationError(
            f"the embedded PostgreSQL refuses the archiver ({error}): the file password, the"
            " database archiver and its role must be as the archiver made them"
        ) from error
    return True
