"""A body on its way in is hashed, and rests in memory or in a file without a name."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from pathlib import Path

import pytest

from archiver.errors import StoreUnavailable
from archiver.store.spool import Spool

LIMIT = 100_000


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", LIMIT)


@pytest.mark.parametrize("expected", [None, 1, LIMIT + 1])
@pytest.mark.parametrize("size", [0, 1, LIMIT, LIMIT + 1, 3_000_001])
async def test_every_byte_comes_back(spool: Spool, size: int, expected: int | None) -> None:
    """A body is what was written, whatever its length and whatever was announced."""
    data = os.urandom(size)
    async with spool.body(expected) as body:
        for start in range(0, size, 65_537):
            await body.write(data[start : start + 65_537])
        assert await body.finish() == body.sha256 == hashlib.sha256(data).digest()
        assert body.size == size
        assert body.data == (data if size <= LIMIT else None)
        assert body.read_at(0, size + 1) == data
        assert body.read_at(size // 2, 10) == data[size // 2 :][:10]
        assert body.read_at(size, 10) == b""


async def test_bytes_that_trickle_in_take_little_more_than_themselves(spool: Spool) -> None:
    """An object for each would take forty times as much memory."""
    data = os.urandom(LIMIT)
    tracemalloc.start()
    try:
        async with spool.body() as body:
            for number in range(LIMIT):
                await body.write(data[number : number + 1])
            taken, _ = tracemalloc.get_traced_memory()
            assert await body.read_so_far(LIMIT - 3, 10) == data[-3:]
            assert await body.finish() == hashlib.sha256(data).digest()
            assert body.data == data
    finally:
        tracemalloc.stop()
    assert taken < 2 * LIMIT


async def test_a_small_body_has_no_file(spool: Spool, tmp_path: Path) -> None:
    """Up to the limit nothing touches the disk."""
    async with spool.body() as body:
        await body.write(b"x" * LIMIT)
        await body.finish()
        with pytest.raises(OSError, match="not in a file"):
            body.fileno()
    assert not (tmp_path / "spool").exists()


async def test_a_large_body_has_no_name(spool: Spool, tmp_path: Path) -> None:
    """A crash leaves no file behind, because there never is one to see."""
    async with spool.body() as body:
        await body.write(b"x" * (LIMIT + 1))
        assert list((tmp_path / "spool").iterdir()) == []
        await body.finish()
        assert os.fstat(body.fileno()).st_size == LIMIT + 1


async def test_the_file_is_closed_with_the_body(spool: Spool) -> None:
    """Leaving the context gives back the descriptor, and with it the disk space."""
    async with spool.body() as body:
        await body.write(b"x" * (LIMIT + 1))
        fd = body.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(OSError, match="not in a file"):
        body.read_at(0, 1)


async def test_a_spool_that_cannot_be_written_says_which(tmp_path: Path) -> None:
    """The error names the folder and the key of the configuration."""
    (tmp_path / "spool").write_bytes(b"")
    async with Spool(tmp_path / "spool", LIMIT).body() as body:
        with pytest.raises(StoreUnavailable, match=r"/spool: .*storage\.spool"):
            await body.write(b"x" * (LIMIT + 1))


@pytest.mark.parametrize("expected", [None, LIMIT + 1])
async def test_a_body_is_read_while_it_grows(spool: Spool, expected: int | None) -> None:
    """What was written can be read at once, in memory and on disk; nothing once it is closed."""
    data = os.urandom(2_500_000)
    async with spool.body(expected) as body:
        assert await body.read_so_far(0, 10) == b""
        for start in range(0, len(data), 100_000):
            await body.write(data[start : start + 100_000])
            for offset in (0, start // 2, start):
                read = await body.read_so_far(offset, 50_000)
                assert read
                assert read == data[offset:][: len(read)]
            assert await body.read_so_far(body.size, 1) == b""
        await body.finish()
        assert await body.read_so_far(1_000_000, 50_000) == data[1_000_000:][:50_000]
    assert await body.read_so_far(0, 10) == b""
