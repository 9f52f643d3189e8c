"""`archiver doctor`, where no server is needed for what it says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from archiver.matrix.registration import new_registration


@pytest.fixture
def config(database_url: str, tmp_path: Path) -> Path:
    """Objects were kept in a folder until now; the bucket does not answer."""
    settings = {
        "homeserver": {"url": "http://127.0.0.1:1", "server_name": "archive.test"},
        "database": {"url": database_url},
        "storage": {
            "objects": "s3",
            "move_from": "filesystem",
            "s3": {"endpoint_url": "http://127.0.0.1:1", "access_key_id": "a",
                   "secret_access_key": "b"},
            "filesystem": {"path": str(tmp_path / "objects")},
            "spool": str(tmp_path / "spool"),
        },
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings), "utf-8")
    registration = new_registration("http://127.0.0.1:1", "archive.test")
    (tmp_path / "registration.yaml").write_text(yaml.safe_dump(registration), "utf-8")
    return path


async def findings(config: Path) -> dict[str, dict[str, Any]]:
    """What it says of each thing."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "archiver", "doctor", "-c", str(config), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout, done.stderr
    return {finding["check"]: finding for finding in json.loads(done.stdout)}


async def test_the_store_that_is_moved_from_is_looked_at(config: Path) -> None:
    """As long as it is named: that it is there, or what cannot be read without it. It is never
    made anew, lest it look well and be empty."""
    folder = config.parent / "objects"
    found = (await findings(config))["former store"]
    assert not found["ok"]
    assert str(folder) in found["said"]
    assert "what `storage move` has not moved yet cannot be read" in found["said"].lower()
    assert not folder.exists()
    (folder / "tmp").mkdir(parents=True)
    found = (await findings(config))["former store"]
    assert found["ok"]


async def test_without_a_move_there_is_no_former_store(config: Path) -> None:
    """Nothing is said of it."""
    settings = yaml.safe_load(config.read_text("utf-8"))
    del settings["storage"]["move_from"]
    config.write_text(yaml.safe_dump(settings), "utf-8")
    assert "former store" not in await findings(config)
