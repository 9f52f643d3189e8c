"""What a thumbnail's size and format must be, whatever is asked of whatever source."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from archiver.errors import InvalidParam, TooLargeToRender
from archiver.imaging.recipe import (
    LARGEST_SIDE,
    MATRIX_FORMATS,
    MODERN_FORMATS,
    MOST_AVIF_PIXELS,
    MOST_PIXELS,
    STANDARD,
    Format,
    Method,
    Probe,
    Recipe,
    choose_format,
    plan,
    standard,
)

SIDES = st.integers(1, 20_000)
SOURCES = st.builds(
    Probe, st.sampled_from(Format), SIDES, SIDES, st.integers(1, 500), st.booleans()
)
FORMATS = st.lists(st.sampled_from(Format), min_size=1, unique=True).map(tuple)
RECIPES = st.builds(
    Recipe,
    st.sampled_from(Method),
    st.integers(1, LARGEST_SIDE),
    st.integers(1, LARGEST_SIDE),
    st.booleans(),
    FORMATS,
)


def photo(width: int, height: int) -> Probe:
    return Probe(Format.JPEG, width, height, 1, False)


def affordable(source: Probe) -> bool:
    most = MOST_AVIF_PIXELS if source.format is Format.AVIF else MOST_PIXELS
    return source.width * source.height <= most


@given(RECIPES, SOURCES)
def test_nothing_is_upscaled(recipe: Recipe, source: Probe) -> None:
    """What is made is never larger than its source, and never empty."""
    assume(affordable(source))
    made = plan(recipe, source)
    assert 1 <= made.shown_width <= made.width <= source.width
    assert 1 <= made.shown_height <= made.height <= source.height
    assert made.shown_width <= LARGEST_SIDE
    assert made.shown_height <= LARGEST_SIDE


@given(RECIPES, SOURCES)
def test_no_side_is_smaller_than_asked(recipe: Recipe, source: Probe) -> None:
    """Scaled and cropped ones cover what was asked, as far as the source does."""
    assume(affordable(source) and recipe.method is not Method.FIT)
    made = plan(recipe, source)
    assume(LARGEST_SIDE not in (made.width, made.height))
    assert made.shown_width >= min(recipe.width, source.width)
    assert made.shown_height >= min(recipe.height, source.height)


@given(RECIPES, SOURCES)
def test_crop_and_fit_stay_inside(recipe: Recipe, source: Probe) -> None:
    """Cropped and fitted ones are never larger than asked."""
    assume(affordable(source) and recipe.method is not Method.SCALE)
    made = plan(recipe, source)
    assert made.shown_width <= recipe.width
    assert made.shown_height <= recipe.height


@given(RECIPES, SOURCES)
def test_the_aspect_is_kept(recipe: Recipe, source: Probe) -> None:
    """Before cropping, width and height are reduced alike, to the pixel."""
    assume(affordable(source))
    made = plan(recipe, source)
    off = abs(made.width * source.height - made.height * source.width)
    assert off <= max(source.width, source.height)


@given(RECIPES, SOURCES, st.booleans())
def test_the_format_is_an_allowed_one(recipe: Recipe, source: Probe, see_through: bool) -> None:
    """What moves is in a format that moves, what is seen through in one with an alpha channel."""
    assume(affordable(source))
    made = plan(recipe, source)
    kind = choose_format(recipe, made, source, see_through)
    assert kind in recipe.formats
    assert made.frames == 1 or kind.moves


@pytest.mark.parametrize(
    ("recipe", "source", "shown"),
    [
        (Recipe(Method.SCALE, 320, 240), photo(4000, 3000), (320, 240)),
        (Recipe(Method.SCALE, 320, 240), photo(3000, 4000), (320, 427)),
        (Recipe(Method.SCALE, 320, 240), photo(200, 100), (200, 100)),
        (Recipe(Method.SCALE, 320, 240), photo(200, 1000), (200, 1000)),
        (Recipe(Method.SCALE, 320, 240), photo(1, 10_000), (1, 8192)),
        (Recipe(Method.CROP, 96, 96), photo(4000, 3000), (96, 96)),
        (Recipe(Method.CROP, 96, 96), photo(200, 50), (96, 50)),
        (Recipe(Method.CROP, 96, 96), photo(10_000, 1), (96, 1)),
        (Recipe(Method.FIT, 320, 240), photo(3000, 4000), (180, 240)),
        (Recipe(Method.FIT, 320, 240), photo(1, 10_000), (1, 240)),
    ],
)  # fmt: skip
def test_sizes(recipe: Recipe, source: Probe, shown: tuple[int, int]) -> None:
    """The specification's rules in figures."""
    made = plan(recipe, source)
    assert (made.shown_width, made.shown_height) == shown


@pytest.mark.parametrize(
    ("formats", "source", "see_through", "size", "kind"),
    [
        (MATRIX_FORMATS, Format.JPEG, False, 50, Format.JPEG),
        (MATRIX_FORMATS, Format.PNG, False, 50, Format.JPEG),
        (MATRIX_FORMATS, Format.PNG, True, 50, Format.PNG),
        (MATRIX_FORMATS, Format.PNG, False, 500, Format.PNG),
        (MATRIX_FORMATS, Format.AVIF, False, 500, Format.JPEG),
        (MODERN_FORMATS, Format.JPEG, False, 50, Format.AVIF),
        ((Format.JPEG,), Format.PNG, True, 50, Format.JPEG),
        ((Format.GIF, Format.JPEG), Format.PNG, True, 50, Format.GIF),
    ],
)
def test_formats(
    formats: tuple[Format, ...], source: Format, see_through: bool, size: int, kind: Format
) -> None:
    """Photos become JPEG, transparent ones PNG; what keeps its size keeps its format."""
    recipe = Recipe(Method.SCALE, size, size, formats=formats)
    probe = Probe(source, 100, 100, 1, see_through)
    assert choose_format(recipe, plan(recipe, probe), probe, see_through) is kind


def test_animations() -> None:
    """An animation moves when asked for and affordable, as a WebP rather than a GIF."""
    source = Probe(Format.GIF, 500, 500, 40, True)
    moving, still = (Recipe(Method.SCALE, 100, 100, animated=a) for a in (True, False))
    assert plan(moving, source).frames == 40
    assert plan(still, source).frames == 1
    assert plan(moving, source._replace(frames=10_000)).frames == 1
    assert choose_format(moving, plan(moving, source), source, True) is Format.WEBP
    jpeg = Recipe(Method.SCALE, 100, 100, animated=True, formats=(Format.JPEG,))
    assert plan(jpeg, source).frames == 1


def test_too_many_pixels() -> None:
    """A picture of 900 million pixels is refused from its header."""
    with pytest.raises(TooLargeToRender, match="30000 x 30000"):
        plan(STANDARD[0], photo(30_000, 30_000))


def test_the_standard_sizes() -> None:
    """A size asked for is served by the smallest standard one that covers it."""

    def size_for(method: Method, width: int, height: int) -> tuple[int, int] | None:
        found = standard(Recipe(method, width, height, animated=True))
        assert found is None or found.animated
        return (found.width, found.height) if found else None

    assert size_for(Method.CROP, 20, 20) == (32, 32)
    assert size_for(Method.CROP, 96, 96) == (96, 96)
    assert size_for(Method.CROP, 96, 48) is None
    assert size_for(Method.CROP, 97, 97) is None
    assert size_for(Method.SCALE, 1, 1) == (320, 240)
    assert size_for(Method.SCALE, 320, 241) == (640, 480)
    assert size_for(Method.SCALE, 801, 1) is None
    assert size_for(Method.FIT, 10, 10) is None


@pytest.mark.parametrize(("width", "height", "quality"), [(0, 1, 80), (1, 9000, 80), (1, 1, 101)])
def test_impossible_recipes(width: int, height: int, quality: int) -> None:
    """A size or quality that no thumbnail has is the asker's mistake."""
    with pytest.raises(InvalidParam):
        Recipe(Method.SCALE, width, height, quality=quality)
