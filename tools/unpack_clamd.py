"""Puts ClamAV's daemon, which comes in Debian's packages, into a folder, without installing it.

    python tools/unpack_clamd.py FOLDER

apt-get asks the servers that this machine is set up for, checks what they send, and fetches what
clamd needs and the machine lacks; nobody has to be root. Afterwards FOLDER/bin/clamd starts it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "clamav-daemon"
STARTER = """\
#!/bin/sh
here="$(dirname "$(readlink -f "$0")")/../clamav"
LD_LIBRARY_PATH="{libraries}" exec "$here/usr/sbin/clamd" "$@"
"""


def apt(folder: Path, *arguments: str, lists: bool) -> bool:
    """Whether apt-get did it, writing to `folder` alone; with `lists`, by lists of its own."""
    own = {"Dir::Cache": folder / "cache"}
    if lists:
        own["Dir::State::Lists"] = folder / "lists"
    for path in own.values():
        (path / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    # It changes nothing that others lock. Root stays root: nobody else may write here.
    settings = {**own, "Debug::NoLocking": "1", "APT::Sandbox::User": "root"}
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    # What it prints is parts of its progress, and its warnings.
    done = subprocess.run(
        ["apt-get", "-q", "-y", *options, *arguments],  # noqa: S607 -- this machine's own
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"},
        text=True,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    return done.returncode == 0


def download(folder: Path) -> list[Path]:
    """The packages. Exits with a sentence where there are none."""
    wanted = ("install", "--download-only", "--no-install-recommends", PACKAGE)
    # This machine's lists may be empty, or name what the servers have no longer.
    if not apt(folder, *wanted, lists=False):
        print("clamd: apt-get once more, with lists that are up to date", file=sys.stderr)
        if not (apt(folder, "update", lists=True) and apt(folder, *wanted, lists=True)):
            sys.exit(f"apt-get does not get {PACKAGE}: its own words are above")
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def libraries(folder: Path) -> list[Path]:
    """The folders of shared libraries below `folder`, as seen from there."""
    found = {file.parent for file in folder.rglob("lib*.so.*")}
    return sorted(path.relative_to(folder) for path in found)


def main(environment: Path) -> None:
    """Does it all; the packages themselves do not stay."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        sys.exit("there is no apt-get here that could fetch it")
    clamav = environment / "clamav"
    with tempfile.TemporaryDirectory(dir=environment) as folder:
        for package in download(Path(folder)):
            subprocess.run(["dpkg-deb", "-x", str(package), str(clamav)], check=True)  # noqa: S607
    if not (clamav / "usr" / "sbin" / "clamd").is_file():
        sys.exit(f"{PACKAGE} holds no clamd, or is installed already: put clamd on the PATH")
    starter = environment / "bin" / "clamd"
    starter.parent.mkdir(exist_ok=True)
    places = ":".join(f"$here/{path}" for path in libraries(clamav))
    starter.write_text(STARTER.format(libraries=places), "utf-8")
    starter.chmod(0o755)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).resolve())
    except subprocess.CalledProcessError:
        sys.exit("dpkg-deb failed: its own words are above")
