"""Pictures made to use up a machine: each costs a refusal, or a still, and little memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from archiver.errors import TooLargeToRender
from archiver.imaging.recipe import Format, Method, Probe, Recipe
from archiver.imaging.renderer import Renderer
from tests.support.pictures import animation, gif_bomb, png_bomb

SMALL = Recipe(Method.SCALE, 32, 24)


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    """A renderer of one helper."""
    async with Renderer(helpers=1) as renderer:
        yield renderer


def memory_peak(renderer: Renderer) -> int:
    """MiB that the helper had in use at most."""
    (helper,) = renderer.idle_helpers
    status = Path(f"/proc/{helper.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


async def test_png_bomb(renderer: Renderer) -> None:
    """A PNG of 30,000 x 30,000 pixels costs a refusal and next to no memory."""
    bomb = png_bomb(30_000, 30_000)
    assert await renderer.probe(bomb) == Probe(Format.PNG, 30_000, 30_000, 1, False)
    with pytest.raises(TooLargeToRender):
        await renderer.render(bomb, SMALL)
    assert memory_peak(renderer) < 150


async def test_a_huge_file(renderer: Renderer, tmp_path: Path) -> None:
    """A GIF of a gigabyte is refused for its length."""
    path = tmp_path / "picture"
    with path.open("wb") as file:
        file.write(animation(2))
        file.truncate(1_000_000_000)
    with pytest.raises(TooLargeToRender, match="256 MiB"):
        await renderer.render(path, SMALL)
    assert memory_peak(renderer) < 150


async def test_gif_bomb(renderer: Renderer) -> None:
    """Thousands of frames of 64 million pixels: the first is shown, in bounded memory."""
    bomb = gif_bomb(8000, 3000)
    assert (await renderer.probe(bomb)).frames == 3000
    made = await renderer.render(bomb, Recipe(Method.SCALE, 32, 32, animated=True))
    assert made.frames == 1
    assert memory_peak(renderer) < 700
    with pytest.raises(TooLargeToRender):
        await renderer.render(gif_bomb(30_000, 2), SMALL)
