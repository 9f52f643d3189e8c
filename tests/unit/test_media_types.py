"""Which declared types are believed, and which may be shown inline."""

from __future__ import annotations

import pytest

from archiver.media_types import INLINE_TYPES, agrees, essence


@pytest.mark.parametrize(
    ("declared", "magic", "believed"),
    [
        ("image/png", "image/png", True),
        ("IMAGE/PNG; x=y", "image/png", True),
        ("image/png", "image/jpeg", False),
        ("image/png", None, False),
        ("text/plain", None, True),
        ("text/plain", "image/png", False),
        ("application/json", None, True),
        ("image/jpg", "image/jpeg", True),
        ("audio/ogg", "video/ogg", True),
        ("audio/x-m4a", "video/mp4", True),
        ("application/vnd.oasis.opendocument.text", "application/zip", True),
        ("image/png", "application/zip", False),
        ("application/octet-stream", "image/png", True),
        (None, "image/png", True),
        (None, None, True),
    ],
)
def test_a_declared_type_is_believed_unless_its_bytes_say_otherwise(
    declared: str | None, magic: str | None, believed: bool
) -> None:
    """The magic number decides where there is one; types without one are taken at their word."""
    assert agrees(declared, magic) is believed


@pytest.mark.parametrize("kind", ["image/svg+xml", "text/html", "application/pdf"])
def test_what_can_run_scripts_is_never_inline(kind: str) -> None:
    """SVG, HTML and PDF are not among the inline types."""
    assert kind not in INLINE_TYPES


def test_the_essence_is_the_type_without_parameters() -> None:
    """Case and parameters do not matter."""
    assert essence("Text/Plain; charset=utf-8") == "text/plain"
    assert essence(None) == ""
