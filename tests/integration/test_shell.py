"""The commands of the control room on the shell, as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
import yaml

from archiver.cli import main
from archiver.cli.showing import show
from archiver.control.commands.helping import describe
from archiver.control.registry import COMMANDS
from archiver.control.reply import Code, Reply, Table
from archiver.matrix.registration import new_registration
from archiver.model import Mxc
from tests.support.serving import Archive

if TYPE_CHECKING:
    from archiver.db.pool import Pool

GONE = "mxc://archive.test/gone"


class Shell:
    """Somebody who commands an archive from a shell."""

    def __init__(self, config: Path) -> None:
        self._config = config

    async def give(
        self, *words: str, answer: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The outcome of a command; with an `answer` it is typed into a terminal."""
        command = [sys.executable, "-m", "archiver", *words, "-c", str(self._config)]
        if answer is None:
            return await asyncio.to_thread(_run, command, subprocess.DEVNULL)
        ours, its = pty.openpty()
        try:
            os.write(ours, f"{answer}\n".encode())
            return await asyncio.to_thread(_run, command, its)
        finally:
            os.close(ours)
            os.close(its)

    async def ask(self, *words: str) -> str:
        """What a command prints that works."""
        done = await self.give(*words)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout


@pytest.fixture
def shell(database_url: str, tmp_path: Path) -> Shell:
    """Beside the archive that the test fills, and a homeserver that is away."""
    config = tmp_path / "config.yaml"
    settings = {
        "homeserver": {"url": "http://127.0.0.1:1", "server_name": "archive.test"},
        "database": {"url": database_url},
        "storage": {
            "filesystem": {"path": str(tmp_path / "objects")},
            "spool": str(tmp_path / "spool"),
        },
    }
    config.write_text(yaml.safe_dump(settings), "utf-8")
    registration = new_registration("http://127.0.0.1:1", "archive.test")
    (tmp_path / "registration.yaml").write_text(yaml.safe_dump(registration), "utf-8")
    return Shell(config)


def test_every_command_of_the_control_room_is_on_the_shell() -> None:
    """With the same words: name, help, arguments and options."""
    for command in COMMANDS:
        found: click.Command | None = main
        for word in command.name.split():
            assert isinstance(found, click.Group), command.name
            found = found.commands.get(word)
        assert found is not None, command.name
        assert (found.help, found.short_help or command.summary) == (
            command.help,
            command.summary,
        )
        assert found.params[: len(command.params)] == list(command.params), command.name


async def test_help_needs_no_configuration(tmp_path: Path) -> None:
    """It says what `help` says in the control room, in the same words."""
    command = [sys.executable, "-m", "archiver", "help"]
    listed = await asyncio.to_thread(_run, [*command, "--json"], subprocess.DEVNULL, tmp_path)
    assert json.loads(listed.stdout) == describe(COMMANDS, ()).data
    shown = await asyncio.to_thread(_run, command, subprocess.DEVNULL, tmp_path)
    table = describe(COMMANDS, ()).parts[0]
    assert isinstance(table, Table)
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    for row in table.rows:
        assert " ".join(row) in lines
    one = await asyncio.to_thread(_run, [*command, "token", "create"], subprocess.DEVNULL)
    assert one.stdout.startswith("token create NAME --scope [")
    unknown = await asyncio.to_thread(_run, [*command, "hodl"], subprocess.DEVNULL)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "did you mean `hold`" in unknown.stderr


async def test_a_command_changes_and_another_tells(shell: Shell, pool: Pool) -> None:
    """Words become one reason; scripts get JSON, people a table; custody knows who it was."""
    assert await shell.ask("hold", GONE, "for", "the \x1b[31mcourt") == f"Held {GONE}.\n"
    (held,) = json.loads(await shell.ask("holds", "--json"))
    assert (held["target"], held["reason"]) == (GONE, "for the \x1b[31mcourt")
    assert held["holder"].startswith("shell:")
    shown = await shell.ask("holds")
    assert GONE in shown
    assert "\x1b" not in shown
    row = await pool.fetchrow("SELECT actor, place, action, target FROM custody")
    assert row is not None
    assert tuple(row) == (held["holder"], "shell", "hold", GONE)


async def test_the_secret_alone_is_printed(shell: Shell) -> None:
    """So that a script can take it; with --json it has a name."""
    secret = await shell.ask("token", "create", "panel", "--scope", "read")
    assert secret.startswith("mma_")
    assert len(secret.splitlines()) == 1
    made = json.loads(await shell.ask("token", "create", "other", "--scope", "admin", "--json"))
    assert made["token"].startswith("mma_")
    listed = await shell.ask("token", "list")
    assert "panel" in listed
    assert secret.strip() not in listed


async def test_what_does_not_work_ends_with_1(shell: Shell) -> None:
    """One sentence tells why."""
    done = await shell.give("unhold", GONE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"archiver: there is no hold on {GONE}")


async def test_what_finds_something_wrong_ends_with_1(shell: Shell, archive: Archive) -> None:
    """And tells it as any other outcome, so that a script sees both."""
    await archive.put(b"\x89PNG picture")
    assert "Nothing is damaged" in await shell.ask("verify", "--all")
    await archive.pool.execute("UPDATE blob_data SET data = 'other'")
    done = await shell.give("verify", "--all", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["damaged"] == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hold", "cat.png", "x"], "'cat.png' is not a media like mxc://server/id"),
        (["hold", GONE], "Missing argument 'REASON...'"),
        (["token", "create", "x", "--scope", "all"], "'all' is not one of"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
async def test_wrong_usage_ends_with_2(shell: Shell, words: list[str], expected: str) -> None:
    """The message says what was expected, and nothing is done."""
    done = await shell.give(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


async def test_what_destroys_asks_first(shell: Shell, archive: Archive) -> None:
    """Without a terminal it wants --yes, on one it shows what would go, and a no is a no."""
    mxc = await archive.put(b"\x89PNG picture")
    refused = await shell.give("delete", str(mxc))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--yes" in refused.stderr
    declined = await shell.give("delete", str(mxc), answer="n")
    assert (declined.returncode, declined.stdout) == (1, "")
    assert "Do it?" in declined.stderr
    assert await _state(archive.pool, mxc) == "ready"
    agreed = await shell.give("delete", str(mxc), answer="y")
    assert agreed.returncode == 0, agreed
    assert await _state(archive.pool, mxc) == "deleted"
    other = await archive.put(b"\x89PNG another")
    assert "Do it?" not in await shell.ask("delete", str(other), "--yes")
    assert await _state(archive.pool, other) == "deleted"


def test_a_reply_is_shown_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Sentences, lines as they are, tables without a box; what a terminal would obey is not
    printed, and what looks like markup is left alone."""
    table = Table(("name", ""), (("[red]cat\x1b[0m", "one\ntwo"),))
    show(Reply(("first\x07\nsecond", "third:", table, Code("a  b\n  ^"))))
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "first\ufffd", "second", "", "third:", " name",
        " [red]cat\ufffd[0m  one\ufffdtwo", "", "a  b", "  ^",
    ]  # fmt: skip
    assert printed.err == ""


def test_a_reply_is_shown_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """Its data, else its parts."""
    parts = ("said", Table(("name", "size"), (("cat", "3"),)), Code("x"))
    show(Reply(parts, data={"cats": 3}), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"cats": 3}
    show(Reply(parts), as_json=True)
    assert json.loads(capsys.readouterr().out) == ["said", [{"name": "cat", "size": "3"}], "x"]


async def _state(pool: Pool, mxc: Mxc) -> str:
    select = "SELECT state FROM media WHERE server_name = $1 AND media_id = $2"
    return str(await pool.fetchval(select, *mxc))


def _run(
    command: list[str], stdin: int, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
    )
