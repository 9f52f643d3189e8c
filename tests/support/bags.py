"""What the tests of export stand on: a room with media of all kinds, states and hostile names."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archiver.catalogue.export import Selection
from archiver.export.exporter import Exported, Exporter
from archiver.export.importer import Imported, Importer
from archiver.fetch.archive import Parts
from archiver.fetch.inspect import inspect
from archiver.serve.polls import polled
from tests.support.fetching import INLINE_LIMIT
from tests.support.homeserver import Homeserver
from tests.support.keeping import archive
from tests.support.redacting import (
    ALICE,
    EVERYTHING,
    ROOM,
    SERVER,
    Event,
    edit,
    image,
    push,
    redact,
    redaction,
)
from tests.support.samples import film, png, wav

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from archiver.capture.policy import CapturePolicy
    from archiver.db.pool import Pool, Row

WHO = ("shell:test", "shell")
BOB = f"@bob:{SERVER}"
ENDED = {"failed": 3, "excluded": 3, "quarantined": 3, "deleted": 3}
HOSTILE = (
    "../../../etc/passwd", "a\0b.png", "<script>alert(1)</script>.png", "two\nlines\r.png",
    "x" * 255, "\u202egpj.exe", '"onerror="alert(1).png', "C:\\con", "..", "ä" * 255,
)  # fmt: skip
HTML = b"<!DOCTYPE html><script>alert(1)</script>" + bytes(60)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def bodies(count: int) -> dict[str, bytes]:
    """Bytes of many kinds by media id; some are the same."""
    kinds = (
        lambda n: png(8, 8, (n % 256, 0, 0)),
        lambda n: wav(0.05, 200 + n),
        lambda n: film(1, 8 + n % 4),
        lambda _: HTML,
        lambda _: SVG,
        lambda _: b"",
        lambda n: os.urandom(100 + n),
        lambda n: os.urandom(INLINE_LIMIT + n),
    )
    return {f"m{n}": kinds[n % len(kinds)](n) for n in range(count)}


def _image(n: int, name: str) -> Event:
    words = HOSTILE[n % len(HOSTILE)] if n % 3 == 0 else f"file {n}.png"
    event = image(f"$e{n}", name, caption=words + " and more")
    event["content"]["filename"] = words
    return event | {"origin_server_ts": 1_700_000_000_000 + n}


def _poll(kind: str, event_id: str, sender: str, content: dict[str, Any]) -> Event:
    told = {"event_id": event_id, "type": f"m.poll.{kind}", "sender": sender, "room_id": ROOM}
    return {**told, "origin_server_ts": 1_700_000_100_000, "content": content}


def poll() -> list[Event]:
    """A poll of Alice's, and a vote of Bob's."""
    answers = [{"m.id": name, "m.text": [{"body": name}]} for name in ("yes", "no")]
    asked = {"question": {"m.text": [{"body": "<b>Tea?</b>"}]}, "answers": answers}
    relation = {"rel_type": "m.reference", "event_id": "$poll"}
    vote = {"m.selections": ["yes"], "m.relates_to": relation}
    begun = {"m.poll": {**asked, "kind": "m.disclosed"}, "m.text": [{"body": "Tea?"}]}
    return [
        _poll("start", "$poll", ALICE, begun),
        _poll("response", "$vote", BOB, vote),
    ]


async def fill(ours: Parts, homeserver: Homeserver, count: int) -> dict[str, bytes]:
    """A room with `count` media and as many as `ENDED` has without bytes, one pending, and a
    damaged one; returns the bytes."""
    given = bodies(count)
    await push(ours.pool, *(_image(n, name) for n, name in enumerate(given)))
    await archive(ours, homeserver, **given)
    await push(ours.pool, edit("$edit", "$e1", "edited"), *poll())
    await archive(ours, homeserver, edited=b"another")
    for state, some in ENDED.items():
        names = [f"{state}{n}" for n in range(some)]
        await push(ours.pool, *(image(f"${name}", name) for name in names))
        await ours.pool.execute(
            "UPDATE media SET state = $1, reason = $2, due_at = NULL, settled_at = now()"
            " WHERE media_id = ANY($3::text[])",
            state,
            "capture.on_redaction: every event that names it was redacted"
            if state == "deleted"
            else "<b>a reason</b>",
            names,
        )
    gone = redaction("$gone", "$e2", origin_server_ts=1_700_000_200_000)
    await push(ours.pool, image("$waits", "waits"), gone)
    await redact(ours.pool)
    return given | {"edited": b"another"}


async def export(ours: Parts, out: Path, wanted: Selection | None = None) -> Exported:
    """Exports the room, or what is wanted."""
    exporter = Exporter(ours.pool, ours.store, SERVER, polled, WHO)
    return await exporter.export(wanted or Selection(ROOM), out)


async def bring(
    ours: Parts,
    bag: Path,
    policy: CapturePolicy = EVERYTHING,
    *,
    deleted_too: bool = False,
    progress: Callable[[Imported], Awaitable[None]] | None = None,
) -> tuple[Imported, list[str]]:
    """Imports a bag; also what was told."""
    told: list[str] = []
    importer = Importer(
        ours.pool, ours.store, ours.spool, policy, inspect, WHO, told.append, progress,
        deleted_too=deleted_too,
    )  # fmt: skip
    return await importer.import_(bag), told


def forge(bag: Path, name: str, data: bytes) -> None:
    """Puts a file into a bag, or another one in its place, as who made the bag could."""
    (bag / name).write_bytes(data)
    _list(bag / "manifest-sha256.txt", name, data)
    manifest = (bag / "manifest-sha256.txt").read_bytes()
    _list(bag / "tagmanifest-sha256.txt", "manifest-sha256.txt", manifest)


def _list(manifest: Path, name: str, data: bytes) -> None:
    lines = manifest.read_text("utf-8").splitlines()
    others = [line for line in lines if not line.endswith(f"  {name}")]
    listed = [*others, f"{hashlib.sha256(data).hexdigest()}  {name}"]
    manifest.write_text("".join(f"{line}\n" for line in listed), "utf-8")


def pythons() -> list[str]:
    """Every interpreter of this machine from Python 3.8 on, as it is and not what leads there."""
    own = Path(sys.executable).resolve()
    names = ("python3", *(f"python3.{minor}" for minor in range(8, 16)))
    places = {f"/usr/bin/{name}" for name in names} | {shutil.which(name) or "" for name in names}
    beside = own.parents[2].glob("*/bin/python3")  # where several are installed side by side
    places |= set(map(str, beside))
    found = {_itself(place) for place in places if place and Path(place).exists()}
    return [str(own), *sorted(found - {str(own), ""})]


def _itself(python: str) -> str:
    """Where an interpreter really is; nothing where it is too old, or none that runs."""
    told = "import sys; print(sys.executable if sys.version_info >= (3, 8) else '')"
    command = [python, "-I", "-S", "-c", told]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    said = done.stdout.strip()
    return str(Path(said).resolve()) if done.returncode == 0 and said else ""


def check(bag: Path, *words: str, python: str = sys.executable) -> tuple[int, str]:
    """What a bare Python in an empty environment says of a bag with nothing but its files."""
    command = [python, "-I", "-S", str(bag / "check.py"), *words]
    done = subprocess.run(command, check=False, capture_output=True, cwd="/", env={})
    assert done.stderr == b""
    return done.returncode, done.stdout.decode()


def files(bag: Path) -> dict[str, int]:
    """Every file in a folder with its inode: another one when it was written anew."""
    return {
        path.relative_to(bag).as_posix(): path.stat().st_ino
        for path in bag.rglob("*")
        if path.is_file()
    }


TABLES = {
    "event": "SELECT event_id, room_id, sender, type, state_key, origin_server_ts, content, raw,"
    " replaces, redacts, original, redacted_by, redacted_at, sent_at, has_media FROM event"
    " ORDER BY event_id",
    "media": "SELECT server_name, media_id, state, reason, blob_sha256, declared_type,"
    " upload_name FROM media ORDER BY server_name, media_id",
    "reference": "SELECT * FROM reference ORDER BY event_id, server_name, media_id, role",
    # Not the blobs of what is not ready: those stay where they are.
    "blob": "SELECT DISTINCT b.sha256, b.size, b.mimetype, b.width, b.height, b.duration_ms,"
    " b.place FROM blob AS b JOIN media AS m ON m.blob_sha256 = b.sha256 ORDER BY b.sha256",
}


async def rows(pool: Pool) -> dict[str, list[Row]]:
    """What two archives have in common after an import."""
    return {name: await pool.fetch(statement) for name, statement in TABLES.items()}
