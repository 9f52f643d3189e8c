"""Export and import: a bag that anybody can verify, and another archive can take in."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest
import yaml
from click.testing import CliRunner

from archiver.catalogue.export import Selection
from archiver.cli.export import export as command
from archiver.errors import OperationError
from archiver.export.lines import BadLine, brought_of, kept_of
from archiver.export.zipping import zip_bag
from archiver.fetch.archive import Parts
from archiver.matrix.registration import new_registration
from archiver.serve.polls import polled
from tests.support.bags import BOB, ENDED, WHO, bring, check, export, files, fill, rows
from tests.support.fetching import INLINE_LIMIT
from tests.support.homeserver import Homeserver
from tests.support.keeping import blob_of, custody, file_of, read, states
from tests.support.redacting import ALICE, ROOM, SERVER, redact

if TYPE_CHECKING:
    pass

# A ZIP that is written by a process of its own, which kills itself in the third call of `write`,
# or in the first of something else.
KILLED_ZIP = """
import os, pkgutil, shutil, signal, sys, zipfile
from pathlib import Path
from archiver.export.zipping import zip_bag

place, _, name = sys.argv[1].rpartition(".")
owner = pkgutil.resolve_name(place)
before, calls = getattr(owner, name), 3 if name == "write" else 1

def deadly(*args):
    global calls
    calls -= 1
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(*args)

setattr(owner, name, deadly)
zip_bag(*map(Path, sys.argv[2:]))
"""
# An export in a process of its own, which kills itself when it reads a blob for the 60th time.
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from archiver.catalogue.export import Selection
from archiver.db.pool import open_pool
from archiver.export.exporter import Exporter
from archiver.serve.polls import polled
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore

class Deadly(HybridStore):
    reads = 0
    def read(self, *args):
        self.reads += 1
        if self.reads == 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(*args)

async def main(url, objects, limit, out, room):
    async with open_pool(url, 3) as pool:
        store = Deadly(PostgresStore(pool), FilesystemStore(Path(objects)), int(limit))
        exporter = Exporter(pool, store, "remote.example", polled, ("shell:test", "shell"))
        await exporter.export(Selection(room), Path(out))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_room_goes_out_and_into_another_archive(
    ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Checked by a bare Python, imported twice: row by row and byte by byte the same."""
    given = await fill(ours, homeserver, 190)
    out = tmp_path / "bag"
    done = await export(ours, out)
    missing = sum(ENDED.values()) + 1
    assert (done.media, done.missing) == (len(given), missing)
    status, said = check(out)
    assert (status, said) == (
        0,
        f"The bag is whole: {done.files} files are what manifest-sha256.txt says.\n",
    )
    imported, told = await bring(other, out)
    # What ended without bytes is new here as well; what was pending comes with its event.
    assert imported == (done.events, len(given) + missing - 1, 1, 0)
    assert told == []
    await redact(other.pool)
    assert await rows(ours.pool) == await rows(other.pool)
    for name, data in given.items():
        assert await read(other, name) == data
    again, told = await bring(other, out)
    assert (again.events, again.media, told) == (0, 0, [])
    await redact(other.pool)
    assert await rows(ours.pool) == await rows(other.pool)
    async with ours.pool.acquire() as here, other.pool.acquire() as there:
        poll = await polled(here, "$poll")
        assert poll == await polled(there, "$poll")
    [line] = (out / "data/polls.jsonl").read_bytes().splitlines()
    assert orjson.loads(line) == orjson.loads(orjson.dumps(poll))
    lines = await custody(other.pool)
    assert {line[:3] for line in lines} == {(*WHO, "import")}
    states = [line[4]["state"] for line in lines if line[3] == "bag"]
    assert states == ["begun", "done", "begun", "done"]
    come = [one for line in lines if line[3] is None for one in line[4].get("media", [])]
    assert sorted(one[0] for one in come) == sorted(f"mxc://{SERVER}/{name}" for name in given)
    assert sum(len(line[4].get("events", [])) for line in lines if not line[3]) == done.events


async def test_what_happened_to_a_bag_is_found(
    ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """One byte flipped, a file added, a file removed: each is told in a sentence."""
    given = await fill(ours, homeserver, 16)
    out = tmp_path / "bag"
    await export(ours, out)
    blob = max(out.glob("data/blobs/*/*"), key=lambda path: path.stat().st_size)
    name, good = blob.relative_to(out).as_posix(), blob.read_bytes()
    blob.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    status, said = check(out)
    assert status == 1
    assert said.startswith(f"{name} was changed: its SHA-256 is ")
    assert said.count("\n") == 1
    with pytest.raises(OperationError, match="imported but for 1 media"):
        await bring(other, out)
    blob.write_bytes(good)
    assert check(out)[0] == 0
    # The import that stopped at it goes on.
    imported, told = await bring(other, out)
    assert (imported.events, imported.media, told) == (0, 1, [])
    for media, data in given.items():
        assert await read(other, media) == data
    (out / "data/more.txt").write_text("more")
    status, said = check(out)
    assert status == 1
    assert said.startswith("data/more.txt is there, but manifest-sha256.txt does not list it.\n")
    assert "Payload-Oxum says" in said
    (out / "data/more.txt").unlink()
    blob.unlink()
    status, said = check(out)
    assert status == 1
    assert said.startswith(f"{name} is missing.\n")
    result = CliRunner().invoke(command, [str(out), "--check"])
    assert result.exit_code == 1
    assert f"archiver: {name} is missing.\n" in result.output
    # The same export once more mends it.
    await export(ours, out)
    assert check(out)[0] == 0


async def test_an_export_that_is_killed_goes_on(
    ours: Parts, database_url: str, homeserver: Homeserver, tmp_path: Path
) -> None:
    """What lies there is taken as it is; until it is finished the bag says that it is not."""
    await fill(ours, homeserver, 120)
    out = tmp_path / "bag"
    words = (database_url, str(tmp_path / "objects"), str(INLINE_LIMIT), str(out), ROOM)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, *words)
    assert await process.wait() == -signal.SIGKILL
    result = CliRunner().invoke(command, [str(out), "--check"])
    assert result.exit_code == 1
    assert "not finished" in result.output
    before = {name: at for name, at in files(out).items() if name.startswith("data/blobs/")}
    assert len(before) == 59
    assert out.stat().st_mode & 0o777 == 0o700
    broken = next(iter(sorted(before)))
    (out / broken).write_bytes(b"half")
    await export(ours, out)
    assert check(out)[0] == 0
    after = files(out)
    assert {name for name, at in before.items() if after[name] != at} <= {broken}
    assert not (out / ".part").exists()


async def test_what_is_gone_since_leaves_the_bag(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Quarantined since the last export, and damaged in the store: listed, and not there."""
    await fill(ours, homeserver, 16)
    out = tmp_path / "bag"
    await export(ours, out)
    secret = (await blob_of(ours.pool, "m6")).sha256.hex()
    await ours.pool.execute("UPDATE media SET state = 'quarantined' WHERE media_id = 'm6'")
    damaged = (await blob_of(ours.pool, "m7")).sha256
    file_of(tmp_path, damaged).write_bytes(b"other bytes")
    assert list(out.glob(f"data/blobs/*/{damaged.hex()}.*")) != []
    for left in out.glob(f"data/blobs/*/{damaged.hex()}.*"):
        left.unlink()
    await export(ours, out)
    assert check(out)[0] == 0
    names = " ".join(files(out))
    assert secret not in names
    assert damaged.hex() not in names
    lines = (out / "data/missing.jsonl").read_bytes().splitlines()
    missing = {told["mxc"]: told for told in map(orjson.loads, lines)}
    assert missing[f"mxc://{SERVER}/m6"]["state"] == "quarantined"
    assert "not in the store as they were" in missing[f"mxc://{SERVER}/m7"]["reason"]


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Gathers tags, attributes and links."""
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in {"href", "src"}]


async def test_pages_carry_out_nothing_and_lead_nowhere_else(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Hostile names and captions become words; every link is a file of the bag; pages go on."""
    await fill(ours, homeserver, 310)
    out = tmp_path / "bag"
    await export(ours, out)
    pages = sorted(out.glob("data/*.html"))
    assert len(pages) > 1
    seen: set[str] = set()
    for path in pages:
        page = Page()
        page.feed(path.read_text("utf-8"))
        assert page.tags <= {
            "html", "head", "meta", "title", "style", "body", "h1", "nav", "a", "article", "p",
            "b", "small", "bdi", "img", "video", "audio",
        }  # fmt: skip
        assert not {name for name in page.attributes if name.startswith("on")}
        for link in page.links:
            assert (out / "data" / link).resolve().is_relative_to(out / "data")
            assert (out / "data" / link).is_file()
            assert Path(link).suffix not in {".svg", ".xml", ".htm", ".js"}
        seen.update(page.links)
        assert all(not link.endswith(".html") or "/" not in link for link in page.links)
    blobs = {path.relative_to(out / "data").as_posix() for path in out.glob("data/blobs/*/*")}
    assert blobs <= seen
    assert {path.name for path in pages} <= seen


async def test_a_zip_is_the_same_bag(
    ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """It is checked and imported like a folder, and a byte of it that changed is found."""
    given = await fill(ours, homeserver, 24)
    folder, out = tmp_path / "bag", tmp_path / "bag.zip"
    await export(ours, folder)
    checker = (folder / "check.py").read_bytes()
    zip_bag(folder, out)
    assert not folder.exists()
    with zipfile.ZipFile(out) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    (tmp_path / "check.py").write_bytes(checker)
    assert check(tmp_path, str(out))[0] == 0
    await bring(other, out)
    for name, data in given.items():
        assert await read(other, name) == data
    zipped = bytearray(out.read_bytes())
    zipped[zipped.index(given["m7"]) + 50] ^= 1
    out.write_bytes(zipped)
    status, said = check(tmp_path, str(out))
    assert status == 1
    assert "data/blobs/" in said


@pytest.mark.parametrize("deadly", ["zipfile.ZipFile.write", "os.fsync", "shutil.rmtree"])
def test_a_zip_that_is_killed_begins_anew(tmp_path: Path, deadly: str) -> None:
    """The folder stays until the ZIP is whole and on the disk; what is left over from before is
    no obstacle, and nobody else may read what is there."""
    folder, target = tmp_path / "bag", tmp_path / "bag.zip"
    folder.mkdir()
    for n in range(5):
        (folder / str(n)).write_bytes(bytes([n]) * 1000)
    (tmp_path / "bag.zip.part").write_bytes(b"of an earlier one")
    process = subprocess.run(
        [sys.executable, "-c", KILLED_ZIP, deadly, str(folder), str(target)], check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert len(list(folder.iterdir())) == 5
    assert target.exists() == (deadly == "shutil.rmtree")
    zip_bag(folder, target)
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(target) as archive:
        assert all(archive.read(f"bag/{n}") == bytes([n]) * 1000 for n in range(5))


def test_a_large_zip_is_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 4 GiB and 65,535 files, which here are 100 bytes and 3 files."""
    folder, target = tmp_path / "bag", tmp_path / "bag.zip"
    for n in range(5):
        (folder / f"data/{n}").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"data/{n}").write_bytes(bytes(n * 100))
    with monkeypatch.context() as small:
        small.setattr(zipfile, "ZIP64_LIMIT", 100)
        small.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
        zip_bag(folder, target)
    data = target.read_bytes()
    assert b"PK\x06\x06" in data  # the end of the central directory as ZIP64 has it
    assert b"PK\x06\x07" in data
    with zipfile.ZipFile(target) as archive:
        assert [info.file_size for info in archive.infolist()] == [0, 100, 200, 300, 400]
        assert archive.testzip() is None


async def test_what_is_known_is_not_overwritten(
    ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Deleted or quarantined there, it stays so and is told; what failed there is filled in."""
    given = await fill(ours, homeserver, 16)
    out = tmp_path / "bag"
    await export(ours, out)
    for name, state in (("m0", "deleted"), ("m1", "quarantined"), ("m3", "failed")):
        await other.pool.execute(
            "INSERT INTO media (server_name, media_id, state, reason) VALUES ($1, $2, $3, 'ours')",
            SERVER,
            name,
            state,
        )
    _, told = await bring(other, out)
    assert told == [
        f"mxc://{SERVER}/m0 is deleted here (ours), and stays as it is.",
        f"mxc://{SERVER}/m1 is quarantined here (ours), and stays as it is.",
    ]
    found = await states(other.pool)
    assert [found[name] for name in ("m0", "m1", "m3")] == ["deleted", "quarantined", "ready"]
    assert await read(other, "m3") == given["m3"]


async def test_a_selection_comes_with_what_belongs_to_it(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Of one person also what others said about it; of a time no more than that time."""
    await fill(ours, homeserver, 16)

    async def chosen(name: str, wanted: Selection) -> set[str]:
        await export(ours, tmp_path / name, wanted)
        assert check(tmp_path / name)[0] == 0
        lines = (tmp_path / name / "data/events.jsonl").read_bytes().splitlines()
        events = [orjson.loads(line)["event_id"] for line in lines]
        assert len(events) == len(set(events))
        return set(events)

    everything = await chosen("all", Selection())
    assert everything == await chosen("room", Selection(ROOM))
    assert everything - {"$vote", "$gone"} < everything
    assert await chosen("alice", Selection(sender=ALICE)) == everything
    assert await chosen("bob", Selection(sender=BOB)) == {"$vote"}
    assert await chosen("alice_here", Selection(ROOM, ALICE)) == everything
    assert await chosen("elsewhere", Selection("!elsewhere")) == set()
    row = await ours.pool.fetchrow("SELECT sent_at FROM event WHERE event_id = '$e5'")
    assert row is not None
    late = await ours.pool.fetchval("SELECT sent_at FROM event WHERE event_id = '$e8'")
    some = await chosen("some", Selection(ROOM, None, row["sent_at"], late))
    assert some == {"$e5", "$e6", "$e7"}


async def test_a_folder_with_something_else_is_left_alone(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Neither other files nor another export are touched."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(OperationError, match="not empty"):
        await export(ours, tmp_path / "full")
    assert list(files(tmp_path / "full")) == ["mine"]
    await export(ours, tmp_path / "bag")
    before = files(tmp_path / "bag")
    with pytest.raises(OperationError, match="something else"):
        await export(ours, tmp_path / "bag", Selection("!other"))
    assert files(tmp_path / "bag") == before


async def test_both_on_the_shell(
    ours: Parts,
    other: Parts,
    database_url: str,
    other_url: str,
    homeserver: Homeserver,
    tmp_path: Path,
) -> None:
    """Export with --zip, check, and import, each a process of its own."""
    given = await fill(ours, homeserver, 24)
    out = tmp_path / "bag.zip"
    first = _config(tmp_path, database_url, "objects")
    said = await _archiver("export", str(out), "--room", ROOM, "--zip", "-c", first)
    assert f"{out} holds {len(given)} media of " in said
    assert "13 media are not in it: data/missing.jsonl tells why." in said
    assert (await _archiver("export", "--check", str(out))).startswith("The bag is whole: ")
    second = _config(tmp_path, other_url, "other/objects", leaves_out=[ROOM])
    said = await _archiver("import", str(out), "-c", second)
    assert " and 0 media; 0 media were known" in said
    assert f"{len(given) + 13} are left out, for capture.rooms leaves out their rooms." in said
    said = await _archiver("import", str(out), "--all-rooms", "-c", second)
    assert f"and {len(given)} media; 13 media were known or have no bytes" in said
    for name, data in given.items():
        assert await read(other, name) == data
    await other.pool.execute(
        "UPDATE media SET state = 'deleted', reason = 'asked', blob_sha256 = NULL"
        " WHERE media_id = 'm1'"
    )
    said = await _archiver("import", str(out), "--all-rooms", "-c", second)
    assert f"mxc://{SERVER}/m1 is deleted here (asked), and stays as it is." in said
    said = await _archiver("import", str(out), "--all-rooms", "--deleted-too", "-c", second)
    assert "Imported 0 events and 1 media; " in said
    assert await read(other, "m1") == given["m1"]
    assert {line[2] for line in await custody(ours.pool)} == {"export"}


def _config(folder: Path, url: str, objects: str, leaves_out: Sequence[str] = ()) -> str:
    path = folder / f"{objects.replace('/', '-')}.yaml"
    settings = {
        "homeserver": {"url": "http://127.0.0.1:1", "server_name": SERVER},
        "database": {"url": url},
        "capture": {"rooms": {"except": list(leaves_out)}},
        "storage": {
            "inline_limit": INLINE_LIMIT,
            "filesystem": {"path": str(folder / objects)},
            "spool": str(folder / "spool"),
        },
    }
    path.write_text(yaml.safe_dump(settings), "utf-8")
    registration = new_registration("http://127.0.0.1:1", SERVER)
    (folder / "registration.yaml").write_text(yaml.safe_dump(registration), "utf-8")
    return str(path)


async def _archiver(*words: str) -> str:
    """What a command prints that works."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "archiver", *words, stdout=pipe, stderr=pipe
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b""), (out, err)
    return out.decode()


async def test_an_import_shows_how_far_it_is(
    ours: Parts, other_url: str, homeserver: Homeserver, tmp_path: Path
) -> None:
    """To who watches it in a terminal."""
    await fill(ours, homeserver, 8)
    await export(ours, tmp_path / "bag")
    config = _config(tmp_path, other_url, "other/objects")
    master, slave = pty.openpty()
    words = ("import", str(tmp_path / "bag"), "-c", config)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "archiver", *words, stdout=asyncio.subprocess.PIPE, stderr=slave
    )
    os.close(slave)
    shown, (out, _) = await asyncio.gather(
        asyncio.to_thread(_shown, master), process.communicate()
    )
    assert process.returncode == 0
    assert re.search(rb"\D0 events and \d+ media; ", shown)
    assert b"Imported" not in shown
    done = out.removeprefix(b"Imported ").strip()
    assert done.startswith(b"25 events and ")
    assert done in shown


def _shown(master: int) -> bytes:
    """All that a terminal is told until nobody has it open any more."""
    shown = b""
    with open(master, "rb", buffering=0) as file:
        try:
            while piece := file.read(65_536):
                shown += piece
        except OSError:  # as Linux says it
            pass
    return shown


async def test_a_strangers_bag_leads_nowhere_else(
    ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Neither a link nor a path of a manifest is followed; lines that no export writes are told,
    and so is a list that is not what the manifest says."""
    await fill(ours, homeserver, 16)
    out, secret = tmp_path / "bag", tmp_path / "secret"
    await export(ours, out)
    secret.write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    [blob] = out.glob(f"data/blobs/e3/{empty}.bin")
    blob.unlink()
    blob.symlink_to(secret)
    status, said = check(out)
    assert status == 1
    assert said.startswith(f"data/blobs/e3/{empty}.bin is missing.\n")
    with pytest.raises(OperationError, match="imported but for"):
        await bring(other, out)
    blob.unlink()
    blob.write_bytes(b"")
    manifest = out / "manifest-sha256.txt"
    good = manifest.read_bytes()
    manifest.write_bytes(good + f"{empty}  data/../../secret\n".encode())
    status, said = check(out)
    assert "data/../../secret is missing." in said
    with pytest.raises(OperationError, match=r"manifest-sha256\.txt is not what"):
        await bring(other, out)
    manifest.write_bytes(good)
    (out / "data/media.jsonl").write_bytes(b"{}\n")
    with pytest.raises(OperationError, match=r"media.jsonl is not what"):
        await bring(other, out)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b"null", b"nonsense", b'{"mxc": 5}', b'{"event_id": null}', b"\xff"],
)
def test_a_line_that_no_export_writes_is_told(text: bytes) -> None:
    """Whatever it is, it is a BadLine and nothing else."""
    for reading in (kept_of, brought_of):
        with pytest.raises(BadLine):
            reading(text)
