"""On what was measured: enough to compare with another machine, nothing that names this one."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from bench import nginx
from tests.support.postgres import postgres_binaries
from tools.setup_services import service_python

LIBRARIES = ("aiohttp", "asyncpg", "uvloop", "orjson", "boto3")
SERVICES = {"synapse": "matrix-synapse", "swift": "swift"}


def machine() -> str:
    """Processor, cores and memory."""
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    gib = pages * page / 1024**3
    return (
        f"{os.cpu_count()} cores ({_processor()}), {gib:.0f} GiB of memory,"
        f" Linux {re.match(r'[0-9.]+', platform.release())[0]}"  # type: ignore[index]  # a number
    )


def versions() -> str:
    """Of everything that takes part."""
    found = [f"Python {platform.python_version()}"]
    found += [f"{name} {version(name)}" for name in LIBRARIES]
    found.append(_first_number("PostgreSQL", str(postgres_binaries() / "postgres"), "--version"))
    found += [_service(name, package) for name, package in SERVICES.items()]
    found.append(_first_number("nginx", nginx.find(), "-v"))
    if program := shutil.which("wrk"):
        found.append(_first_number("wrk", program, "-v"))
    return ", ".join(found)


def busy() -> float:
    """The load average of the last minute: what else was going on."""
    return os.getloadavg()[0]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _service(name: str, package: str) -> str:
    script = f"import importlib.metadata as m; print(m.version({package!r}))"
    return _first_number(name.capitalize(), str(service_python(name)), "-c", script)


def _first_number(name: str, *command: str) -> str:
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    return f"{name} {found[0]}" if found else name
