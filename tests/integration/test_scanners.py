"""Scanners: three outcomes, and whatever goes wrong is none of them."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from archiver.config.scan import Scan
from archiver.errors import BlobMissing
from archiver.scan.base import LONGEST, Outcome, ScanFailed, ScannerAway, Verdict
from archiver.scan.clamd import Clamd
from archiver.scan.command import Command
from archiver.scan.opening import scanner
from tests.support.fetching import until
from tests.support.process import LOOPBACK, free_port
from tests.support.scanning import MINUTE, received, scripted

SOON = timedelta(seconds=0.2)


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(64 * 1024)


async def lost() -> AsyncIterator[bytes]:
    yield b"one"
    raise BlobMissing("the rest is gone")


# clamd


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"stream: OK\0", Verdict(Outcome.CLEAN)),
        (b"stream: Some.Virus-1 FOUND\0", Verdict(Outcome.INFECTED, "Some.Virus-1")),
        (b"stream: Odd \x1b[1m\xff FOUND\0", Verdict(Outcome.INFECTED, "Odd \ufffd[1m\ufffd")),
        (
            b"stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND\0",
            Verdict(
                Outcome.UNSCANNED,
                "clamd did not look at all of it: Heuristics.Limits.Exceeded.MaxFileSize",
            ),
        ),
        (
            b"INSTREAM size limit exceeded. ERROR\0",
            Verdict(Outcome.UNSCANNED, "it is larger than clamd takes: see its StreamMaxLength"),
        ),
    ],
)
async def test_clamd_tells_what_it_found(answer: bytes, verdict: Verdict) -> None:
    """Of all the bytes, in the pieces in which they came, larger ones cut."""
    got: list[bytes] = []

    async def talk(reader: Reader, writer: Writer) -> None:
        got.append(await received(reader))
        writer.write(answer)

    large = os.urandom(600_000)
    async with scripted(talk) as address:
        assert await Clamd(address, MINUTE).scan(chunks(b"one", b"", large)) == verdict
    assert got == [b"one" + large]


ODD = [
    b"", b"\0", b"stream: OK", b"stream: OK\n", b"stream:  FOUND\0", b"stream: Virus FOUND",
    b"Virus FOUND\0", b"stream: Can't allocate memory ERROR\0", b"UNKNOWN COMMAND\0",
    b"HTTP/1.1 400 Bad Request\r\n\r\n", b"stream: not OK\0", os.urandom(9_000), b"x" * 9_000,
]  # fmt: skip


@pytest.mark.parametrize("answer", ODD, ids=range(len(ODD)))
async def test_what_clamd_does_not_say_is_nothing(answer: bytes) -> None:
    """Neither clean nor infected: half an answer, an error, or what is none of its answers."""

    async def talk(reader: Reader, writer: Writer) -> None:
        await received(reader)
        writer.write(answer)

    async with scripted(talk) as address:
        with pytest.raises(ScanFailed) as failed:
            await Clamd(address, MINUTE).scan(chunks(b"one"))
    assert str(failed.value).startswith("clamd ")
    assert len(str(failed.value)) < LONGEST + 50
    assert str(failed.value).isprintable()


async def test_an_answer_comes_before_the_end() -> None:
    """What is left of endless bytes is not sent, whether or not clamd still listens."""
    for wait in (True, False):

        async def talk(reader: Reader, writer: Writer, wait: bool = wait) -> None:
            await reader.readexactly(100_000)
            writer.write(b"INSTREAM size limit exceeded. ERROR\0")
            await writer.drain()
            if wait:
                await reader.read(-1)  # until who asked is gone

        async with scripted(talk) as address:
            outcome, reason = await Clamd(address, MINUTE).scan(endless())
        assert (outcome, "StreamMaxLength" in str(reason)) == (Outcome.UNSCANNED, True)


async def test_clean_is_only_what_was_seen_whole() -> None:
    """Whoever answers before has not looked at all of it."""

    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readexactly(100_000)
        writer.write(b"stream: OK\0")
        await writer.drain()
        await reader.read(-1)

    async with scripted(talk) as address:
        with pytest.raises(ScanFailed, match="before it had all of it"):
            await Clamd(address, MINUTE).scan(endless())


async def test_an_answer_is_read_though_writing_failed(tmp_path: Path) -> None:
    """Which is how clamd refuses what is too large."""

    async def talk(reader: Reader, writer: Writer) -> None:
        await reader.readexactly(100_000)
        writer.get_extra_info("socket").shutdown(socket.SHUT_RD)
        await asyncio.sleep(0.2)  # it is right at any time, and hardest late
        writer.write(b"INSTREAM size limit exceeded. ERROR\0")
        writer.close()

    path = tmp_path / "clamd.ctl"
    async with await asyncio.start_unix_server(talk, path):
        verdict = await Clamd(str(path), MINUTE).scan(endless())
    assert verdict.outcome is Outcome.UNSCANNED


async def test_clamd_that_does_not_answer_is_given_up() -> None:
    """After the time that it has, also where it takes all that it is given, or nothing."""

    async def silent(reader: Reader, _writer: Writer) -> None:
        await reader.read(1)
        await asyncio.Event().wait()

    async def deaf(_reader: Reader, _writer: Writer) -> None:
        await asyncio.Event().wait()

    async def greedy(reader: Reader, _writer: Writer) -> None:
        while await reader.read(1_000_000):
            pass

    for talk in (silent, deaf, greedy):
        async with scripted(talk) as address:
            with pytest.raises(ScanFailed, match=r"has not answered for 0\.2 s"):
                await Clamd(address, SOON).scan(endless())


async def test_clamd_that_goes_says_nothing() -> None:
    """At once, or in the middle of it."""

    async def gone(_reader: Reader, _writer: Writer) -> None:
        pass

    async def goes(reader: Reader, _writer: Writer) -> None:
        await reader.readexactly(100_000)

    for talk in (gone, goes):
        async with scripted(talk) as address:
            with pytest.raises(ScanFailed, match="closed the connection"):
                await Clamd(address, MINUTE).scan(endless())


@pytest.mark.parametrize(
    "address", [f"{LOOPBACK}:{{port}}", "{folder}/none.ctl", "a b:1", "a..b:1"]
)
async def test_clamd_that_is_not_there_is_away(address: str, tmp_path: Path) -> None:
    """The sentence says what to do."""
    where = address.format(port=free_port(), folder=tmp_path)
    for ask in (Clamd(where, MINUTE).scan(chunks(b"one")), Clamd(where, MINUTE).version()):
        with pytest.raises(ScannerAway, match=r"check scan\.clamd, and that clamd runs"):
            await ask


async def test_what_is_no_clamd_is_told() -> None:
    """By its version."""

    async def talk(reader: Reader, writer: Writer) -> None:
        asked = await reader.readuntil(b"\0")
        writer.write(b"ClamAV 1/2/3\0" if asked == b"zVERSION\0" and clamd else b"220 mail\0")

    async with scripted(talk) as address:
        for clamd in (True, False):
            if clamd:
                assert await Clamd(address, MINUTE).version() == "ClamAV 1/2/3"
            else:
                with pytest.raises(ScannerAway, match="no clamd"):
                    await Clamd(address, MINUTE).version()


async def test_bytes_that_cannot_be_read_are_not_clamds_fault() -> None:
    """Nothing is said of the half of them."""

    async def talk(reader: Reader, writer: Writer) -> None:
        await received(reader)
        writer.write(b"stream: OK\0")

    async with scripted(talk) as address:
        with pytest.raises(BlobMissing):
            await Clamd(address, MINUTE).scan(lost())


# A command


def program(script: str, timeout: timedelta = MINUTE) -> Command:
    """A scanner that is this Python script."""
    return Command([sys.executable, "-c", f"import os, signal, sys, time\n{script}"], timeout)


@pytest.mark.parametrize(
    ("script", "verdict"),
    [
        ("sys.exit(sys.stdin.buffer.read() != b'onetwo')", Verdict(Outcome.CLEAN)),
        ("pass", Verdict(Outcome.CLEAN)),
        ("print('looking\\nSome.Virus\\n'); sys.exit(1)", Verdict(Outcome.INFECTED, "Some.Virus")),
        (
            "print('x' * 10**6 + '\\n' + 'y' * 900, end=''); sys.exit(1)",
            Verdict(Outcome.INFECTED, "y" * (LONGEST - 1) + "…"),
        ),
    ],
)
async def test_a_command_tells_by_its_exit_status(script: str, verdict: Verdict) -> None:
    """It need not read what it is given, and may print as much as it likes."""
    assert await program(script).scan(chunks(b"one", b"two")) == verdict


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("sys.exit(1)", "ended with status 1"),
        ("raise ValueError('a bug')", "ended with status 1"),
        ("print('no signatures'); sys.exit(2)", "ended with status 2: no signatures"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9"),
        ("print('Some.Virus', flush=True); os.abort()", "was ended by signal 6: Some.Virus"),
    ],
)
async def test_a_command_that_breaks_says_nothing(script: str, told: str) -> None:
    """A status of 1 without a name is that of a program that broke."""
    with pytest.raises(ScanFailed, match=told):
        await program(script).scan(chunks(b"one"))


async def test_a_command_that_need_not_read_is_not_waited_for() -> None:
    """Its bytes have no end."""
    found = await program("print('Some.Virus'); sys.exit(1)").scan(endless())
    assert found == Verdict(Outcome.INFECTED, "Some.Virus")


async def test_a_command_may_print_nothing() -> None:
    """It is given all of it, though it has closed its output."""
    script = "os.close(1); data = sys.stdin.buffer.read(); os._exit(len(data) != 8_000_000)"
    pieces = [bytes(1_000_000)] * 8
    assert await program(script).scan(chunks(*pieces)) == Verdict(Outcome.CLEAN)


async def test_a_command_of_another_user_is_not_ours_to_kill(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that sudo starts: it tells all the same."""

    def refuse(_group: int, _signal: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", refuse)
    script = "sys.stdin.buffer.read()"
    assert await program(script).scan(chunks(b"one")) == Verdict(Outcome.CLEAN)


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_command_that_hangs_is_killed_with_its_children(
    tmp_path: Path, cancelled: bool
) -> None:
    """After its time, or when nobody wants to know any more."""
    file = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {file}.part; mv {file}.part {file}; wait"
    timeout = MINUTE if cancelled else timedelta(seconds=5)
    scan = asyncio.ensure_future(Command(["sh", "-c", script], timeout).scan(chunks(b"one")))

    async def has_child() -> bool:
        return file.exists()

    await until(has_child, "it has a child")
    if cancelled:
        scan.cancel()
        await asyncio.wait([scan])
    else:
        with pytest.raises(ScanFailed, match="sh has not ended in 5 s"):
            await scan
    pid = int(file.read_text("utf-8"))

    async def is_gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in b"ZX"
        except OSError:
            return True

    await until(is_gone, "the child is gone")


async def test_a_command_that_is_not_there_is_away(tmp_path: Path) -> None:
    """The sentence says what to do."""
    file = tmp_path / "scan"
    file.write_text("no program", "utf-8")
    for name in (str(tmp_path / "none"), str(file)):
        absent = Command([name], MINUTE)
        for ask in (absent.scan(chunks(b"one")), absent.version()):
            with pytest.raises(ScannerAway, match=r"check scan\.command"):
                await ask
    assert await Command([sys.executable], MINUTE).version() == sys.executable


async def test_bytes_that_cannot_be_read_are_not_the_commands_fault() -> None:
    """It is not left to wait for the rest."""
    with pytest.raises(BlobMissing):
        await program("sys.stdin.buffer.read()").scan(lost())


def test_the_configuration_chooses() -> None:
    """None, unless it names one."""
    assert scanner(Scan()) is None
    assert isinstance(scanner(Scan.model_validate({"with": "clamd"})), Clamd)
    assert isinstance(scanner(Scan.model_validate({"with": "command", "command": ["a"]})), Command)
