"""The checker of bags, against bags that somebody made by hand."""

from __future__ import annotations

import copy
import hashlib
import os
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from archiver.cli.export import export as command
from archiver.export import check
from tests.support.bags import check as barely

BLOB = "data/blobs/ab/blob.bin"
OUTSIDE = "data/../../outside"
Change = Callable[[Path], object]
Payload = dict[str, bytes]


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bag(payload: Payload, *, oxum: str = "", extra_tags: str = "") -> Payload:
    """All files of a bag with this payload."""
    size = sum(map(len, payload.values()))
    info = f"Payload-Oxum: {oxum or f'{size}.{len(payload)}'}\n".encode()
    manifest = "".join(f"{_sha(data)}  {name}\n" for name, data in payload.items()).encode()
    tags = {
        "bagit.txt": check.DECLARATION.encode(),
        "bag-info.txt": info,
        "check.py": Path(check.__file__).read_bytes(),
        check.MANIFEST: manifest,
    }
    listing = "".join(f"{_sha(data)}  {name}\n" for name, data in tags.items()) + extra_tags
    return payload | tags | {check.TAG_MANIFEST: listing.encode()}


def _folder(path: Path, files: Payload) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def _zip(path: Path, files: Payload, *more: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # what is there twice
        for name, data in [*((f"bag/{name}", data) for name, data in files.items()), *more]:
            archive.writestr(name, data)
    return path


GOOD = {BLOB: b"some bytes", "data/events.jsonl": b"{}\n", "data/of two\nlines%.txt": b""}


def _good() -> Payload:
    files = _bag(GOOD)
    for listing in (check.MANIFEST, check.TAG_MANIFEST):
        files[listing] = files[listing].replace(b"two\nlines%", b"two%0Alines%25")
    tags = files[check.TAG_MANIFEST]
    old = _sha(_bag(GOOD)[check.MANIFEST]).encode()
    files[check.TAG_MANIFEST] = tags.replace(old, _sha(files[check.MANIFEST]).encode())
    return files


def test_a_bag_is_whole_in_both_forms(tmp_path: Path) -> None:
    """Also with names that RFC 8493 writes with percent signs."""
    folder, zipped = _folder(tmp_path / "bag", _good()), _zip(tmp_path / "bag.zip", _good())
    for bag in (folder, zipped):
        assert check.report(bag) == (3, [])
        said = "The bag is whole: 3 files are what manifest-sha256.txt says.\n"
        assert barely(folder, str(bag)) == (0, said)


def _flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGE: dict[str, tuple[Change, str]] = {
    "changed": (lambda bag: _flip(bag / BLOB), f"{BLOB} was changed: its SHA-256 is "),
    "truncated": (lambda bag: os.truncate(bag / BLOB, 4), f"{BLOB} was changed: its SHA-256 is "),
    "missing": ((lambda bag: (bag / BLOB).unlink()), f"{BLOB} is missing."),
    "more": (
        lambda bag: _folder(bag, {"data/more": b""}),
        "data/more is there, but manifest-sha256.txt does not list it.",
    ),
    "a tag more": (
        lambda bag: _folder(bag, {"more": b""}),
        "more is there, but tagmanifest-sha256.txt does not list it.",
    ),
    "a link": (lambda bag: _link(bag / BLOB), f"{BLOB} is missing."),
    "a pipe": (
        lambda bag: _pipe(bag / BLOB),
        f"{BLOB} is missing.",
    ),
    "no manifest": (
        lambda bag: (bag / check.MANIFEST).unlink(),
        "There is no manifest-sha256.txt: this is no bag, or one that is not finished",
    ),
    "no UTF-8": (
        lambda bag: (bag / check.MANIFEST).write_bytes(b"\xff" * 64 + b" x\n"),
        "manifest-sha256.txt is not UTF-8.",
    ),
    "a huge line": (
        lambda bag: (bag / check.MANIFEST).write_bytes(b"0" * 10_000_000),
        "Line 1 of manifest-sha256.txt is none of a manifest.",
    ),
    "a huge label": (
        lambda bag: os.truncate(bag / "bag-info.txt", 1 << 40),
        "bag-info.txt is too long.",
    ),
    "terminal codes": (
        lambda bag: _folder(bag, {"data/\x1b]0;owned\x07": b""}),
        r"'data/\x1b]0;owned\x07' is there, but",
    ),
    "a name that is no UTF-8": (
        lambda bag: _folder(bag, {"data/" + os.fsdecode(b"\xff"): b""}),
        r"'data/\udcff' is there, but",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_happened_to_a_folder_is_told(damage: str, tmp_path: Path) -> None:
    """In a sentence, with exit status 1, by the bag's own checker and by the command."""
    change, sentence = DAMAGE[damage]
    bag = _folder(tmp_path / "bag", _good())
    change(bag)
    status, said = barely(bag)
    assert status == 1
    assert sentence in said
    assert "whole" not in said
    result = CliRunner().invoke(command, [str(bag), "--check"])
    assert result.exit_code == 1
    assert f"archiver: {sentence}" in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def _link_info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


LINKED = _bag({"data/x": b"/etc/passwd"})
LEFT = {name: data for name, data in LINKED.items() if name != "data/x"}
MORE = _bag({"data/x": b"x"}, extra_tags=f"{_sha(b'y')}  ../evil\n")

ZIPS: dict[str, tuple[Payload, list[tuple[zipfile.ZipInfo | str, bytes]], str]] = {
    "one name twice": (_good(), [(f"bag/{BLOB}", b"other")], "several files of the same name"),
    "beside the bag": (_bag({"data/x": b"x"}), [("data/x", b"y")], "../data/x is there, but"),
    "above the bag": (_bag({"data/x": b"x"}), [("../evil", b"y")], "../../evil is there, but"),
    "above, and listed": (MORE, [("../evil", b"y")], "lists ../evil, which has no place in it"),
    "a path out": (_bag({OUTSIDE: b"x"}), [], f"lists {OUTSIDE}, which has no place in it"),
    "an absolute path": (_bag({"/etc/x": b"x"}), [], "lists /etc/x, which has no place in it"),
    "a path of Windows": (_bag({"data/..\\x": b"x"}), [], r"lists data/..\x, which has no place"),
    "a drive": (_bag({"C:/x": b"x"}), [], "lists C:/x, which has no place in it"),
    "a link": (LEFT, [(_link_info("bag/data/x"), b"/etc/passwd")], "data/x is missing."),
    "a bomb": (_bag({"data/x": bytes(100_000_000)}), [], "unpack the ZIP where there is room"),
    "other sizes": (_bag({"data/x": b"x"}, oxum="5.1"), [], "Payload-Oxum says"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ZIPS)
def test_a_hostile_zip_is_told(kind: str, tmp_path: Path) -> None:
    """Nothing that leads out of it, is there twice, is a link or fills a disk is called whole."""
    files, more, sentence = ZIPS[kind]
    bag = _zip(tmp_path / "bag.zip", files, *more)
    count, faults = check.report(bag)
    assert count == 0
    assert any(sentence in fault for fault in faults), faults
    (tmp_path / "check.py").write_bytes(Path(check.__file__).read_bytes())
    assert barely(tmp_path, str(bag))[0] == 1


def test_entries_that_share_their_bytes_are_a_trap(tmp_path: Path) -> None:
    """Many entries of one and the same part of the file, each of them allowed by itself."""
    path = tmp_path / "bag.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bag/data/0", os.urandom(1000))
        for n in range(1, 5):
            info = copy.copy(archive.infolist()[0])
            info.filename = f"bag/data/{n}"
            archive.filelist.append(info)
    _, [fault] = check.report(path)
    assert "lie one upon the other" in fault


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_another_compression_is_told(kind: int, tmp_path: Path) -> None:
    """Not every Python has it, and each breaks in words of its own."""
    info = zipfile.ZipInfo("bag/data/y")
    info.compress_type = kind
    path = _zip(tmp_path / "bag.zip", _bag({"data/x": b"x"}), (info, b"some words"))
    _, [fault] = check.report(path)
    assert "data/y in the ZIP is compressed in a way that not every Python reads" in fault


@pytest.mark.parametrize("size", [0, 10, 22, 100, 500, -1, -30])
def test_a_zip_that_is_cut_is_told(size: int, tmp_path: Path) -> None:
    """Wherever it ends."""
    path = _zip(tmp_path / "bag.zip", _good())
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    count, faults = check.report(path)
    assert count == 0
    assert "is no whole ZIP file" in faults[0]


def test_flipped_bytes_of_a_zip_are_sentences(tmp_path: Path) -> None:
    """Every byte of it, one after the other: never a traceback, and whole only in its frame."""
    good = _zip(tmp_path / "bag.zip", _bag({"data/x": b"x" * 30})).read_bytes()
    path = tmp_path / "flipped.zip"
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        check.report(path)
