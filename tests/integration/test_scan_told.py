"""What is told of scanning: in commands, in the control room, over the API and by the doctor."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import yaml

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import infections, notices
from archiver.config import parse_config
from archiver.control.asked import Asked, Means
from archiver.control.commands.scanning import scan
from archiver.control.commands.showing import show
from archiver.control.notices import Notices
from archiver.control.reply import Reply, plain
from archiver.control.watching.conditions import Surroundings
from archiver.errors import ConfigError, OperationError
from archiver.fetch.archive import Parts
from archiver.matrix.answering import answers
from archiver.matrix.history import History
from archiver.matrix.registration import Registration, new_registration
from archiver.matrix.speech import Speech
from archiver.scan.clamd import Clamd
from tests.integration.test_notices import (
    AT_ONCE,
    REGISTRATION,
    ROOM,
    Stage,
)
from tests.support.homeserver import BOT, SERVER_NAME, TOKEN, Homeserver
from tests.support.keeping import ADMIN, archive, custody
from tests.support.process import LOOPBACK, free_port
from tests.support.redacting import ALICE, image, mxc, push
from tests.support.scanning import MINUTE, Oracle, scan_all, scan_of, scripted
from tests.support.serving import Archive, Reader

if TYPE_CHECKING:
    from archiver.db.pool import Pool

CAT = str(mxc("cat"))


@pytest.fixture
async def ours(ours: Parts, homeserver: Homeserver) -> Parts:
    await push(ours.pool, image("$a", "cat"), image("$b", "hen"))
    await archive(ours, homeserver, cat=b"plague", hen=b"good")
    return ours


@pytest.fixture
async def stage(pool: Pool, http: aiohttp.ClientSession, tmp_path: Path) -> AsyncIterator[Stage]:
    """A control room, and all that is watched is well."""
    stage = Stage(pool, http, tmp_path)
    await stage.store.open()
    await stage.homeserver.start()
    yield stage
    await stage.homeserver.stop()


class Desk:
    """An administrator in the control room, where there is the scanner of these rules."""

    def __init__(
        self, ours: Parts, http: aiohttp.ClientSession, folder: Path, **scan: Any
    ) -> None:
        homeserver = {"url": "http://127.0.0.1:1", "server_name": SERVER_NAME}
        config = parse_config({"homeserver": homeserver, "scan": scan}, folder)
        history = History(http, "http://127.0.0.1:1", TOKEN, BOT)
        speech = Speech(http, "http://127.0.0.1:1", Registration("a", TOKEN, "hs", BOT, BOT))
        policy = CapturePolicy(SERVER_NAME)
        self.means = Means(config, ours.pool, ours.store, history, speech, policy)

    async def give(self, *words: str) -> Reply:
        """Has media scanned again, or asks how it stands."""
        asked = Asked(self.means, *ADMIN, self._nothing, self._nothing, self._nothing)
        return await scan.run(asked, **scan.parse(words))

    async def shown(self) -> str:
        """What is known of the cat."""
        asked = Asked(self.means, *ADMIN, self._nothing, self._nothing, self._nothing)
        return plain(await show.run(asked, **show.parse([CAT])))

    async def _nothing(self, _what: object) -> None:
        pass


async def test_the_command_tells_how_scanning_stands(
    ours: Parts, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """How many files are what, why, and whether the scanner answers."""
    off = Desk(ours, http, tmp_path)
    told = plain(await off.give())
    assert "Nothing is scanned: `scan.with`" in told
    assert "0 files clean, 0 infected, 0 not scanned, 2 never looked at." in told
    await scan_all(ours, Oracle(plague="Test.Plague"))
    desk = Desk(ours, http, tmp_path, **{"with": "command", "command": [sys.executable]})
    reply = await desk.give()
    told = plain(reply)
    assert f"The scanner answers: {sys.executable}." in told
    assert "1 file clean, 1 infected, 0 not scanned, 0 never looked at." in told
    assert "• Test.Plague · infected · files 1" in told
    assert reply.data["infected"] == 1
    away = Desk(ours, http, tmp_path, **{"with": "clamd", "clamd": f"127.0.0.1:{free_port()}"})
    assert "nothing is called infected for that: clamd does not answer" in plain(await away.give())
    assert "infected: Test.Plague (Oracle 1)" in await desk.shown()


async def test_media_is_scanned_again(
    ours: Parts, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """One, somebody's, or all of it; custody tells who wanted that."""
    await scan_all(ours, oracle := Oracle())
    desk = Desk(ours, http, tmp_path, **{"with": "command", "command": ["scan"]})
    sha256 = (await scan_of(ours.pool, "cat"))["sha256"].hex()
    for target, files in ((CAT, 1), (f"sha256:{sha256}", 1), (ALICE, 2), ("$a", 1)):
        oracle.shown.clear()
        reply = await desk.give(target)
        are = "is" if files == 1 else "are"
        assert plain(reply).endswith(f"of {target} {are} scanned again.")
        assert reply.data == {"files": files}
        await scan_all(ours, oracle)
        assert len(oracle.shown) == files
    assert "Everything is scanned again" in plain(await desk.give("--all"))
    oracle.shown.clear()
    await scan_all(ours, oracle)
    assert sorted(oracle.shown) == [b"good", b"plague"]
    noted = [line for line in await custody(ours.pool) if line[2] == "scan again"]
    assert [line[3] for line in noted] == [CAT, f"sha256:{sha256}", ALICE, "$a", "all"]
    assert {line[:2] for line in noted} == {ADMIN}


async def test_what_cannot_be_scanned_again_is_said(
    ours: Parts, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Nothing to scan, nobody who scans, or both a target and all."""
    desk = Desk(ours, http, tmp_path, **{"with": "command", "command": ["scan"]})
    with pytest.raises(ConfigError, match="but not both"):
        await desk.give(CAT, "--all")
    with pytest.raises(OperationError, match="the archive has no bytes of"):
        await desk.give("mxc://remote.example/none")
    with pytest.raises(OperationError, match="no scanner is at work"):
        await desk.give("--all")
    off = Desk(ours, http, tmp_path)
    for words in ((CAT,), ("--all",)):
        with pytest.raises(OperationError, match=r"scan\.with"):
            await off.give(*words)
    assert await custody(ours.pool) == []


def watcher(stage: Stage, *kinds: str, scanner: Clamd | None = None) -> Notices:
    """A bot that watches the scanner too."""
    asked = partial(answers, stage.session, stage.url)
    version = scanner.version if scanner else None
    around = Surroundings(asked, stage.store.check, list, version)
    speech = Speech(stage.session, stage.url, REGISTRATION)
    return Notices(stage.pool, speech, lambda: ROOM, around, kinds, "!archive", pace=AT_ONCE)


async def test_the_control_room_hears_of_infections(stage: Stage, ours: Parts) -> None:
    """With the first few media and what they have, once."""
    await scan_all(ours, Oracle(plague="Test.Plague"))
    await watcher(stage, "trouble").look()
    assert stage.told == []
    for _ in range(2):
        await watcher(stage, "infected").look()
    [body] = stage.homeserver.bodies
    assert body.startswith("☣️ The scanner found 1 infected file in the archive, which is in")
    assert CAT in body
    assert "Test.Plague" in body
    await stage.pool.execute("UPDATE notice SET said_at = said_at - interval '1 day'")
    await ours.pool.execute("UPDATE blob SET scan_due = now()")
    await scan_all(ours, Oracle(plague="Test.Plague"))  # found again, which is no news
    await watcher(stage, "infected").look()
    assert len(stage.told) == 1


async def test_the_control_room_hears_of_a_scanner_that_is_away(stage: Stage) -> None:
    """And that it is back; where there is none, nothing is away."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\0")
        writer.write(b"ClamAV 1\0")

    gone = Clamd(f"{LOOPBACK}:{free_port()}", MINUTE)
    await watcher(stage, "scan").look()
    await watcher(stage, "trouble", scanner=gone).look()
    assert stage.told == []
    for _ in range(2):
        await watcher(stage, "scan", scanner=gone).look()
    [told] = stage.told
    assert told.startswith("⚠️ Nothing has been scanned since 20")
    assert "clamd does not answer at" in told
    async with scripted(talk) as address:
        for _ in range(2):
            await watcher(stage, "scan", scanner=Clamd(address, MINUTE)).look()
    [_, told] = stage.told
    assert told.startswith("✅ The scanner answers again.")


async def test_looking_for_infections_reads_an_index(pool: Pool) -> None:
    """However large the archive is."""
    async with pool.acquire() as conn, conn.transaction():
        await notices.watch(conn)
        await conn.execute("SET LOCAL enable_seqscan = off")
        zero = timedelta(0)
        rows = await conn.fetch(f"EXPLAIN {infections.NEXT}", zero, zero)
        assert any("blob_infected" in row[0] for row in rows), rows


async def test_the_api_tells_what_was_found(archive: Archive, reader: Reader) -> None:
    """Of a single media: nothing, as long as nobody has looked."""
    name = await archive.put(b"bytes")
    path = f"/api/v1/media/{name.server_name}/{name.media_id}"
    assert (await reader.json(path))["blob"]["scan"] is None
    await archive.pool.execute(
        "UPDATE blob SET scan = 'unscanned', scan_reason = 'too large',"
        " scanned_at = '2026-05-31 12:00:00Z'"
    )
    described = await reader.json(path)
    assert described["blob"]["scan"] == {
        "outcome": "unscanned", "at": "2026-05-31T12:00:00+00:00", "reason": "too large",
    }  # fmt: skip
    assert not {"scan", "scanned_at", "scan_reason"} & described.keys()


async def test_the_doctor_asks_the_scanner(database_url: str, tmp_path: Path) -> None:
    """Whether it answers, and as what; or what to do. Without one it says nothing."""
    registration = new_registration("http://127.0.0.1:1", SERVER_NAME)
    (tmp_path / "registration.yaml").write_text(yaml.safe_dump(registration), "utf-8")
    path = tmp_path / "config.yaml"

    async def found(**scan: Any) -> dict[str, Any] | None:
        settings = {
            "homeserver": {"url": "http://127.0.0.1:1", "server_name": SERVER_NAME},
            "database": {"url": database_url},
            "scan": scan,
        }
        path.write_text(yaml.safe_dump(settings), "utf-8")
        command = [sys.executable, "-m", "archiver", "doctor", "-c", str(path), "--json"]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, timeout=120, check=False
        )
        checks = {one["check"]: one for one in json.loads(done.stdout)}
        return checks.get("scanner")

    assert await found() is None
    well = await found(**{"with": "command", "command": [sys.executable]})
    assert well
    assert (well["ok"], well["said"]) == (True, sys.executable)
    ill = await found(**{"with": "clamd", "clamd": str(tmp_path / "none.ctl")})
    assert ill
    assert not ill["ok"]
    assert "check scan.clamd, and that clamd runs" in ill["said"]
