"""What an import reads of a bag: nothing counts before its hash is what the manifest says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from archiver.export import check
from archiver.export.check import BadBag, Bag
from archiver.store.base import MIB
from archiver.store.spool import in_thread

if TYPE_CHECKING:
    from archiver.store.spool import SpooledBody

LONGEST = 16 * MIB  # a line with an event and all its references has a fraction of that
MEDIA, EVENTS = "data/media.jsonl", "data/events.jsonl"


async def opened(path: Path) -> tuple[Bag, str]:
    """The bag, the caller's to close, and the SHA-256 of its manifest. What tells of the bag, and
    the lists in it, are what they should be. Raises BadBag."""
    with _sentences(str(path)):
        bag = await in_thread(None, check.open_bag, path)
    try:
        return bag, await in_thread(None, _trusted, bag)
    except BaseException:
        bag.close()
        raise


async def lines(bag: Bag, name: str) -> AsyncIterator[list[bytes]]:
    """The lines of a file, up to a MiB of them at once; one may be longer. Raises BadBag."""
    with bag.open(name) as file:
        number = 0
        while some := await in_thread(None, _some, file, name):
            for text in some:
                number += 1
                if not text.endswith(b"\n"):
                    raise BadBag(f"line {number} of {name} has no end or is too long.")
            yield some


async def copy(bag: Bag, name: str, sha256: bytes, body: SpooledBody) -> None:
    """Reads a file to its end. Raises BadBag, also where it has another SHA-256, and
    StoreUnavailable."""
    file = await in_thread(None, bag.open, name)
    try:
        while piece := await in_thread(None, _piece, file, name):
            await body.write(piece)
    finally:
        await in_thread(None, file.close)
    if await body.finish() != sha256:
        raise BadBag(f"{name} was changed: its SHA-256 is {body.sha256.hex()}.")


def sizes(bag: Bag, names: list[str]) -> list[int]:
    """The bytes of some files; 0 where one is not there. Blocks."""
    return [bag.size(name) or 0 for name in names]


def _trusted(bag: Bag) -> str:
    if bag.twice:
        raise BadBag("the ZIP has several files of the same name.")
    tags = _told(bag, check.TAG_MANIFEST, {"bagit.txt", check.MANIFEST})
    expected = tags | _told(bag, check.MANIFEST, {MEDIA, EVENTS})
    for name in (check.MANIFEST, "bagit.txt", MEDIA, EVENTS):
        with bag.open(name) as file, _sentences(name):
            found = check.hash_of(file)
        if found != expected.get(name):
            raise BadBag(f"{name} is not what the bag's manifest says.")
    return expected[check.MANIFEST]


def _told(bag: Bag, manifest: str, names: set[str]) -> dict[str, str]:
    """A manifest may be longer than memory is large."""
    return {name: digest for name, digest in check.entries(bag, manifest) if name in names}


def _some(file: IO[bytes], name: str) -> list[bytes]:
    some: list[bytes] = []
    size = 0
    with _sentences(name):
        while size < MIB and (text := file.readline(LONGEST)):
            some.append(text)
            size += len(text)
    return some


def _piece(file: IO[bytes], name: str) -> bytes:
    with _sentences(name):
        return file.read(MIB)


@contextmanager
def _sentences(name: str) -> Iterator[None]:
    """What goes wrong with a bag's files is the bag's fault, and never the database's."""
    try:
        yield
    except check.UNREADABLE as error:
        raise BadBag(f"{name} cannot be read: {error}.") from error
