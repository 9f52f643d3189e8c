"""A real clamd: what it finds is quarantined, and while it is away nothing is called infected."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from archiver.fetch.archive import Parts
from archiver.scan.base import Outcome, ScannerAway
from archiver.scan.clamd import Clamd as Scanner
from tests.support.clamd import FOUND, INFECTION, Clamd
from tests.support.fetching import INLINE_LIMIT
from tests.support.homeserver import Homeserver
from tests.support.keeping import archive, read, states
from tests.support.redacting import image, media_row, push
from tests.support.scanning import MIB, MINUTE, scan_all, scan_of, scanning
from tools.setup_services import service_program

SMALL = os.urandom(1_000) + INFECTION
LARGE = os.urandom(INLINE_LIMIT) + INFECTION + os.urandom(600_000)
GOOD = os.urandom(2_000)
STREAM_MAX = MIB


@pytest.fixture
def clamd(services_folder: Path, tmp_path: Path) -> Iterator[Clamd]:
    """Up, and this test's own."""
    # A socket's path must be short.
    server = Clamd(
        service_program("clamd"), services_folder / f"clamd-{os.urandom(4).hex()}",
        stream_max=STREAM_MAX,
    )  # fmt: skip
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def ours(ours: Parts, homeserver: Homeserver) -> Parts:
    """An archive with a small and a large file that are infected, and a good one."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"), image("$c", "hen"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE, hen=GOOD)
    return ours


async def chunks(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 100_000):
        yield bytes(min(100_000, size - start))


async def test_what_is_infected_is_quarantined_and_refused(
    ours: Parts, homeserver: Homeserver, clamd: Clamd
) -> None:
    """In either store, and when the same bytes come again under another mxc."""
    await scan_all(ours, Scanner(clamd.address, MINUTE))
    assert await states(ours.pool) == {"cat": "quarantined", "dog": "quarantined", "hen": "ready"}
    row = await scan_of(ours.pool, "dog")
    assert (row["scan"], row["scan_reason"]) == ("infected", FOUND)
    assert row["scan_engine"].startswith("ClamAV ")
    reason = (await media_row(ours.pool, "cat"))["reason"]
    assert reason == f"quarantined by archiver: the scanner found {FOUND}"
    await push(ours.pool, image("$d", "tom"))
    await archive(ours, homeserver, tom=SMALL)
    assert (await states(ours.pool))["tom"] == "quarantined"
    assert (await scan_of(ours.pool, "hen"))["scan"] == "clean"


async def test_while_clamd_is_away_nothing_is_infected(
    ours: Parts, homeserver: Homeserver, clamd: Clamd
) -> None:
    """What comes is archived and read as ever, and scanned when clamd is back."""
    scanner = Scanner(clamd.address, MINUTE)
    work = scanning(ours, scanner)
    await asyncio.to_thread(clamd.stop)
    await work.switch()
    while await work.schedule():
        pass
    for _ in range(3):
        with pytest.raises(ScannerAway, match="that clamd runs"):
            await work.work(scanner)
    assert not await work.work(scanner)
    await push(ours.pool, image("$d", "tom"))
    await archive(ours, homeserver, tom=INFECTION)
    assert set((await states(ours.pool)).values()) == {"ready"}
    assert await read(ours, "tom") == INFECTION
    outcomes = {name: (await scan_of(ours.pool, name))["scan"] for name in ("cat", "dog", "hen")}
    assert set(outcomes.values()) == {"unscanned"}
    await asyncio.to_thread(clamd.start)
    await ours.pool.execute("UPDATE blob SET scan_due = now()")  # its time comes
    await scan_all(ours, scanner)
    assert await states(ours.pool) == {
        "cat": "quarantined", "dog": "quarantined", "hen": "ready", "tom": "quarantined",
    }  # fmt: skip


async def test_clamd_that_is_killed_is_no_infection(ours: Parts, clamd: Clamd) -> None:
    """Whatever it was doing; several scans may be under way at once."""
    scanner = Scanner(clamd.socket, MINUTE)
    found = await asyncio.gather(*(scanner.scan(chunks(100_000)) for _ in range(5)))
    assert {verdict.outcome for verdict in found} == {Outcome.CLEAN}
    await asyncio.to_thread(clamd.kill)
    with pytest.raises(ScannerAway):
        await scanner.scan(chunks(100_000))
    assert set((await states(ours.pool)).values()) == {"ready"}


@pytest.mark.parametrize("over", [1, 20 * MIB])
async def test_what_is_too_large_for_clamd_is_not_scanned(clamd: Clamd, over: int) -> None:
    """It says so before it has read all of that, and closes the connection."""
    scanner = Scanner(clamd.address, MINUTE)
    assert (await scanner.scan(chunks(STREAM_MAX))).outcome is Outcome.CLEAN
    verdict = await scanner.scan(chunks(STREAM_MAX + over))
    assert verdict.outcome is Outcome.UNSCANNED
    assert "StreamMaxLength" in str(verdict.reason)
