"""An archive that shows what it archives to a program."""

from __future__ import annotations

import os
import sys

import aiohttp

from demo.people import People
from tests.acceptance.conftest import Site, started
from tests.support.archiver import Archiver

PLAGUE = b"the harmless word that a test's scanner finds: plague"
SCANNER = """
import sys
if b"plague" in sys.stdin.buffer.read():
    print("Test.Plague")
    sys.exit(1)
"""


async def test_what_it_finds_is_hidden(
    site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """What was archived before there was a scanner, too."""
    alice, room = people.alice, people.room
    reader = await started(archive, http)
    posted = []
    for data in (PLAGUE, os.urandom(100)):
        posted.append(await alice.upload(data, "application/octet-stream", "file.bin"))
        content = {"msgtype": "m.file", "body": "file.bin", "url": posted[-1]}
        await alice.send(room, "m.room.message", content)
    await reader.until("ready", *posted)
    assert archive.stop() == 0
    command = [sys.executable, "-c", SCANNER]
    archive.configure(site.synapse.url, {"scan": {"with": "command", "command": command}})
    reader = await started(archive, http)
    await reader.until("quarantined", posted[0])
    assert (await reader.state(posted[0]))["blob"]["scan"]["reason"] == "Test.Plague"
    assert (await reader.state(posted[1]))["state"] == "ready"
