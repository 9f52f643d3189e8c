"""As whom PostgreSQL runs, which it refuses to do as root, and where that user can get to."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import NamedTuple

from archiver.errors import OperationError

SYSTEM_DATA_DIR = Path("/var/lib/matrix-media-archiver/postgres")
_ACCOUNTS = ("postgres", "nobody")


class Account(NamedTuple):
    """A user other than ourselves, without any further groups."""

    uid: int
    gid: int
    name: str

    def may_pass(self, folder: Path) -> bool:
        """Whether the mode of `folder` lets this user through (access lists are not looked at)."""
        status = folder.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & 0o100)
        if status.st_gid == self.gid:
            return bool(status.st_mode & 0o010)
        return bool(status.st_mode & 0o001)

    def barrier(self, path: Path) -> Path | None:
        """The first folder above `path` that keeps this user out; None where there is none."""
        parents = reversed(path.resolve().parents)
        return next((p for p in parents if p.is_dir() and not self.may_pass(p)), None)


def server_account(data_dir: Path) -> Account | None:
    """The user for PostgreSQL when we are root; None when it runs as the user we are.

    A folder that is already another user's stays that user's: the archiver may run as a service
    of its own user, and one command as root must not take the data away from it.
    Raises OperationError where no user is left to run as.
    """
    if os.geteuid() != 0:
        return None
    if data_dir.exists() and (owner := data_dir.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid, _name(owner.st_uid))
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, name)
    raise OperationError(
        "PostgreSQL does not run as root, and this system has neither a user postgres nor nobody: "
        "run the archiver as an ordinary user, or set database.url to a PostgreSQL elsewhere"
    )


def check_reachable(data_dir: Path, account: Account | None) -> None:
    """Raises OperationError when a folder above `data_dir` keeps PostgreSQL's user out."""
    if account and (barrier := account.barrier(data_dir)):
        raise OperationError(
            f"PostgreSQL does not run as root but as user {account.name}, whom {barrier} keeps out"
            f" of {data_dir}: set database.data_dir to a place like {SYSTEM_DATA_DIR}, or run the"
            " archiver as an ordinary user"
        )


def reachable_data_dir(preferred: Path) -> Path:
    """`preferred`, unless we are root and PostgreSQL's user could not get there."""
    account = server_account(preferred)
    return SYSTEM_DATA_DIR if account and account.barrier(preferred) else preferred


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
