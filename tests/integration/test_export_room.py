"""A room of 500 media of all kinds: out as a bag, checked by bare Pythons, in, and out again."""

from __future__ import annotations

import ast
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from archiver.export import check as checker
from archiver.export.zipping import zip_bag
from archiver.fetch.archive import Parts
from archiver.serve.polls import polled
from tests.support.bags import ENDED, bring, check, export, pythons, rows
from tests.support.furnished import furnish
from tests.support.keeping import read
from tests.support.redacting import SERVER, redact

if TYPE_CHECKING:
    from tests.support.homeserver import Homeserver

# When the archive learned of it, and by which door.
OWN = ("received_at", "source", "created_at", "settled_at", "redacted_at")
LISTS = ("events", "media", "missing", "polls")


def _lines(bag: Path, name: str) -> list[dict[str, Any]]:
    lines = (bag / f"data/{name}.jsonl").read_bytes().splitlines()
    told = [orjson.loads(line) for line in lines]
    return [{key: said for key, said in one.items() if key not in OWN} for one in told]


def _others(bag: Path) -> dict[str, bytes]:
    """All that is no list of events or of custody, nor tells of the bag itself."""
    paths = [path for path in bag.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
    found = {path.relative_to(bag).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if "manifest" not in name}


@pytest.mark.parametrize("form", ["folder", "zip"])
async def test_a_room_of_all_kinds_goes_out_in_and_out_again(
    form: str, ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """On another machine's bare Python it is whole; the other archive has the same rows and
    bytes, and makes the same bag of them."""
    given = await furnish(ours, homeserver, 316)
    assert len(given) >= 500
    first = tmp_path / "first"
    done = await export(ours, first)
    missing = sum(ENDED.values()) + 1
    assert (done.media, done.missing) == (len(given), missing)
    bag = first
    if form == "zip":
        bag = tmp_path / "elsewhere.zip"
        zip_bag(Path(shutil.copytree(first, tmp_path / "second")), bag)
    for python in pythons():
        status, said = check(first, str(bag), python=python)
        whole = f"The bag is whole: {done.files} files are what manifest-sha256.txt says.\n"
        assert (status, said) == (0, whole)
    imported, told = await bring(other, bag)
    assert imported == (done.events, len(given) + missing - 1, 1, 0)
    assert told == []
    await redact(other.pool)
    assert await rows(ours.pool) == await rows(other.pool)
    for name, data in given.items():
        assert await read(other, name) == data
    async with ours.pool.acquire() as here, other.pool.acquire() as there:
        assert await polled(here, "$poll") == await polled(there, "$poll")
    await export(other, tmp_path / "again")
    assert _others(first).keys() == _others(tmp_path / "again").keys()
    for name, data in _others(first).items():
        if name != "bag-info.txt":  # the custody is another one, so its size is, too
            assert (tmp_path / "again" / name).read_bytes() == data
    for name in LISTS:
        assert _lines(first, name) == _lines(tmp_path / "again", name)


async def test_every_kind_is_in_the_room(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """What the others rely on: all roles, what is encrypted, names of 255 bytes, shared bytes."""
    given = await furnish(ours, homeserver, 40)
    await export(ours, tmp_path / "bag")
    named = [one for event in _lines(tmp_path / "bag", "events") for one in event["references"]]
    roles = {"content", "thumbnail", "sticker", "avatar", "emoticon"}
    assert {one["role"] for one in named} >= roles
    assert any(one["encryption"] for one in named)
    assert any(len((one["filename"] or "").encode()) == 255 for one in named)
    assert max(Counter(one["filename"] for one in named if one["filename"]).values()) > 1
    shared = Counter(given.values())
    blobs = list((tmp_path / "bag").glob("data/blobs/*/*"))
    assert len(blobs) == len(shared) < len(given)
    states = Counter(one["state"] for one in _lines(tmp_path / "bag", "media"))
    assert set(states) == {"ready", "pending", *ENDED}
    assert any(event["redacted_by"] for event in _lines(tmp_path / "bag", "events"))


def test_the_checker_runs_on_old_pythons() -> None:
    """Its syntax is that of 3.8, and it imports only what every Python has."""
    tree = ast.parse(Path(checker.__file__).read_text("utf-8"), feature_version=(3, 8))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            modules.add(node.module)
        elif isinstance(node, ast.Attribute):
            assert node.attr not in {"removeprefix", "removesuffix", "is_relative_to"}
    assert modules <= {*sys.stdlib_module_names, "__future__"}


async def test_a_bag_says_of_whom_it_is(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Every line of bag-info.txt is one, as RFC 8493 has it."""
    await furnish(ours, homeserver, 10)
    await export(ours, tmp_path / "bag")
    info = (tmp_path / "bag/bag-info.txt").read_text("utf-8").splitlines()
    assert info[0] == f"Source-Organization: {SERVER}"
    assert all(": " in line for line in info)
