"""The folder `database.data_dir`: made, recognised, and owned by the user PostgreSQL runs as."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

from archiver.db.embedded.account import check_reachable, server_account
from archiver.errors import OperationError

ROLE = DATABASE = "archiver"
PORT = 5432
SOCKET = f".s.PGSQL.{PORT}"

# A socket's path ends at 107 bytes on Linux (unix(7)), and PostgreSQL's and asyncpg's settings
# give a comma a meaning.
_SOCKET_PATH_MAX = 100
_PLAIN = re.compile(r"[\w/.+-]+", re.ASCII)
_NOT_A_SIGN_OF_USE = {"lock", "lost+found"}


class DataFolder:
    """What is in `path`, and who owns it. `account` is None where that is ourselves."""

    def __init__(self, path: Path) -> None:
        """Makes the folder where there is none. Raises OperationError when it cannot be ours."""
        self.path = path.resolve()
        self.account = server_account(self.path)
        check_reachable(self.path, self.account)
        self._make()
        names = {entry.name for entry in self.path.iterdir()}
        if "password" not in names and (strange := sorted(names - _NOT_A_SIGN_OF_USE)):
            raise OperationError(
                f"database.data_dir, {self.path}, holds other things already ({strange[0]}): "
                "name a folder that is for the embedded PostgreSQL alone"
            )

    def _make(self) -> None:
        missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o700 if folder == self.path else 0o777, exist_ok=True)
            if self.account and folder != self.path:
                folder.chmod(0o711)  # or root's umask might keep PostgreSQL's user out

    def take_over(self) -> None:
        """Gives the folder and all in it to PostgreSQL's user. Only for who holds the lock."""
        if self.account and self.path.stat().st_uid != self.account.uid:
            self.give_all(self.path)
        self.path.chmod(0o700)

    def give(self, path: Path) -> None:
        """Makes PostgreSQL's user the owner of one thing in the folder."""
        if self.account:
            os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)

    def give_all(self, top: Path) -> None:
        """Gives away a whole tree; its top comes last, so that a kill in between shows there."""
        for folder, folders, files in os.walk(top):
            for name in (*folders, *files):
                self.give(Path(folder, name))
        self.give(top)

    def open(self, name: str, flags: int) -> int:
        """A file descriptor of a file here, mode 0600. No link is followed: we may be root."""
        fd = os.open(self.path / name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if self.account and os.fstat(fd).st_uid == 0:
            os.fchown(fd, self.account.uid, self.account.gid)
        return fd

    def new_folder(self, prefix: str) -> Path:
        """A folder with a fresh name, for what is renamed when it is whole."""
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=self.path))
        self.give(folder)
        return folder

    def remove(self, pattern: str) -> None:
        """Removes folders that a kill left half-made, or that nobody uses any more."""
        for leftover in self.path.glob(pattern):
            # What an initdb that still dies puts there now is removed the next time.
            shutil.rmtree(leftover, ignore_errors=True)

    def password(self) -> str:
        """What is in the file `password`; empty when there is none yet."""
        try:
            with os.fdopen(self.open("password", os.O_RDONLY), encoding="utf-8") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""

    def make_password(self) -> None:
        """Writes a password, unless there is one."""
        if self.password():
            return
        with os.fdopen(self.open("password", os.O_WRONLY | os.O_CREAT), "w") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())

    def make_socket_folder(self) -> None:
        """Makes `run`: a folder, or a link to one in the temporary folder.

        The link is kept and used again, so that the DSN stays the same whoever supervises.
        """
        run = self.path / "run"
        if run.is_symlink() and not self._is_own(run.readlink()):
            run.unlink()
        if run.is_dir():
            return
        path = str(run / SOCKET)
        if len(os.fsencode(path)) <= _SOCKET_PATH_MAX and _PLAIN.fullmatch(path):
            run.mkdir(mode=0o700)
            self.give(run)
            return
        check_reachable(Path(tempfile.gettempdir(), "archiver"), self.account)
        folder = Path(tempfile.mkdtemp(prefix="archiver-"))
        self.give(folder)
        run.symlink_to(folder)
        self.give(run)

    def _is_own(self, folder: Path) -> bool:
        """Whether a temporary folder is still the one we made: others may write beside it."""
        owner = self.account.uid if self.account else os.geteuid()
        try:
            status = folder.lstat()
        except FileNotFoundError:
            return False
        return folder.is_dir() and (status.st_uid, status.st_mode & 0o7777) == (owner, 0o700)

    @property
    def socket_folder(self) -> Path:
        """Where the socket is, by the name that is short enough."""
        run = self.path / "run"
        return run.readlink() if run.is_symlink() else run

    def dsn(self) -> str:
        """How asyncpg gets to our database. Good while the folder stays where it is."""
        password, host = quote(self.password(), safe=""), quote(str(self.socket_folder), safe="")
        return f"postgresql://{ROLE}:{password}@/{DATABASE}?host={host}&port={PORT}"


class Lock:
    """The flock on the file `lock`: held by the one process that supervises the server.

    The kernel releases it however that process ends, since no child inherits the descriptor.
    """

    def __init__(self, folder: DataFolder) -> None:
        self._fd = folder.open("lock", os.O_RDWR | os.O_CREAT)

    def acquire(self) -> bool:
        """Takes the lock, or says that another process has it. Taking it twice is no harm."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Lets go of the lock."""
        os.close(self._fd)
