"""The recipes that are made: few, so that readers cannot fill the store with sizes.

A name says all of a recipe; it is the key under which a variant is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from archiver.imaging.recipe import (
    LARGEST_SIDE,
    MATRIX_FORMATS,
    STANDARD,
    Format,
    Method,
    Recipe,
    standard,
)

# All variants of one blob, the standard ones aside. What is made beyond them is not kept.
MOST_KEPT = 40

# What scales to more than the largest standard size does: the last one is any picture as it is.
_LARGER = ((1280, 960), (1920, 1440), (LARGEST_SIDE, LARGEST_SIDE))
_CROPPED = (32, 64, 96, 128, 192, 256, 320, 480, 640, 800, 1024, 1600, 2048)
_OURS = (96, 160, 240, 320, 480, 640, 800, 1024, 1280, 1600, 2048)
_QUALITY_STEP = 10

QUALITY = Recipe(Method.SCALE, 1, 1).quality


def thumbnail(method: Method, width: int, height: int, *, animated: bool) -> Recipe:
    """What the Matrix face makes for this wish: the smallest of its sizes that is large enough.

    Cropped ones end at 2048 pixels a side. Raises InvalidParam for a size under 1.
    """
    asked = Recipe(method, min(width, LARGEST_SIDE), min(height, LARGEST_SIDE), animated)
    if found := standard(asked):
        return found
    if method is Method.CROP:
        return _on_grid(asked, _CROPPED)
    larger = ((w, h) for w, h in _LARGER if w >= asked.width and h >= asked.height)
    width, height = next(larger)
    return replace(asked, width=width, height=height)


def variant(
    method: Method, width: int, height: int, kind: Format, quality: int, *, animated: bool
) -> Recipe:
    """What our own API makes for this wish: each side is the next one of a grid up to 2048 pixels,
    and the quality the next of the tens. Raises InvalidParam."""
    width, height = min(width, LARGEST_SIDE), min(height, LARGEST_SIDE)
    asked = Recipe(method, width, height, animated, (kind,), quality)
    quality = -(-quality // _QUALITY_STEP) * _QUALITY_STEP
    return replace(_on_grid(asked, _OURS), quality=quality)


def name_of(recipe: Recipe) -> str:
    """Like `scale 320x240`, `crop 96x96 animated`, `fit 640x640 avif q60`."""
    words = [str(recipe.method), f"{recipe.width}x{recipe.height}"]
    if recipe.formats != MATRIX_FORMATS:
        words += [kind.name.lower() for kind in recipe.formats]
    if recipe.quality != QUALITY:
        words.append(f"q{recipe.quality}")
    if recipe.animated:
        words.append("animated")
    return " ".join(words)


STANDARD_NAMES = frozenset(map(name_of, STANDARD))


def _on_grid(asked: Recipe, grid: tuple[int, ...]) -> Recipe:
    return replace(asked, width=_next(asked.width, grid), height=_next(asked.height, grid))


def _next(side: int, grid: Iterable[int]) -> int:
    sides = tuple(grid)
    return next((one for one in sides if one >= side), sides[-1])
