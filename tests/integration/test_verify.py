"""Verification: bytes are what their names say, or somebody hears of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from archiver.catalogue import verification
from archiver.catalogue.targets import LONG_AGO
from archiver.catalogue.verification import AT_ONCE, NEVER, OLDEST
from archiver.errors import StoreUnavailable
from archiver.fetch.archive import Parts
from archiver.keep import verify
from archiver.keep.verify import Checked, Finding, Verdict, Verifier
from tests.support.fetching import INLINE_LIMIT
from tests.support.homeserver import Homeserver
from tests.support.keeping import ADMIN, archive, blob_of, custody, file_of, media, states
from tests.support.redacting import image, mxc, push

if TYPE_CHECKING:
    from archiver.db.pool import Pool

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)


@pytest.fixture
async def ours(ours: Parts, homeserver: Homeserver) -> Parts:
    """An archive with a small and a large media."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    return ours


async def everything(ours: Parts) -> Checked:
    """Verifies all, and sums up."""
    total = Checked(0, 0, [], 0)
    async for one in Verifier(ours.pool, ours.store, ADMIN).everything():
        findings = [*total.findings, *one.findings]
        blobs, size, mended = total.blobs, total.size, total.mended
        total = Checked(blobs + one.blobs, size + one.size, findings, mended + one.mended)
    return total


async def rows(pool: Pool) -> dict[str, tuple[bool, bool]]:
    """Of each media: whether its blob was verified, and whether it is damaged."""
    found = await pool.fetch(
        "SELECT media_id, verified_at IS NOT NULL, damaged_at IS NOT NULL"
        " FROM media JOIN blob ON sha256 = blob_sha256"
    )
    return {row[0]: (row[1], row[2]) for row in found}


async def test_all_is_right(ours: Parts) -> None:
    """Wherever it is, and whenever it is asked again; custody hears of what is wrong alone."""
    size = len(SMALL) + len(LARGE)
    for _ in range(2):
        assert await everything(ours) == Checked(2, size, [], 0)
        assert await rows(ours.pool) == {"cat": (True, False), "dog": (True, False)}
    assert await custody(ours.pool) == []


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "verdict"),
    [(flip, Verdict.DIFFERENT), (cut, Verdict.DIFFERENT), (Path.unlink, Verdict.MISSING)],
)
async def test_a_damaged_object_is_found_until_it_is_mended(
    ours: Parts, tmp_path: Path, harm: Callable[[Path], None], verdict: Verdict
) -> None:
    """Once for custody, every time for who asks."""
    blob = await blob_of(ours.pool, "dog")
    file = file_of(tmp_path, blob.sha256)
    harm(file)
    found = [Finding(blob.sha256, verdict, [mxc("dog")])]
    for _ in range(2):
        assert (await everything(ours)).findings == found
        assert (await rows(ours.pool))["dog"] == (False, True)
    since = await ours.pool.fetchval("SELECT damaged_at FROM blob WHERE damaged_at IS NOT NULL")
    async with ours.pool.acquire() as conn:
        [known] = await verification.known_damaged(conn, 10)
        assert (known.sha256, known.reason) == (blob.sha256, None)
        assert (await verification.standing(conn)).damaged == 1
    assert since
    file.write_bytes(LARGE)
    done = await everything(ours)
    assert (done.findings, done.mended) == ([], 1)
    assert (await rows(ours.pool))["dog"] == (True, False)
    told = {"found": str(verdict), "media": [str(mxc("dog"))]}
    assert await custody(ours.pool) == [
        (*ADMIN, "verify", blob.sha256.hex(), told),
        (*ADMIN, "verify", blob.sha256.hex(), {"found": "right again"}),
    ]


@pytest.mark.parametrize(
    ("harm", "verdict"),
    [
        ("UPDATE blob_data SET data = set_byte(data, 7, get_byte(data, 7) # 1)", "different"),
        ("UPDATE blob_data SET data = ''", "different"),
        ("DELETE FROM blob_data", "missing"),
    ],
)
async def test_damaged_inline_bytes_are_found(ours: Parts, harm: str, verdict: str) -> None:
    """A row of the database is trusted no more than a file."""
    await ours.pool.execute(harm)
    blob = await blob_of(ours.pool, "cat")
    found = [Finding(blob.sha256, Verdict(verdict), [mxc("cat")])]
    assert (await everything(ours)).findings == found
    assert await rows(ours.pool) == {"cat": (False, True), "dog": (True, False)}


async def test_a_store_that_is_away_damages_nothing(ours: Parts, tmp_path: Path) -> None:
    """Not even what it was asked for first."""
    (tmp_path / "objects").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable):
        await everything(ours)
    assert (await rows(ours.pool))["dog"] == (False, False)
    (tmp_path / "elsewhere").rename(tmp_path / "objects")
    assert (await everything(ours)).findings == []


async def test_one_file_that_cannot_be_read_is_told_and_passed_over(
    ours: Parts, tmp_path: Path
) -> None:
    """While its store works it is that file's own trouble, and may yet be right."""
    blob = await blob_of(ours.pool, "dog")
    file = file_of(tmp_path, blob.sha256)
    file.unlink()
    file.mkdir()
    done = await everything(ours)
    assert done.findings == [Finding(blob.sha256, Verdict.UNREADABLE, [mxc("dog")])]
    assert await rows(ours.pool) == {"cat": (True, False), "dog": (False, False)}


async def test_a_blob_that_was_deleted_meanwhile_is_not_missed(
    ours: Parts, tmp_path: Path
) -> None:
    """Its bytes went with its row."""
    blob = await blob_of(ours.pool, "dog")
    await ours.pool.execute("UPDATE media SET state = 'deleted', blob_sha256 = NULL")
    await ours.pool.execute("DELETE FROM blob WHERE sha256 = $1", blob.sha256)
    file_of(tmp_path, blob.sha256).unlink()
    checked = await Verifier(ours.pool, ours.store, ADMIN).check([blob])
    assert checked == Checked(1, blob.size, [], 0)


async def test_a_damaged_thumbnail_names_the_media_that_it_shows(ours: Parts) -> None:
    """Nobody knows a thumbnail by its own name."""
    made, of = await blob_of(ours.pool, "cat"), await blob_of(ours.pool, "dog")
    await ours.pool.execute(
        "INSERT INTO variant VALUES ($1, 'r', $2, 1, 1)", of.sha256, made.sha256
    )
    await ours.pool.execute("DELETE FROM blob_data")
    [found] = (await everything(ours)).findings
    assert found == Finding(made.sha256, Verdict.MISSING, [mxc("cat"), mxc("dog")])


async def test_never_verified_comes_first_then_the_longest_ago(ours: Parts) -> None:
    """And nothing twice, though every blob that is right moves to the end."""
    digests = [hashlib.sha256(str(n).encode()).digest() for n in range(2 * AT_ONCE + 50)]
    await ours.pool.execute(
        "INSERT INTO blob (sha256, size, place, verified_at) SELECT sha256, 0, 'inline',"
        " CASE WHEN n > 30 THEN now() - (n / 2) * interval '1 hour' END"
        " FROM unnest($1::bytea[]) WITH ORDINALITY AS named(sha256, n)",
        digests,
    )
    before = {
        row["sha256"]: row["verified_at"] or LONG_AGO
        for row in await ours.pool.fetch("SELECT sha256, verified_at FROM blob")
    }
    seen = []
    async for page in verification.pages(ours.pool):
        seen += [blob.sha256 for blob in page]
        async with ours.pool.acquire() as conn:
            await verification.right(conn, seen[-len(page) :: 2])
    assert seen == sorted(before, key=lambda sha256: (before[sha256], sha256))


async def test_a_large_file_is_hashed_in_pieces(
    ours: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of them a cancel is heard; the hash is that of the whole."""
    monkeypatch.setattr(verify, "PIECE", 3000)
    monkeypatch.setattr(verify, "BUFFER", 1000)
    assert (await everything(ours)).findings == []


async def test_several_may_verify_at_once(ours: Parts) -> None:
    """Each says the same."""
    done = await asyncio.gather(*(everything(ours) for _ in range(4)))
    assert {len(one.findings) for one in done} == {0}
    assert await rows(ours.pool) == {"cat": (True, False), "dog": (True, False)}


@pytest.mark.parametrize("statement", [NEVER, OLDEST])
async def test_a_page_is_found_along_the_index(pool: Pool, statement: str) -> None:
    """Millions of blobs are gone through in little memory."""
    await pool.execute(
        "INSERT INTO blob (sha256, size, place, verified_at) SELECT sha256(n::text::bytea), 0,"
        " 'object', CASE WHEN n % 2 = 0 THEN now() - n * interval '1 s' END"
        " FROM generate_series(1, 20000) AS n"
    )
    await pool.execute("ANALYZE")
    now = datetime.now(UTC)
    given: list[Any] = [b"", 10] if statement is NEVER else [now - timedelta(days=1), b"", now, 10]
    plan = orjson.loads(await pool.fetchval("EXPLAIN (FORMAT JSON) " + statement, *given))
    text = orjson.dumps(plan).decode()
    assert "blob_verified" in text
    assert "Sort" not in text


async def test_of_which_state(ours: Parts) -> None:
    """A media's blob, as far as it has one."""
    await push(ours.pool, image("$c", "cow"))
    assert await states(ours.pool) == {"cat": "ready", "dog": "ready", "cow": "pending"}
    async with ours.pool.acquire() as conn:
        assert await verification.blob_of(conn, media("cow").mxc) == ("pending", None)
        assert await verification.blob_of(conn, media("pig").mxc) == (None, None)
        state, blob = await verification.blob_of(conn, media("dog").mxc)
    assert (state, blob) == ("ready", await blob_of(ours.pool, "dog"))
