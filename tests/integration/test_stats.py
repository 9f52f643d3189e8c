"""`archiver stats`: what is kept, and what is missing, for people and for scripts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from archiver.capture.policy import CapturePolicy
from archiver.matrix.registration import new_registration
from tests.support.serving import POLICY, Archive, Reader, state


@pytest.fixture
def config(database_url: str, tmp_path: Path) -> Path:
    """A configuration of the archive that the test fills."""
    path = tmp_path / "config.yaml"
    homeserver = {"url": "http://127.0.0.1:1", "server_name": "archive.test"}
    storage = {"filesystem": {"path": str(tmp_path / "objects")}, "spool": str(tmp_path / "spool")}
    path.write_text(
        yaml.safe_dump(
            {"homeserver": homeserver, "database": {"url": database_url}, "storage": storage}
        ),
        "utf-8",
    )
    registration = new_registration("http://127.0.0.1:1", "archive.test")
    (tmp_path / "registration.yaml").write_text(yaml.safe_dump(registration), "utf-8")
    return path


async def stats(config: Path, *options: str) -> str:
    """What it prints, to a wide terminal."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "archiver", "stats", "-c", str(config), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
    )
    return done.stdout


def image(event_id: str, url: str = "mxc://archive.test/cat") -> dict[str, Any]:
    return {
        "event_id": event_id,
        "room_id": "!room:a",
        "sender": "@alice:archive.test",
        "type": "m.room.message",
        "content": {"msgtype": "m.image", "url": url},
    }


async def fill(archive: Archive, name: str = "The garden") -> None:
    """One media that failed, one that is left out, one that is kept."""
    kept = await archive.put(b"text", "text/plain")
    await archive.record(state("m.room.name", {"name": name}), image("$1"), image("$2", str(kept)))
    await archive.pool.execute(
        "UPDATE media SET state = 'failed', reason = 'it is gone: 404' WHERE media_id = 'cat'"
    )
    locals_only = CapturePolicy(POLICY.server_name, remote_media=False)
    await archive.record(image("$3", "mxc://far.example/x"), policy=locals_only)
    await archive.pool.execute("INSERT INTO room (room_id) VALUES ('!room:a')")


async def test_people_are_told_what_is_missing_and_why(archive: Archive, config: Path) -> None:
    """The coverage in all, reasons, history, and the rooms that lack most by their names."""
    await fill(archive)
    lines = [line.split() for line in (await stats(config)).splitlines()]
    for line in (
        "Coverage: 50.00 % of what was posted is here.",
        "failed 1 it is gone: 1",
        "excluded 1 capture.remote_media: 1",
        "unknown 1",
        "rooms still to be compared with history 1",
        "The garden 50.00 % 1 0 1 1",
    ):
        assert line.split() in lines


async def test_scripts_get_what_the_server_says(
    archive: Archive, reader: Reader, config: Path
) -> None:
    """The same figures as the running archive's own route."""
    await fill(archive)
    printed, served = json.loads(await stats(config, "--json")), await reader.json("/api/v1/stats")
    assert printed.pop("counted_at") <= served.pop("counted_at")
    assert printed == served


async def test_a_name_does_nothing_to_the_terminal(archive: Archive, config: Path) -> None:
    """Neither what a terminal obeys nor markup, and not without end."""
    await fill(archive, "\x1b[2J[red]x[/red]\u202e" + "y" * 200)
    printed = await stats(config)
    assert "\ufffd[2J[red]x[/red]\ufffdyyy" in printed
    assert "\x1b[2J" not in printed
    assert "y" * 41 not in printed


async def test_an_empty_archive_lacks_nothing(config: Path) -> None:
    """There was nothing to have; no room is listed."""
    printed = await stats(config)
    assert "100.00 %" in printed
    assert "Least complete" not in printed


async def age(archive: Archive, url: str, days: int) -> None:
    """As if a media had been archived so long ago."""
    await archive.pool.execute(
        "UPDATE media SET settled_at = now() - $2 * interval '1 day' WHERE media_id = $1",
        url.rpartition("/")[2],
        days,
    )
    await archive.pool.execute(
        "UPDATE blob SET created_at = now() - $2 * interval '1 day'"
        " WHERE sha256 = (SELECT blob_sha256 FROM media WHERE media_id = $1)",
        url.rpartition("/")[2],
        days,
    )


async def test_how_much_there_is(archive: Archive, reader: Reader) -> None:
    """Files, what sharing saves, the largest that may be seen, and how often any was read."""
    media = [await archive.put(b"x" * size) for size in (100, 100, 100, 500, 900)]
    *_, largest, hidden = media
    await archive.pool.execute(
        "UPDATE media SET state = 'quarantined' WHERE media_id = $1", hidden.media_id
    )
    await archive.pool.execute("UPDATE media SET access_count = 7")
    assert (await reader.json("/api/v1/stats"))["totals"] == {
        "files": 3,
        "bytes": 1500,
        "deduplicated_bytes": 200,
        "average_bytes": 500,
        "largest": {"mxc": str(largest), "bytes": 500},
        "accesses": 35,
    }


async def test_how_it_grows(archive: Archive, reader: Reader) -> None:
    """By month for a year, and ahead by the average of 90 days; what was long ago is none."""
    for size, days in ((9000, 800), (900, 100), (90, 0)):
        await age(archive, str(await archive.put(b"x" * size)), days)
    found = await reader.json("/api/v1/stats")
    months = [row["month"] for row in found["growth"]]
    assert (len(months), months) == (12, sorted(set(months)))
    assert (found["growth"][-1]["media"], found["growth"][-1]["bytes"]) == (1, 90)
    assert sum(row["bytes"] for row in found["growth"]) == 990
    assert sum(row["media"] for row in found["growth"]) == 2
    assert found["forecast"] == {
        "bytes_per_day": 1,
        "object_bytes_per_day": 0,
        "bytes_in_30_days": 9990 + 30,
        "bytes_in_90_days": 9990 + 90,
    }
    assert found["media"] == {"ready": 3}


async def test_a_young_archive_has_few_days(archive: Archive, reader: Reader) -> None:
    """Its average is of these alone."""
    await age(archive, str(await archive.put(b"x" * 1000)), 10)
    assert (await reader.json("/api/v1/stats"))["forecast"]["bytes_per_day"] == 100


async def test_when_the_disk_is_full(archive: Archive, config: Path) -> None:
    """Large files are on a disk of ours, and people are told how long it lasts, if they can live
    to see it."""
    mxc = await archive.put(b"x" * 100_000)
    assert "How much there is:" in await stats(config)
    await archive.pool.execute(
        "UPDATE blob SET place = 'object', size = 1000000000000000 WHERE sha256 ="
        " (SELECT blob_sha256 FROM media WHERE media_id = $1)",
        mxc.media_id,
    )
    printed = await stats(config)
    assert f"the disk of {config.parent / 'objects'} is full in" in printed


async def test_an_empty_archive_has_no_size(reader: Reader) -> None:
    """And none that it will have."""
    found = await reader.json("/api/v1/stats")
    assert found["totals"]["largest"] is None
    assert found["totals"]["average_bytes"] == 0
    assert set(found["forecast"].values()) == {0}
