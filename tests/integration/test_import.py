"""Import: what a cut one leaves, what stays out, and what a stranger's bag cannot do."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from base64 import b64encode
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from archiver.capture.policy import ROOM_EXCLUDED, CapturePolicy
from archiver.catalogue import refused
from archiver.catalogue.deletion import LOOK_AGAIN_AFTER
from archiver.catalogue.export import Selection
from archiver.db.pool import open_pool
from archiver.errors import OperationError
from archiver.export.arriving import TOGETHER
from archiver.export.exporter import Exporter
from archiver.export.importer import Imported, Importer
from archiver.fetch.archive import Parts
from archiver.fetch.inspect import inspect
from archiver.keep.deletion import Deletion
from archiver.serve.polls import polled
from tests.support.bags import BOB, WHO, bring, export, fill, forge
from tests.support.fetching import INLINE_LIMIT
from tests.support.keeping import custody, read, states
from tests.support.redacting import (
    EVERYTHING,
    ROOM,
    SERVER,
    hinted,
    image,
    pass_time,
    push,
    redact,
    redaction,
)

if TYPE_CHECKING:
    from archiver.db.pool import Pool
    from tests.support.homeserver import Homeserver

# An import in a process of its own, which kills itself when its 70th media is committed.
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from archiver.capture.policy import CapturePolicy
from archiver.db.pool import open_pool
from archiver.export.importer import Importer
from archiver.fetch.inspect import inspect
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.store.spool import Spool

async def die(done):
    if done.media >= 70:
        os.kill(os.getpid(), signal.SIGKILL)

async def main(url, folder, limit, bag):
    async with open_pool(url, 3) as pool:
        objects = FilesystemStore(Path(folder, "objects"))
        store = HybridStore(PostgresStore(pool), objects, int(limit))
        await store.open()
        importer = Importer(
            pool, store, Spool(Path(folder, "spool"), int(limit)), CapturePolicy("remote.example"),
            inspect, ("shell:test", "shell"), print, die)
        await importer.import_(Path(bag))

asyncio.run(main(*sys.argv[1:]))
"""


async def _come(pool: Pool) -> list[tuple[str, str]]:
    """The media, with their hashes, and the events that custody says came."""
    details = [line[4] for line in await custody(pool) if line[2] == "import"]
    return sorted((one[0], one[1]) for detail in details for one in _media(detail))


def _media(detail: dict[str, Any]) -> list[list[str]]:
    media = detail.get("media")
    return media if isinstance(media, list) else []


async def test_an_import_that_is_killed_left_a_trace_and_goes_on(
    ours: Parts, other: Parts, other_url: str, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Custody names exactly what is in; once more brings the rest, and reads nothing twice."""
    given = await fill(ours, homeserver, 190)
    done = await export(ours, tmp_path / "bag")
    words = (other_url, str(tmp_path / "other"), str(INLINE_LIMIT), str(tmp_path / "bag"))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, *words)
    assert await process.wait() == -signal.SIGKILL
    rows = await other.pool.fetch(
        "SELECT 'mxc://' || server_name || '/' || media_id, encode(blob_sha256, 'hex')"
        " FROM media WHERE state = 'ready'"
    )
    assert 50 <= len(rows) < len(given)
    assert await _come(other.pool) == sorted(map(tuple, rows))
    # What is there is not read again: its file may be anything by now, but where others need it.
    there = {row[0].rpartition("/")[2] for row in rows}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in given.items()}
    coming = {digest for name, digest in digests.items() if name not in there}
    spoilt = {digests[name] for name in there} - coming
    assert spoilt
    for blob in (tmp_path / "bag").glob("data/blobs/*/*"):
        if blob.name.partition(".")[0] in spoilt:
            blob.write_bytes(b"no more")
    seen: list[Imported] = []

    async def progress(so_far: Imported) -> None:
        seen.append(so_far)

    imported, _ = await bring(other, tmp_path / "bag", progress=progress)
    assert imported.events == done.events
    assert seen == sorted(seen)
    assert len({so_far.media for so_far in seen}) > (len(given) - len(rows)) / TOGETHER
    assert seen[-1] == imported
    for name, data in given.items():
        assert await read(other, name) == data
    come = await _come(other.pool)
    assert len(come) == len(set(come)) == len(given)
    assert {digest for _, digest in come} == set(digests.values())


async def test_rooms_that_are_left_out_stay_out(
    ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """As if they had been posted now: their media is excluded, their words are not there; what
    another room names comes; whoever wants all rooms gets them afterwards."""
    given = await fill(ours, homeserver, 24)
    elsewhere = image("$elsewhere", "m0", room_id="!elsewhere")
    await push(ours.pool, elsewhere)
    bag = tmp_path / "bag"
    done = await export(ours, bag, Selection())
    for policy in (
        CapturePolicy(SERVER, excluded={ROOM}),
        CapturePolicy(SERVER, only={"!elsewhere"}),
    ):
        imported, told = await bring(other, bag, policy)
        assert told == []
        assert imported.left_out == done.media + done.missing - 1
        found = await other.pool.fetch("SELECT media_id, state, reason FROM media")
        assert {tuple(row)[1:] for row in found if row[0] != "m0"} == {("excluded", ROOM_EXCLUDED)}
        assert await read(other, "m0") == given["m0"]
        words = "SELECT event_id FROM event WHERE content <> '{}' OR raw IS NOT NULL"
        assert [row[0] for row in await other.pool.fetch(words)] == ["$elsewhere"]
        named = "SELECT count(*) FROM reference WHERE filename IS NOT NULL OR caption IS NOT NULL"
        assert await other.pool.fetchval(named) == 1
    _, told = await bring(other, bag)
    assert told == []
    for name, data in given.items():
        assert await read(other, name) == data


async def test_what_was_deleted_comes_back_when_asked(
    ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Not otherwise; what is in quarantine and bytes that are refused stay so in any case."""
    given = await fill(ours, homeserver, 16)
    bag = tmp_path / "bag"
    await export(ours, bag)
    for name, state in (("m0", "deleted"), ("m1", "quarantined")):
        await other.pool.execute(
            "INSERT INTO media (server_name, media_id, state, reason)"
            " VALUES ($1, $2, $3, 'erasure: asked')",
            SERVER,
            name,
            state,
        )
    async with other.pool.acquire() as conn, conn.transaction():
        await refused.refuse(conn, hashlib.sha256(given["m6"]).digest(), "never", tell=False)
    _, told = await bring(other, bag)
    assert f"mxc://{SERVER}/m6 is in quarantine: its bytes are refused here." in told
    details = [line[4] for line in await custody(other.pool) if line[2] == "import"]
    came = {one[0]: one[3:] for detail in details for one in _media(detail)}
    refused_here = {mxc for mxc, rest in came.items() if rest == ["quarantined"]}
    same = {name for name, data in given.items() if data == given["m6"]}
    assert refused_here == {f"mxc://{SERVER}/{name}" for name in same}
    found = await states(other.pool)
    assert [found[name] for name in ("m0", "m1", "m6")] == [
        "deleted",
        "quarantined",
        "quarantined",
    ]
    _, told = await bring(other, bag, deleted_too=True)
    found = await states(other.pool)
    assert [found[name] for name in ("m0", "m1", "m6")] == ["ready", *["quarantined"] * 2]
    assert await read(other, "m0") == given["m0"]


async def test_what_was_redacted_and_deleted_stays_redacted(
    ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """A bag from before the redaction brings nothing back; with what was deleted it does, and it
    is as redacted as its events are here."""
    given = await fill(ours, homeserver, 8)
    bag = tmp_path / "bag"
    await export(ours, bag)
    await bring(other, bag)
    await push(other.pool, redaction("$late", "$e6"))
    deleting = Deletion(other.pool, other.store, timedelta(0))
    for _ in range(2):
        await redact(other.pool)
        await pass_time(other.pool, LOOK_AGAIN_AFTER)
        await deleting.work()
    assert (await states(other.pool))["m6"] == "deleted"
    assert "m6" not in await hinted(other.pool)
    await bring(other, bag)
    assert (await states(other.pool))["m6"] == "deleted"
    await bring(other, bag, deleted_too=True)
    assert (await states(other.pool))["m6"] == "ready"
    assert await read(other, "m6") == given["m6"]
    assert "m6" in await hinted(other.pool)
    assert "m7" not in await hinted(other.pool)


async def test_bytes_that_the_sender_did_not_encrypt_stay_out(
    ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """A bag cannot put other bytes in the place of those that an event here is about."""
    await fill(ours, homeserver, 16)
    bag = tmp_path / "bag"
    await export(ours, bag)
    digest = b64encode(hashlib.sha256(b"the true ones").digest()).decode().rstrip("=")
    event = image("$true", "m6", sender=BOB)
    url = event["content"].pop("url")
    event["content"]["file"] = {"url": url, "hashes": {"sha256": digest}, "v": "v2"}
    await push(other.pool, event)
    _, told = await bring(other, bag)
    assert told == [f"{url} stays out: its bytes in the bag are not what its sender encrypted."]
    assert (await states(other.pool))["m6"] == "pending"


async def test_a_database_that_goes_away_is_a_sentence(
    ours: Parts, other_url: str, other: Parts, database_url: str, homeserver: Homeserver,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Of an import and of an export; both go on where they ended."""
    given = await fill(ours, homeserver, 60)
    bag = tmp_path / "bag"
    async with open_pool(database_url, 3) as pool:

        async def lost(*_: object) -> None:
            pool.terminate()

        exporter = Exporter(pool, ours.store, SERVER, polled, WHO)
        with pytest.raises(OperationError, match="the database does not answer any more"):
            await exporter.export(Selection(ROOM), bag, lost)
    await export(ours, bag)
    async with open_pool(other_url, 3) as pool:

        async def gone(_: Imported) -> None:
            pool.terminate()

        importer = Importer(pool, other.store, other.spool, EVERYTHING, inspect, WHO, print, gone)
        with pytest.raises(OperationError, match="and import once more"):
            await importer.import_(bag)
    await bring(other, bag)
    for name, data in given.items():
        assert await read(other, name) == data


def _lines(bag: Path, name: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (bag / name).read_bytes().splitlines()]


def _written(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(line) + b"\n" for line in lines)


async def test_a_bag_that_lies_harms_only_itself(
    ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Bytes that are not there, types that are paths, one media told twice, times beyond time."""
    given = await fill(ours, homeserver, 16)
    bag = tmp_path / "bag"
    await export(ours, bag)
    media = _lines(bag, "data/media.jsonl")
    by_name = {line["mxc"].rpartition("/")[2]: line for line in media}
    by_name["m0"] |= {"sha256": "00" * 32}
    by_name["m1"] |= {"sha256": "ab", "path": "data/events.jsonl"}
    by_name["m3"] |= {"mimetype": "../../../../etc/passwd"}
    media += [by_name["m6"] | {"sha256": by_name["m7"]["sha256"]}]
    forge(bag, "data/media.jsonl", _written(media))
    events = _lines(bag, "data/events.jsonl")
    events[0] |= {"origin_server_ts": 2**62, "sender": ["@nobody"], "room_id": "x" * 300}
    forge(bag, "data/events.jsonl", _written(events))
    told: list[str] = []
    policy = EVERYTHING
    importer = Importer(other.pool, other.store, other.spool, policy, inspect, WHO, told.append)
    with pytest.raises(OperationError, match="imported but for"):
        await importer.import_(bag)
    assert {line.partition(" stays out: ")[0] for line in told} >= {
        f"mxc://{SERVER}/{name}" for name in ("m0", "m1")
    }
    assert await read(other, "m6") == given["m6"]
    assert await other.pool.fetchval("SELECT count(*) FROM event") == len(events)
    assert (await states(other.pool))["m0"] == "pending"
    named = next(event for event in events if event["references"])
    named["references"][0] |= {"item": 2**40}
    forge(bag, "data/events.jsonl", _written(events))
    with pytest.raises(OperationError, match="no item of this number"):
        await importer.import_(bag)


@pytest.mark.parametrize(
    "text",
    [b"x" * (17 << 20) + b"\n", b"[" * 100_000 + b"\n", b"\xff\n", b"{}", b'{"a": "\\ud800"}\n'],
    ids=["huge", "deep", "no UTF-8", "no end", "half a character"],
)
async def test_a_line_that_is_none_is_a_sentence(
    text: bytes, ours: Parts, other: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """In both lists, whatever it is."""
    await fill(ours, homeserver, 4)
    bag = tmp_path / "bag"
    await export(ours, bag)
    for name in ("data/events.jsonl", "data/media.jsonl"):
        good = (bag / name).read_bytes()
        forge(bag, name, good + text)
        with pytest.raises(OperationError, match="cannot be imported"):
            await bring(other, bag)
        forge(bag, name, good)
