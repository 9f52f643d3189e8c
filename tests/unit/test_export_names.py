"""Names in a bag: whatever a sender writes, it becomes a plain file name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from archiver.export.names import EXTENSIONS, blob_name, extension_of, safe_name

TEXT = st.text(st.characters(codec=None), max_size=300)
EXTENSION = st.sampled_from(["bin", *EXTENSIONS.values()])


@given(TEXT, EXTENSION)
def test_any_name_becomes_a_plain_one(filename: str, extension: str) -> None:
    """No path, no control character, nothing hidden, not long, and always the right ending."""
    name = safe_name(filename, extension)
    assert len(name.encode()) <= 200
    assert name.endswith(f".{extension}")
    assert not name.startswith((".", " "))
    assert not set(name) & set('/\\:*?"<>|\0\r\n\u202e\u2028')
    assert name not in {".", ".."}


@given(TEXT, EXTENSION)
def test_a_plain_name_stays_as_it_is(filename: str, extension: str) -> None:
    """Making a name safe twice changes nothing more."""
    name = safe_name(filename, extension)
    assert safe_name(name, extension) == name


def test_names_of_before() -> None:
    """Paths, devices, what is hidden or far too long, and what is none at all."""
    assert safe_name("../../etc/passwd", "png") == "_.._etc_passwd.png"
    assert safe_name("cat.png", "png") == "cat.png"
    assert safe_name("evil.html", "bin") == "evil.html.bin"
    assert safe_name("exe\u202egpj", "jpg") == "exegpj.jpg"
    assert safe_name("nul", "bin") == "_nul.bin"
    assert safe_name(None, "bin") == "file.bin"
    assert safe_name("...", "bin") == "file.bin"
    assert len(safe_name("ä" * 255, "jpg").encode()) <= 200


def test_what_a_browser_would_carry_out_is_no_page() -> None:
    """SVG, HTML, XML and scripts lie there as bytes."""
    for kind in ("image/svg+xml", "text/html", "application/xhtml+xml", "text/xml", None, "x/y"):
        assert extension_of(kind) == "bin"
    assert blob_name(bytes(32), "text/html") == f"data/blobs/00/{'0' * 64}.bin"
