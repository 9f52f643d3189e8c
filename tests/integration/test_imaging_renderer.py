"""The helper processes themselves: deadlines, deaths, many callers, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from archiver.errors import CannotRender, LimitExceeded, NotAnImage, OperationError
from archiver.imaging.recipe import Method, Recipe
from archiver.imaging.renderer import Renderer
from tests.support.pictures import encoded, processes, quarters

SMALL = Recipe(Method.SCALE, 32, 24)
PICTURE = encoded(quarters())
HELLO = (
    "import socket,sys,time,os\n"
    "s = socket.socket(fileno=0)\n"
    's.sendall(b\'{"works":["render"]}\\n\')\n'
    "s.recv(4096)\n"
)
IMAGING = "# imaging\n"  # by which `processes` knows it


def fake(then: str, before: str = HELLO) -> tuple[str, ...]:
    """The command of a helper that does as told when asked for its first picture."""
    return (sys.executable, "-I", "-c", IMAGING + before + then)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(reached: Callable[[], bool]) -> None:
    """Returns when this is so; fails after ten seconds."""
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """After each test there is no helper and no further open file."""
    files = open_files()
    yield
    assert list(processes()) == []
    await until(lambda: open_files() <= files)


async def test_sources(tmp_path: Path) -> None:
    """Bytes, a path, an open file and one without a name give the same picture."""
    path = tmp_path / "picture"
    path.write_bytes(PICTURE)
    async with Renderer(helpers=1) as renderer:
        made = await renderer.render(PICTURE, SMALL)
        assert await renderer.render(path, SMALL) == made
        with path.open("rb") as file, tempfile.TemporaryFile() as unnamed:
            file.seek(7)
            assert await renderer.render(file, SMALL) == made
            assert file.tell() == 7
            unnamed.write(PICTURE)
            unnamed.flush()
            assert await renderer.render(unnamed, SMALL) == made
        with pytest.raises(FileNotFoundError):
            await renderer.render(tmp_path / "none", SMALL)
        assert await renderer.render(PICTURE, SMALL) == made


async def test_many_at_once() -> None:
    """Fifty callers share two helpers, and all get what they asked for."""
    async with Renderer(helpers=2) as renderer:
        recipes = [Recipe(Method.CROP, n, n) for n in range(1, 51)]
        made = await asyncio.gather(*(renderer.render(PICTURE, r) for r in recipes))
        assert [(m.width, m.height) for m in made] == [(n, min(n, 48)) for n in range(1, 51)]
        assert len(list(processes())) == len(renderer.idle_helpers) == 2


async def test_the_queue_has_an_end() -> None:
    """One caller more than may wait is refused at once, the others are served."""
    async with Renderer(helpers=1, queue=3) as renderer:
        async with asyncio.TaskGroup() as group:
            served = [group.create_task(renderer.render(PICTURE, SMALL)) for _ in range(4)]
            await asyncio.sleep(0)
            with pytest.raises(LimitExceeded):
                await renderer.render(PICTURE, SMALL)
        assert all(task.result().width == 32 for task in served)


async def test_the_deadline() -> None:
    """A helper that hangs is killed, with what it started, and the caller is told."""
    script = "import subprocess\nsubprocess.Popen(['sleep', '600'])\ntime.sleep(600)"
    async with Renderer(helpers=1, deadline=0.5, command=fake(script)) as renderer:
        with pytest.raises(CannotRender, match=r"more than 0\.5 seconds"):
            await renderer.render(PICTURE, SMALL)
        await until(lambda: not list(processes()))


@pytest.mark.parametrize(
    "then",
    [
        "os.abort()",
        "sys.exit()",
        "s.sendall(b'x' * 100000); time.sleep(600)",
        "s.sendall(b'[]\\n'); time.sleep(600)",
        "s.sendall(b'[' * 4000 + b'\\n'); time.sleep(600)",
        "s.sendall(b'{\"length\":99999999999}\\n'); time.sleep(600)",
        's.sendall(b\'{"length":0,"refused":"mine"}\\n\'); time.sleep(600)',
        's.sendall(b\'{"length":1,"format":"text/html"}\\nx\'); time.sleep(600)',
        's.sendall(b\'{"length":1,"format":"image/png","width":true,"height":1}\\nx\')',
        "s.sendall(b'{\"length\":1}\\nxy'); time.sleep(600)",
    ],
)
async def test_a_helper_that_breaks(then: str) -> None:
    """One that dies, or does not keep to the protocol, costs that picture and is replaced."""
    async with Renderer(helpers=1, command=fake(then)) as renderer:
        for _ in range(2):
            with pytest.raises(CannotRender, match="its decoder broke"):
                await renderer.render(PICTURE, SMALL)
        assert renderer.idle_helpers == []


async def test_a_reason_is_plain_text() -> None:
    """What a helper says of a refusal is cut and cleaned before anybody reads it."""
    then = r"s.sendall(b'{\"length\":0,\"refused\":\"cannot\",\"reason\":\"a\\u001b[2J\"}\n')"
    then = then.replace('\\"', '"')
    async with Renderer(helpers=1, command=fake(then + "; time.sleep(600)")) as renderer:
        with pytest.raises(CannotRender) as refused:
            await renderer.render(PICTURE, SMALL)
        assert str(refused.value) == "a [2J"


@pytest.mark.parametrize(
    "before",
    [
        "",
        "raise SystemExit",
        'import socket; socket.socket(fileno=0).sendall(b\'{"error":"x"}\\n\')',
    ],
)
async def test_a_helper_that_does_not_start(before: str) -> None:
    """Where no helper can be started the operator is told what to install."""
    async with Renderer(helpers=1, command=fake("", before)) as renderer:
        with pytest.raises(OperationError, match="pyvips"):
            await renderer.render(PICTURE, SMALL)


async def test_films_without_the_extra() -> None:
    """Where the package for films is missing the operator is told, and pictures go on."""
    async with Renderer(helpers=1, command=fake("")) as renderer:
        with pytest.raises(OperationError, match="package av"):
            await renderer.footage(PICTURE)
        assert len(renderer.idle_helpers) == 1


async def test_a_helper_killed_while_idle() -> None:
    """Whoever comes next notices nothing when a waiting helper was killed from outside."""
    async with Renderer(helpers=1) as renderer:
        await renderer.render(PICTURE, SMALL)
        (helper,) = renderer.idle_helpers
        os.kill(helper.pid, signal.SIGKILL)
        assert (await renderer.render(PICTURE, SMALL)).width == 32


async def test_replacement() -> None:
    """After its number of pictures a helper is replaced, after a refusal it is not."""
    async with Renderer(helpers=1, jobs=2) as renderer:
        with pytest.raises(NotAnImage):
            await renderer.render(b"none", SMALL)
        (first,) = renderer.idle_helpers
        await renderer.render(PICTURE, SMALL)
        assert renderer.idle_helpers == []
        await renderer.render(PICTURE, SMALL)
        assert renderer.idle_helpers[0].pid != first.pid


async def test_idle_helpers_end() -> None:
    """A helper that nobody needs any more gives its memory back."""
    async with Renderer(helpers=1, idle=0.05) as renderer:
        await renderer.render(PICTURE, SMALL)
        await until(lambda: not list(processes()))
        assert (await renderer.render(PICTURE, SMALL)).width == 32


async def test_cancelled_callers() -> None:
    """One who leaves frees the helper, one who leaves the queue frees the place in it."""
    async with Renderer(helpers=1, queue=1, command=fake("time.sleep(600)")) as renderer:
        for _ in range(2):
            working = asyncio.create_task(renderer.render(PICTURE, SMALL))
            await until(lambda: bool(list(processes())))
            waiting = asyncio.create_task(renderer.render(PICTURE, SMALL))
            await asyncio.sleep(0)
            for task in (waiting, working):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            assert renderer.idle_helpers == []
            await until(lambda: not list(processes()))


async def test_cancelled_at_any_moment() -> None:
    """Wherever a caller leaves, nothing is left behind and the next one is served."""
    async with Renderer(helpers=1, jobs=2) as renderer:
        for step in range(40):
            task = asyncio.create_task(renderer.render(PICTURE, SMALL))
            for _ in range(step):
                await asyncio.sleep(0 if step % 2 else 0.002)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert (await renderer.render(PICTURE, SMALL)).width == 32
