"""What a helper process gave up before it sees the first hostile byte."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from archiver.imaging.recipe import Method, Recipe
from archiver.imaging.renderer import Renderer
from tests.support.pictures import encoded, quarters

SMALL = Recipe(Method.SCALE, 32, 24)
PICTURE = encoded(quarters())


async def test_the_walls() -> None:
    """A helper has no environment of ours, no rights to gain, no core to leave, little memory."""
    async with Renderer(helpers=1) as renderer:
        await renderer.render(PICTURE, SMALL)
        (helper,) = renderer.idle_helpers
        folder = Path(f"/proc/{helper.pid}")
        status = dict(
            line.split(":\t", 1) for line in (folder / "status").read_text().splitlines()
        )
        assert status["NoNewPrivs"] == "1"
        assert "landlock" not in helper.walls or status["Seccomp"] == "2"
        if os.geteuid() == 0 and "user" in helper.walls:
            assert "0" not in status["Uid"].split()
        limits = (folder / "limits").read_text()
        for name, value in (("Max file size", 0), ("Max core file size", 0), ("Max open", 32)):
            line = next(line for line in limits.splitlines() if line.startswith(name))
            assert str(value) in line.split()
        assert os.getsid(helper.pid) == helper.pid


WALLS = """
import ctypes, os, signal, socket, sys
from archiver.imaging.confine import confine
from pathlib import Path
import subprocess, threading
parent = os.getppid()
walls = confine()
def attempt(what):
    try:
        what()
    except OSError as error:
        return "refused"
    return "done"
def thread():
    threading.Thread(target=int).start()
print(walls, {
    "read": attempt(lambda: Path("/etc/passwd").read_bytes()),
    "write": attempt(lambda: Path("new").write_bytes(b"x")),
    "socket": attempt(socket.socket),
    "fork": attempt(os.fork),
    "exec": attempt(lambda: os.execv("/bin/true", ["true"])),
    "kill": attempt(lambda: os.kill(parent, 0)),
    "memory": attempt(lambda: os.write(os.memfd_create("x"), b"x")),
    "thread": attempt(thread),
})
"""


async def test_what_a_captured_helper_can_do() -> None:
    """Behind the walls code can open, write, connect, fork, execute and signal nothing."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", WALLS, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    walls, _, attempts = output.decode().partition("]")
    assert "landlock" in walls
    assert "seccomp" in walls
    assert attempts.count("refused") == 7
    assert "'thread': 'done'" in attempts
