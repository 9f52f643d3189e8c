"""What to make of a picture: the specification's rules for thumbnails, as pure functions.

https://spec.matrix.org/v1.16/client-server-api/#thumbnails
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from archiver.errors import InvalidParam, TooLargeToRender

LARGEST_SIDE = 8192  # pixels of what is made; strips of comics keep their width up to here
MOST_PIXELS = 100_000_000  # of one decoded frame
MOST_AVIF_PIXELS = 40_000_000  # whose decoder needs several times the memory of any other
MOST_ANIMATED_PIXELS = 500_000_000  # of all frames of a source; beyond it stands still
MOST_ANIMATED_OUTPUT = 60_000_000  # the same of what is made: some ten seconds of encoding


class Method(StrEnum):
    """How a picture meets the size asked for. `fit` is our own: never larger than asked."""

    SCALE = "scale"
    CROP = "crop"
    FIT = "fit"


class Format(StrEnum):
    """What can be read and made, by media type."""

    JPEG = "image/jpeg"
    PNG = "image/png"
    WEBP = "image/webp"
    GIF = "image/gif"
    AVIF = "image/avif"

    @property
    def keeps_alpha(self) -> bool:
        """Whether half-transparent pixels survive (a GIF's are either or)."""
        return self in {Format.PNG, Format.WEBP, Format.AVIF}

    @property
    def moves(self) -> bool:
        """Whether we make animations of it."""
        return self in {Format.WEBP, Format.GIF}


# In the order in which they are chosen. AVIF is not among the specification's types.
MATRIX_FORMATS = (Format.JPEG, Format.PNG, Format.WEBP, Format.GIF)
MODERN_FORMATS = (Format.AVIF, Format.WEBP, Format.PNG, Format.GIF)


@dataclass(frozen=True)
class Recipe:
    """What a reader asked for, in pixels. `formats` are those allowed, the preferred ones first.

    Raises InvalidParam for a size no thumbnail has, or a quality outside 1 to 100.
    """

    method: Method
    width: int
    height: int
    animated: bool = False
    formats: tuple[Format, ...] = MATRIX_FORMATS
    quality: int = 80

    def __post_init__(self) -> None:
        if not (1 <= self.width <= LARGEST_SIDE and 1 <= self.height <= LARGEST_SIDE):
            raise InvalidParam(f"width and height must be from 1 to {LARGEST_SIDE} pixels")
        if not 1 <= self.quality <= 100:
            raise InvalidParam("quality must be from 1 to 100")
        if not self.formats:
            raise InvalidParam("at least one format must be allowed")


# The sizes Synapse makes, and so the ones clients ask for.
STANDARD = (
    Recipe(Method.CROP, 32, 32),
    Recipe(Method.CROP, 96, 96),
    Recipe(Method.SCALE, 320, 240),
    Recipe(Method.SCALE, 640, 480),
    Recipe(Method.SCALE, 800, 600),
)


def standard(asked: Recipe) -> Recipe | None:
    """The smallest standard recipe that serves for this one; None when none does.

    It is never smaller than asked, and a cropped one has the shape asked for.
    """
    for recipe in STANDARD:
        large_enough = recipe.width >= asked.width and recipe.height >= asked.height
        same_shape = recipe.width * asked.height == recipe.height * asked.width
        if (
            recipe.method == asked.method
            and large_enough
            and (same_shape or asked.method is Method.SCALE)
        ):
            return replace(asked, width=recipe.width, height=recipe.height)
    return None


class Probe(NamedTuple):
    """What a picture's header says. Width and height as it is shown, upright."""

    format: Format
    width: int
    height: int
    frames: int
    has_alpha: bool


class Plan(NamedTuple):
    """In numbers: resize to `width` x `height`, keep the middle, and so many frames of it."""

    width: int
    height: int
    shown_width: int
    shown_height: int
    frames: int

    def keeps_size_of(self, source: Probe) -> bool:
        """Whether not a pixel is resized or cut off."""
        whole = (source.width, source.height)
        return whole == (self.width, self.height) == (self.shown_width, self.shown_height)


def plan(recipe: Recipe, source: Probe) -> Plan:
    """How `recipe` turns out for this source: never upscaled, never smaller than asked.

    Exceptions to the latter: a source that is smaller itself; `fit`, which is never larger than
    asked; a scaled strip whose long side would be over LARGEST_SIDE.
    An animation that would cost too much stands still, which the specification allows.
    Raises TooLargeToRender for more than MOST_PIXELS, or MOST_AVIF_PIXELS.
    """
    most = MOST_AVIF_PIXELS if source.format is Format.AVIF else MOST_PIXELS
    if source.width * source.height > most:
        raise TooLargeToRender(
            f"this picture has {source.width} x {source.height} pixels, and thumbnails are made"
            f" of at most {most // 1_000_000} million"
        )
    width, height = _resized(recipe, source)
    shown_width, shown_height = width, height
    if recipe.method is Method.CROP:
        shown_width, shown_height = min(width, recipe.width), min(height, recipe.height)
    return Plan(width, height, shown_width, shown_height, _frames(recipe, source, width * height))


def choose_format(recipe: Recipe, made: Plan, source: Probe, see_through: bool) -> Format:
    """The first allowed format that can hold it.

    A picture that keeps its size keeps its format too, so that small drawings are not smeared.
    """
    moves = made.frames > 1
    kept = made.keeps_size_of(source) and source.format in recipe.formats
    if kept and (source.format.moves or not moves):
        return source.format
    fitting = [f for f in recipe.formats if f.moves or not moves]
    if moves:
        fitting.sort(key=lambda f: f is Format.GIF)  # several times the size of a WebP
    clear = [f for f in fitting if f.keeps_alpha or not see_through]
    return (clear or fitting)[0]


def _resized(recipe: Recipe, source: Probe) -> tuple[int, int]:
    ratios = recipe.width / source.width, recipe.height / source.height
    ratio = min(ratios) if recipe.method is Method.FIT else max(ratios)
    if recipe.method is Method.SCALE:
        ratio = min(ratio, LARGEST_SIDE / max(source.width, source.height))
    ratio = min(ratio, 1.0)
    return max(1, round(source.width * ratio)), max(1, round(source.height * ratio))


def _frames(recipe: Recipe, source: Probe, pixels: int) -> int:
    affordable = (
        source.width * source.height * source.frames <= MOST_ANIMATED_PIXELS
        and pixels * source.frames <= MOST_ANIMATED_OUTPUT
    )
    can_move = any(f.moves for f in recipe.formats)
    return source.frames if recipe.animated and can_move and affordable else 1
