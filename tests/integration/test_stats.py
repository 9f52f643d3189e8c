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
    assert json.loads(await stats(config, "--json")) == await reader.json("/api/v1/stats")


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
