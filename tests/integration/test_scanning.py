"""Scanning: what is infected is hidden; a scanner's trouble hides nothing."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
from prometheus_client import REGISTRY

from archiver.catalogue import holds, infections, scans
from archiver.catalogue.targets import Target
from archiver.fetch.archive import Parts
from archiver.keep import scanning as scanning_module
from archiver.keep.quarantine import OURSELVES, quarantine, release
from archiver.scan.base import ScanFailed, ScannerAway
from archiver.serve.figures import Figures
from tests.support.fetching import INLINE_LIMIT, until
from tests.support.homeserver import Homeserver
from tests.support.keeping import (
    ADMIN,
    archive,
    blob_of,
    custody,
    file_of,
    media,
    read,
    states,
)
from tests.support.redacting import image, media_row, mxc, push
from tests.support.scanning import Oracle, scan_all, scan_of, scanning

if TYPE_CHECKING:
    from archiver.db.pool import Pool

SMALL = os.urandom(INLINE_LIMIT - 10) + b"plague"
LARGE = os.urandom(INLINE_LIMIT + 1) + b"plague"
GOOD = os.urandom(INLINE_LIMIT)
NAME = "Test.Plague"


@pytest.fixture
async def ours(ours: Parts, homeserver: Homeserver) -> Parts:
    """An archive with a small, a large and a good media."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"), image("$c", "hen"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE, hen=GOOD)
    return ours


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(plague=NAME)


async def test_infected_bytes_are_quarantined(ours: Parts, oracle: Oracle) -> None:
    """In both stores; what is clean stays, and custody tells by what it was found."""
    await scan_all(ours, oracle)
    assert await states(ours.pool) == {"cat": "quarantined", "dog": "quarantined", "hen": "ready"}
    assert sorted(map(len, oracle.shown)) == sorted(map(len, (SMALL, LARGE, GOOD)))
    row = await scan_of(ours.pool, "cat")
    assert (row["scan"], row["scan_reason"], row["scan_engine"]) == ("infected", NAME, "Oracle 1")
    assert row["scan_due"] is None
    assert (await scan_of(ours.pool, "hen"))["scan"] == "clean"
    reason = (await media_row(ours.pool, "dog"))["reason"]
    assert reason == f"quarantined by archiver: the scanner found {NAME}"
    name = f"sha256:{row['sha256'].hex()}"
    lines = [line for line in await custody(ours.pool) if line[3] == name]
    assert [line[:3] for line in lines] == [
        (*OURSELVES, "quarantine"), (*OURSELVES, "quarantine"), (*OURSELVES, "scan"),
    ]  # fmt: skip
    assert lines[-1][4] == {"found": f"infected: {NAME}", "engine": "Oracle 1"}
    assert await read(ours, "cat") == SMALL  # nothing is lost


async def test_the_same_bytes_are_refused_when_they_come_again(
    ours: Parts, homeserver: Homeserver, oracle: Oracle
) -> None:
    """Under another mxc, without being scanned again."""
    await scan_all(ours, oracle)
    await push(ours.pool, image("$d", "tom"))
    await archive(ours, homeserver, tom=SMALL)
    assert (await states(ours.pool))["tom"] == "quarantined"
    assert not await scanning(ours, oracle).work(oracle)


async def test_what_is_archived_later_is_scanned(
    ours: Parts, homeserver: Homeserver, oracle: Oracle
) -> None:
    """At once, and before what is older; without a scanner nothing is due."""
    work = scanning(ours, oracle)
    async with ours.pool.acquire() as conn:
        assert await infections.waiting(conn) == 0
    await work.switch()
    while await work.schedule():
        pass
    await push(ours.pool, image("$d", "tom"))
    await archive(ours, homeserver, tom=b"new")
    assert await work.work(oracle)
    assert oracle.shown == [b"new"]
    await scanning(ours, None).switch()
    await push(ours.pool, image("$e", "kim"))
    await archive(ours, homeserver, kim=b"newer")
    assert (await scan_of(ours.pool, "kim"))["scan_due"] is None
    await scan_all(ours, oracle)  # switched on again, it finds what came meanwhile
    assert (await scan_of(ours.pool, "kim"))["scan"] == "clean"
    assert len(oracle.shown) == 5


async def test_what_is_old_is_made_due_page_by_page(
    ours: Parts, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, once, and only while little else is due; thumbnails of ours are left out."""
    monkeypatch.setattr(scans, "AT_ONCE", 1)
    monkeypatch.setattr(scans, "ENOUGH", 2)
    await ours.pool.execute(
        "INSERT INTO blob (sha256, size, place) VALUES (sha256('thumbnail'), 1, 'inline')"
    )
    work = scanning(ours, oracle)
    await work.switch()
    rounds = 0
    while len(oracle.shown) < 3:
        while await work.schedule():
            pass
        due = await ours.pool.fetchval("SELECT count(*) FROM blob WHERE scan_due IS NOT NULL")
        assert 0 < due <= 2
        assert await work.work(oracle)
        rounds += 1
    assert rounds == 3
    while await work.schedule():
        pass
    assert not await work.work(oracle)
    assert await ours.pool.fetchval("SELECT reached IS NULL FROM scanning")
    await work.switch()
    assert not await work.schedule()


@pytest.mark.parametrize("trouble", [ScannerAway("away"), ScanFailed("no end")])
async def test_a_scanners_trouble_is_never_an_infection(
    ours: Parts, oracle: Oracle, trouble: Exception
) -> None:
    """It is not scanned, for a reason that is told, and looked at again, less and less often."""
    oracle.trouble = trouble
    work = scanning(ours, oracle)
    await work.switch()
    while await work.schedule():
        pass
    for _ in range(3):
        if isinstance(trouble, ScannerAway):
            with pytest.raises(ScannerAway):
                await work.work(oracle)
        else:
            assert await work.work(oracle)
    assert not await work.work(oracle)
    assert set((await states(ours.pool)).values()) == {"ready"}
    row = await scan_of(ours.pool, "cat")
    assert (row["scan"], row["scan_reason"]) == ("unscanned", str(trouble))
    assert 0 < row["due_in"] <= 60
    await ours.pool.execute("UPDATE blob SET scan_attempts = 30, scan_due = now()")
    oracle.trouble = ScanFailed("still no end")
    while await work.work(oracle):
        pass
    row = await scan_of(ours.pool, "cat")
    assert row["scan_reason"] == "still no end"
    assert 11 * 3600 < row["due_in"] <= 12 * 3600
    oracle.trouble = None
    await ours.pool.execute("UPDATE blob SET scan_due = now()")
    await scan_all(ours, oracle)
    assert (await states(ours.pool))["cat"] == "quarantined"
    assert await ours.pool.fetchval("SELECT count(*) FROM refused") == 2


async def test_trouble_does_not_unsay_what_was_found(ours: Parts, oracle: Oracle) -> None:
    """What was clean or infected is so until somebody has looked again."""
    await scan_all(ours, oracle)
    await ours.pool.execute("UPDATE blob SET scan_due = now()")
    oracle.trouble = ScanFailed("no end")
    while await scanning(ours, oracle).work(oracle):
        pass
    row = await scan_of(ours.pool, "cat")
    assert (row["scan"], row["scan_reason"]) == ("infected", NAME)
    assert (await scan_of(ours.pool, "hen"))["scan"] == "clean"


async def test_what_cannot_be_scanned_is_told_and_left(
    ours: Parts, homeserver: Homeserver, oracle: Oracle
) -> None:
    """What is too large for us or for the scanner, and what its sender encrypted."""
    event = image("$d", "tom")
    file = {"url": event["content"].pop("url"), "key": {}, "iv": "", "hashes": {}, "v": "v2"}
    event["content"]["file"] = file
    await push(ours.pool, event)
    await archive(ours, homeserver, tom=b"a ciphertext")
    await scan_all(ours, oracle, max_size=INLINE_LIMIT)
    told = {name: (await scan_of(ours.pool, name))["scan_reason"] for name in ("dog", "tom")}
    assert told == {
        "dog": "it is larger than 9.8 KiB (scan.max_size)",
        "tom": "it is encrypted, and only its readers have the key",
    }
    assert (await states(ours.pool)) == {
        "cat": "quarantined", "dog": "ready", "hen": "ready", "tom": "ready",
    }  # fmt: skip
    assert len(oracle.shown) == 3
    oracle.refuses = "too much for an oracle"
    await ours.pool.execute("UPDATE blob SET scan_due = now() WHERE place = 'object'")
    await scan_all(ours, oracle)
    row = await scan_of(ours.pool, "dog")
    assert (row["scan"], row["scan_reason"]) == ("unscanned", "too much for an oracle")
    assert row["scan_due"] is None


async def test_who_says_that_it_is_encrypted_hides_nothing_from_the_scanner(
    ours: Parts, homeserver: Homeserver, oracle: Oracle
) -> None:
    """It could be posted in the clear later, when its bytes are known and not scanned anew."""
    event = image("$d", "tom")
    file = {"url": event["content"].pop("url"), "key": {}, "iv": "", "hashes": {}, "v": "v2"}
    event["content"]["file"] = file
    await push(ours.pool, event)
    await archive(ours, homeserver, tom=b"plague in the clear")
    await scan_all(ours, oracle)
    assert (await scan_of(ours.pool, "tom"))["scan"] == "infected"
    assert (await states(ours.pool))["tom"] == "quarantined"


async def test_who_claimed_it_before_others_says_nothing(ours: Parts, oracle: Oracle) -> None:
    """It was made due again meanwhile, as after new signatures, and is somebody else's by now."""
    work = scanning(ours, oracle)
    await work.switch()
    while await work.schedule():
        pass
    async with ours.pool.acquire() as conn:
        old = await scans.claim(conn, timedelta(hours=1))
        assert old is not None
        await ours.pool.execute(
            "UPDATE blob SET scan_due = NULL WHERE sha256 <> $1", old.blob.sha256
        )
        names = [mxc(name) for name in ("cat", "dog", "hen")]
        assert await scans.again(conn, names) == 3
        await ours.pool.execute(
            "UPDATE blob SET scan_due = NULL WHERE sha256 <> $1", old.blob.sha256
        )
        new = await scans.claim(conn, timedelta(hours=1))
        assert new is not None
        assert new.blob == old.blob
        assert not await scans.settle(conn, old, scans.Found("clean", None, "Oracle 1"))
        await scans.put_off(conn, old, timedelta(), "no end")
        await scans.give_back(conn, old)
        assert await scans.settle(conn, new, scans.Found("clean", None, "Oracle 2"))


async def test_switching_on_holds_up_nobody_for_long(ours: Parts, oracle: Oracle) -> None:
    """Who inserts a blob would wait behind us as long as we wait for who was there before."""
    work = scanning(ours, oracle)
    async with ours.pool.acquire() as conn, conn.transaction():
        await conn.execute("UPDATE blob SET verified_at = now()")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await work.switch()
    await work.switch()
    assert await ours.pool.fetchval("SELECT count(*) FROM scanning") == 1


async def test_an_error_of_the_database_ends_nothing(
    ours: Parts, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when scanning begins nor when older media is scheduled: it is tried again."""
    monkeypatch.setattr(scanning_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(scanning_module, "AWAY_SECONDS", 0.05)
    await ours.pool.execute("ALTER TABLE scanning RENAME TO away")
    running = asyncio.create_task(scanning(ours, oracle).run())
    done, _ = await asyncio.wait([running], timeout=0.3)
    assert not done
    await ours.pool.execute("ALTER TABLE away RENAME TO scanning")
    await until(lambda: _is_scanned(ours.pool), "all is scanned")
    await ours.pool.execute("ALTER TABLE scanning RENAME TO away")
    done, _ = await asyncio.wait([running], timeout=0.3)
    assert not done
    running.cancel()
    await asyncio.wait([running])


async def _is_scanned(pool: Pool) -> bool:
    return bool(await pool.fetchval("SELECT count(scan) = 3 FROM blob"))


async def test_ciphertext_that_somebody_posted_in_the_clear_is_scanned(
    ours: Parts, homeserver: Homeserver, oracle: Oracle
) -> None:
    """Then it may be read by everybody, too."""
    event = image("$d", "tom")
    file = {"url": event["content"].pop("url"), "key": {}, "iv": "", "hashes": {}, "v": "v2"}
    event["content"]["file"] = file
    await push(ours.pool, event, image("$e", "tim"))
    await archive(ours, homeserver, tom=b"plague", tim=b"plague")
    await scan_all(ours, oracle)
    assert (await scan_of(ours.pool, "tom"))["scan"] == "infected"


async def test_a_hold_keeps_what_is_infected_but_does_not_show_it(
    ours: Parts, oracle: Oracle
) -> None:
    """The bytes stay."""
    async with ours.pool.acquire() as conn:
        await holds.place(conn, str(mxc("cat")), "evidence", ADMIN.actor)
    await scan_all(ours, oracle)
    assert (await states(ours.pool))["cat"] == "quarantined"
    assert await read(ours, "cat") == SMALL


async def test_a_crash_before_it_is_said_repeats_it(ours: Parts, oracle: Oracle) -> None:
    """What was refused by then is quarantined all the same, and told once."""
    work = scanning(ours, oracle)
    await work.switch()
    while await work.schedule():
        pass
    async with ours.pool.acquire() as conn:
        for _ in range(3):
            claimed = await scans.claim(conn, timedelta(hours=1))
            assert claimed is not None
            if claimed.blob.size == len(SMALL):
                await work._quarantine(claimed, NAME)
    assert not await work.work(oracle)
    await ours.pool.execute("UPDATE blob SET scan_due = now()")  # the lease runs out
    await scan_all(ours, oracle)
    assert (await scan_of(ours.pool, "cat"))["scan"] == "infected"
    assert (await states(ours.pool))["cat"] == "quarantined"
    said = [line for line in await custody(ours.pool) if line[2] == "scan"]
    assert len(said) == 2


async def test_what_somebody_released_is_not_hidden_again(ours: Parts, oracle: Oracle) -> None:
    """By the signature that it was released in spite of; by another one it is."""
    await scan_all(ours, oracle)
    sha256 = (await scan_of(ours.pool, "cat"))["sha256"]
    of = Target("hash", f"sha256:{sha256.hex()}")
    async for _ in release(ours.pool, of, ADMIN):
        pass
    assert (await states(ours.pool))["cat"] == "ready"
    await ours.pool.execute("UPDATE blob SET scan_due = now()")
    await scan_all(ours, oracle)
    assert (await states(ours.pool))["cat"] == "ready"
    assert len(oracle.shown) == 6
    oracle.found = {b"plague": "Other.Name"}
    await ours.pool.execute("UPDATE blob SET scan_due = now()")
    await scan_all(ours, oracle)
    assert (await states(ours.pool))["cat"] == "quarantined"


async def test_what_is_clean_after_all_stays_hidden_until_somebody_shows_it(
    ours: Parts, oracle: Oracle
) -> None:
    """Custody tells of the change; media that was in quarantine before keeps its reason."""
    async for _ in quarantine(ours.pool, media("dog"), "mine", ADMIN):
        pass
    await scan_all(ours, oracle)
    assert (await media_row(ours.pool, "dog"))["reason"] == f"quarantined by {ADMIN.actor}: mine"
    oracle.found = {}
    async with ours.pool.acquire() as conn:
        assert await scans.all_again(conn)
    await scan_all(ours, oracle)
    assert (await scan_of(ours.pool, "cat"))["scan"] == "clean"
    assert (await states(ours.pool))["cat"] == "quarantined"
    assert [line[4]["found"] for line in await custody(ours.pool) if line[2] == "scan"] == [
        f"infected: {NAME}", f"infected: {NAME}", "clean", "clean",
    ]  # fmt: skip


async def test_bytes_that_are_gone_are_not_scanned(
    ours: Parts, oracle: Oracle, tmp_path: Path
) -> None:
    """Verification tells of them; scanning goes on with the others, and tries again."""
    file_of(tmp_path, (await blob_of(ours.pool, "dog")).sha256).unlink()
    await scan_all(ours, oracle)
    row = await scan_of(ours.pool, "dog")
    assert row["scan"] == "unscanned"
    assert row["due_in"] > 0
    assert (await scan_of(ours.pool, "cat"))["scan"] == "infected"


async def test_several_share_the_work(ours: Parts, oracle: Oracle) -> None:
    """Nothing is shown twice, nothing deleted meanwhile is brought back."""
    work = scanning(ours, oracle)
    await work.switch()
    while await work.schedule():
        pass
    async with ours.pool.acquire() as conn:
        claimed = await scans.claim(conn, timedelta(hours=1))
    assert claimed is not None
    done = await asyncio.gather(*(work.work(oracle) for _ in range(4)))
    assert sorted(done) == [False, False, True, True]
    await ours.pool.execute("UPDATE media SET state = 'deleted', blob_sha256 = NULL")
    await ours.pool.execute("DELETE FROM blob")
    verdict = scans.Found("clean", None, "Oracle 1")
    async with ours.pool.acquire() as conn:
        assert not await scans.settle(conn, claimed, verdict)


async def test_it_runs_by_itself_and_is_counted(
    ours: Parts, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was archived is looked at; a scanner that was away is asked again."""
    monkeypatch.setattr(scanning_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(scanning_module, "AWAY_SECONDS", 0.05)

    def counted(outcome: str) -> float:
        labels = {"outcome": outcome}
        return REGISTRY.get_sample_value("archiver_scanned_total", labels) or 0

    before = {outcome: counted(outcome) for outcome in ("clean", "infected", "unscanned")}
    oracle.trouble = ScannerAway("away")
    running = asyncio.create_task(scanning(ours, oracle).run())

    async def is_away() -> bool:
        return counted("unscanned") - before["unscanned"] == 3

    async def is_done() -> bool:
        return counted("infected") - before["infected"] == 2

    await until(is_away, "every file was tried once")
    await Figures(ours.pool).count()
    assert REGISTRY.get_sample_value("archiver_scan_waiting_blobs") == 3
    oracle.trouble = None
    await ours.pool.execute("UPDATE blob SET scan_due = now()")
    await until(is_done, "all is scanned")
    running.cancel()
    await asyncio.wait([running])
    assert counted("clean") - before["clean"] <= 1
    await asyncio.wait_for(scanning(ours, None).run(), 30)
    assert await ours.pool.fetchval("SELECT count(*) FROM scanning") == 0


async def test_claiming_reads_an_index(pool: Pool) -> None:
    """However large the archive is, and nothing of it where nobody scans."""
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SET LOCAL enable_seqscan = off")
        rows = await conn.fetch(f"EXPLAIN {scans.CLAIM}", timedelta(hours=1))
        assert any("blob_scan_due" in row[0] for row in rows), rows
        rows = await conn.fetch(f"EXPLAIN {infections.WAITING}")
        assert any("blob_scan_due" in row[0] for row in rows), rows
