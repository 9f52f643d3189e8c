"""Content-Type and Content-Disposition of hostile media."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.serve.headers import OCTET_STREAM, Shown, disposition, media_headers, shown_as

DOWNLOAD = Shown(OCTET_STREAM, inline=False)


@pytest.mark.parametrize(
    ("declared", "magic", "shown"),
    [
        ("image/png", "image/png", Shown("image/png", inline=True)),
        ("image/png", "image/jpeg", DOWNLOAD),
        ("image/png", None, DOWNLOAD),
        ("image/jpeg", "application/pdf", DOWNLOAD),
        ("text/plain; charset=utf-8", None, Shown("text/plain; charset=utf-8", inline=True)),
        ('text/plain;x="a b"', None, Shown('text/plain;x="a b"', inline=True)),
        ("text/html", None, Shown("text/html", inline=False)),
        ("image/svg+xml", None, Shown("image/svg+xml", inline=False)),
        ("application/pdf", "application/pdf", Shown("application/pdf", inline=False)),
        ("application/octet-stream", "image/png", DOWNLOAD),
        (None, "image/png", Shown("image/png", inline=True)),
        (None, None, DOWNLOAD),
        ("", None, DOWNLOAD),
        ("text/plain\r\nX-Evil: 1", None, DOWNLOAD),
        ("text/plain; charset=utf-8\n", None, DOWNLOAD),
        ("text/plain, text/html", None, DOWNLOAD),
        ("text", None, DOWNLOAD),
        ("t\u00e9xt/plain", None, DOWNLOAD),
        ("text/plain;a=" + "b" * 300, None, DOWNLOAD),
    ],
)
def test_a_type_is_shown_only_where_it_is_believed(
    declared: str | None, magic: str | None, shown: Shown
) -> None:
    """What contradicts its bytes, or is no media type, is bytes to download."""
    assert shown_as(declared, magic) == shown


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("cat.png", 'attachment; filename="cat.png"'),
        ("a cat.png", 'attachment; filename="a cat.png"'),
        ('a "b".png', "attachment; filename=\"a _b_.png\"; filename*=UTF-8''a%20%22b%22.png"),
        ("../../etc/passwd", 'attachment; filename="_.._etc_passwd"'),
        ("C:\\boot.ini", 'attachment; filename="C:_boot.ini"'),
        ("a\r\nSet-Cookie: x=y", 'attachment; filename="aSet-Cookie: x=y"'),
        ("\u202egpj.exe", 'attachment; filename="gpj.exe"'),
        ("кот.png", "attachment; filename=\"___.png\"; filename*=UTF-8''%D0%BA%D0%BE%D1%82.png"),
        ("100%.png", "attachment; filename=\"100_.png\"; filename*=UTF-8''100%25.png"),
        (".htaccess", 'attachment; filename="htaccess"'),
        ("\0\x7f\ud800", "attachment"),
        ("...", "attachment"),
        ("", "attachment"),
        (None, "attachment"),
    ],
)  # fmt: skip
def test_a_file_name_does_no_harm(filename: str | None, expected: str) -> None:
    """Paths, quotes, line ends and direction marks are taken out; other scripts stay readable."""
    assert disposition(inline=False, filename=filename) == expected


def test_a_long_file_name_keeps_its_extension() -> None:
    """It is cut in its middle, at whole characters."""
    value = disposition(inline=True, filename="ж" * 4096 + ".jpeg")
    name = unquote(value.rpartition("''")[2])
    assert name.endswith(".jpeg")
    assert set(name.removesuffix(".jpeg")) == {"ж"}
    assert len(name.encode()) <= 200


@given(st.text(max_size=300))
def test_any_file_name_gives_one_printable_line(filename: str) -> None:
    """Whatever the name, the header is plain ASCII, and what it says is no path."""
    value = disposition(inline=True, filename=filename)
    assert value.isascii()
    assert value.isprintable()
    assert value.count('"') in (0, 2)
    assert "/" not in unquote(value)
    assert "\\" not in unquote(value)


def test_the_headers_of_one_media_are_not_another_s() -> None:
    """Each answer has its own."""
    first = media_headers('"a"', DOWNLOAD, None)
    media_headers('"b"', DOWNLOAD, None)
    assert first["ETag"] == '"a"'
