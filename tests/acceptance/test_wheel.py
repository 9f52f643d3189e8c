"""What is installed elsewhere is whole: nothing of it is found only in a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from archiver import __version__

CHECKOUT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
WHERE_AND_WHAT = """
import archiver
from archiver.db.migrate import available
print(archiver.__file__)
print(*(migration.name for migration in available()))
"""


def run(*command: str | Path, folder: Path, python_path: Path | None = None) -> str:
    """What a command prints; it sees no checkout, unless that is its folder."""
    done = subprocess.run(
        command,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(python_path or "")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_without_the_checkout(tmp_path: Path) -> None:
    """It starts, says its version, and has the migrations, the marker of its types and the
    licence; nothing of the tests is in it."""
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation"]
    run(*build, "-w", tmp_path, CHECKOUT, folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    migrations = [path.name for path in sorted((CHECKOUT / "migrations").glob("[0-9]*.sql"))]
    assert {f"archiver/migrations/{name}" for name in migrations} <= names
    assert "archiver/py.typed" in names
    assert any(name.endswith("/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "archiver",
        "matrix_media_archiver",
    }
    installed = tmp_path / "installed"
    run(*PIP, "install", "--no-deps", "--target", installed, wheel, folder=tmp_path)
    said = run(sys.executable, "-c", WHERE_AND_WHAT, folder=tmp_path, python_path=installed)
    where, what = said.splitlines()
    assert Path(where).is_relative_to(installed)
    assert what.split() == [name.removesuffix(".sql") for name in migrations]
    script = installed / "bin" / "archiver"
    assert __version__ in run(script, "--version", folder=tmp_path, python_path=installed)
