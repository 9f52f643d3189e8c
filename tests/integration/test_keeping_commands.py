"""Commands that set aside, give back, delete and verify, as they read in a room or on a shell."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import holds
from archiver.config import Config
from archiver.control.asked import Asked, Means
from archiver.control.commands import keeping, verifying
from archiver.control.commands.verifying import SHOWN
from archiver.control.definition import Command
from archiver.control.reply import Reply, as_html, plain
from archiver.errors import Cancelled, ConfigError, Misused, OperationError
from archiver.fetch.archive import Parts
from archiver.matrix.history import History
from archiver.matrix.registration import Registration
from archiver.matrix.speech import Speech
from tests.support.fetching import INLINE_LIMIT, parts
from tests.support.homeserver import BOT, SERVER_NAME, TOKEN, Homeserver
from tests.support.keeping import (
    ADMIN,
    BOB,
    OTHER_ROOM,
    archive,
    blob_of,
    custody,
    file_of,
    states,
)
from tests.support.redacting import ALICE, ROOM, image, media_row, mxc, push
from tests.support.rooms import Rooms

if TYPE_CHECKING:
    from archiver.db.pool import Pool

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)
CAT, DOG = str(mxc("cat")), str(mxc("dog"))
ALIAS = "#room:archive.test"


class Desk:
    """An administrator in the control room; `shown` is progress, `patience` how many pauses they
    wait for before they cancel."""

    def __init__(self, ours: Parts, rooms: Rooms, http: aiohttp.ClientSession) -> None:
        self.ours = ours
        self.shown: list[str] = []
        self.patience = 1000
        self.rooms, self._http = rooms, http
        self.look_anew(tell_homeserver=False)

    @property
    def pool(self) -> Pool:
        return self.ours.pool

    def look_anew(self, *, tell_homeserver: bool) -> None:
        """As after a restart: it is not remembered who is an administrator."""
        rooms, http = self.rooms, self._http
        history = History(http, rooms.url, TOKEN, BOT)
        speech = Speech(http, rooms.url, Registration("a", TOKEN, "hs", BOT, "@as:archive.test"))
        homeserver = {"url": rooms.url, "server_name": SERVER_NAME}
        quarantine = {"tell_homeserver": tell_homeserver}
        config = Config.model_validate({"homeserver": homeserver, "quarantine": quarantine})
        policy = CapturePolicy(SERVER_NAME)
        self._means = Means(config, self.ours.pool, self.ours.store, history, speech, policy)

    async def give(self, *words: str) -> Reply:
        """Gives a command, and says OK to it."""
        command, params = self._parsed(words)
        return await command.run(self._asked(), **params)

    async def ask(self, *words: str) -> Reply:
        """What it asks before."""
        command, params = self._parsed(words)
        assert command.asks is not None
        return await command.asks(self._asked(), **params)

    def _parsed(self, words: tuple[str, ...]) -> tuple[Command, dict[str, Any]]:
        commands = {command.name: command for command in keeping.COMMANDS}
        return commands[words[0]], commands[words[0]].parse(words[1:])

    def _asked(self) -> Asked:
        return Asked(self._means, *ADMIN, self._progress, self._progress, self._pause)

    async def _progress(self, reply: Reply) -> None:
        self.shown.append(plain(reply))

    async def _pause(self, _seconds: float) -> None:
        self.patience -= 1
        if self.patience < 0:
            raise Cancelled("Cancelled.")


@pytest.fixture
async def desk(
    pool: Pool, tmp_path: Path, homeserver: Homeserver, http: aiohttp.ClientSession
) -> AsyncIterator[Desk]:
    """With a small and a large media of Alice's, the latter in another room as well."""
    async with Rooms() as rooms, parts(pool, tmp_path, homeserver.url) as ours:
        rooms.aliases[ALIAS] = ROOM
        elsewhere = image("$c", "dog", sender=BOB, room_id=OTHER_ROOM)
        await push(pool, image("$a", "cat"), image("$b", "dog"), elsewhere)
        await archive(ours, homeserver, cat=SMALL, dog=LARGE)
        yield Desk(ours, rooms, http)


def test_what_they_are() -> None:
    """Only what destroys asks first, and all of them may take long."""
    flags = {command.name: (bool(command.asks), command.long) for command in keeping.COMMANDS}
    assert flags == {
        "quarantine": (False, True),
        "release": (False, True),
        "delete": (True, True),
        "verify": (False, True),
        "sweep": (True, True),
        "scan": (False, True),
    }
    assert all(command.changes for command in keeping.COMMANDS)
    assert [command.usage for command in keeping.COMMANDS] == [
        "quarantine TARGET [REASON]... [--homeserver/--no-homeserver]",
        "release TARGET",
        "delete TARGET",
        "verify [MXC] [--all]",
        "sweep [--delete]",
        "scan [TARGET] [--all]",
    ]


@pytest.mark.parametrize("target", [ROOM, ALIAS, ALICE, f"https://matrix.to/#/{ALICE}"])
async def test_quarantine_and_release(desk: Desk, target: str) -> None:
    """Each tells how many media, and how large; and what to expect of a second time."""
    told = "2 media (19.5 KiB)."
    assert plain(await desk.give("quarantine", target, "looks", "bad\0")) == f"Quarantined {told}"
    reason = (await media_row(desk.pool, "cat"))["reason"]
    assert reason == f"quarantined by {ADMIN.actor}: looks bad\N{REPLACEMENT CHARACTER}"
    again = plain(await desk.give("quarantine", target))
    assert "was to hide" in again
    assert plain(await desk.give("release", target)) == f"Released {told}"
    assert "is quarantined" in plain(await desk.give("release", target))
    assert [line[2] for line in await custody(desk.pool)] == ["quarantine", "release"]


async def test_quarantine_may_be_told(desk: Desk) -> None:
    """How many media the homeserver is told of, and whether it lets us; the option wins over the
    configuration."""
    told = "The homeserver is told of 1 media."
    assert plain(await desk.give("quarantine", CAT, "--homeserver")).endswith(f".\n\n{told}")
    desk.rooms.admin = False
    refuses = "It refuses as long as the bot is no administrator there: see `archiver doctor`."
    desk.look_anew(tell_homeserver=True)
    reply = await desk.give("quarantine", DOG, "spam")
    assert plain(reply).endswith(f"{told}\n\n{refuses}")
    assert reply.data["told"] == 1
    assert plain(await desk.give("release", CAT)).endswith(f"{told}\n\n{refuses}")
    assert "homeserver" not in plain(await desk.give("quarantine", CAT, "--no-homeserver"))
    await desk.rooms.stop()
    desk.look_anew(tell_homeserver=True)
    assert "as soon as it answers" in plain(await desk.give("release", DOG))


async def test_delete_tells_before_what_would_go(desk: Desk) -> None:
    """Media, bytes, rooms, and what stays and why; nothing is gone yet."""
    assert plain(await desk.ask("delete", ALIAS)) == (
        "This deletes 1 media (9.8 KiB freed) for ever, posted in 1 room.\n\n"
        "The words, file names and captions of its events go as well.\n\n"
        "1 media stay because other events name them too."
    )
    assert "in 2 rooms" in plain(await desk.ask("delete", DOG))
    async with desk.pool.acquire() as conn:
        await holds.place(conn, CAT, "a case", "shell:root")
    reply = await desk.ask("delete", ALICE)
    assert "1 media stay because they are held" in plain(reply)
    assert (reply.data["media"], reply.data["held"], reply.data["outside"]) == (0, 1, 1)
    assert set((await states(desk.pool)).values()) == {"ready"}
    assert await custody(desk.pool) == []


async def test_delete(desk: Desk) -> None:
    """It tells what went and what stayed, and the second time that nothing was left."""
    stay = "1 media stay because other events name them too."
    assert plain(await desk.give("delete", ALIAS)) == (
        f"Deleted 1 media (9.8 KiB freed) and the words of 2 events.\n\n{stay}"
    )
    assert plain(await desk.give("delete", ROOM)) == f"Deleted 0 media (0 B freed).\n\n{stay}"
    assert plain(await desk.give("delete", DOG)) == "Deleted 1 media (9.8 KiB freed)."
    assert await states(desk.pool) == {"cat": "deleted", "dog": "deleted"}


async def test_nothing_to_delete_is_an_error(desk: Desk) -> None:
    """A name that the archive has not heard of is likely mistyped."""
    with pytest.raises(OperationError, match="has nothing of @nobody:here"):
        await desk.ask("delete", "@nobody:here")


async def test_a_cancel_is_heard_between_steps(desk: Desk) -> None:
    """It tells how far it came."""
    desk.patience = 0
    with pytest.raises(Cancelled, match=r"1 media .* gone so far, the rest is left"):
        await desk.give("delete", ROOM)
    with pytest.raises(Cancelled, match=r"Cancelled after 1 file, .* of 1 file, 9.8 KiB"):
        await desk.give("verify", "--all")
    assert (await custody(desk.pool))[-1][2:4] == ("verify", None)


async def test_progress_is_shown_of_what_takes_long(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many of how many, how large, how fast."""
    await desk.give("verify", "--all")
    assert desk.shown == []
    monkeypatch.setattr(verifying, "QUIET_SECONDS", 0.0)
    await desk.give("verify", "--all")
    await desk.give("quarantine", ROOM)
    assert desk.shown[0].startswith("Verified 2 files, 19.5 KiB (")
    assert desk.shown[0].endswith("/s) of 2 files, 19.5 KiB.")
    assert desk.shown[1] == "In quarantine so far: 2 media (19.5 KiB)."


async def test_verify_one(desk: Desk, tmp_path: Path) -> None:
    """It is what it was, or not."""
    assert plain(await desk.give("verify", DOG)).startswith(f"{DOG} is what it was: 9.8 KiB, ")
    sha256 = (await blob_of(desk.pool, "dog")).sha256
    file_of(tmp_path, sha256).unlink()
    reply = await desk.give("verify", DOG)
    assert reply.failed
    assert plain(reply) == (f"{DOG} is damaged.\n\n• {sha256.hex()} · found missing · media {DOG}")
    assert reply.data["findings"] == [{"sha256": sha256.hex(), "found": "missing", "media": [DOG]}]


async def test_verify_all_and_its_memory(desk: Desk) -> None:
    """Without arguments it tells what was found before."""
    fresh = plain(await desk.give("verify"))
    assert fresh == "2 files: 2 never verified.\n\nNothing is damaged."
    reply = await desk.give("verify", "--all")
    assert plain(reply).endswith("Nothing is damaged.")
    assert not reply.failed
    assert "0 never verified, all others since 20" in plain(await desk.give("verify"))
    await desk.pool.execute("DELETE FROM blob_data")
    reply = await desk.give("verify", "--all")
    assert "1 is damaged." in plain(reply)
    assert CAT in plain(await desk.give("verify"))
    assert CAT in as_html(reply)


async def test_a_crowd_of_damage_is_cut(desk: Desk) -> None:
    """A reply stays short, whatever happened to the store."""
    await desk.pool.execute(
        "INSERT INTO blob (sha256, size, place) SELECT sha256(n::text::bytea), 1, 'object'"
        " FROM generate_series(1, 50) AS n"
    )
    reply = await desk.give("verify", "--all")
    assert plain(reply).count("•") == SHOWN
    assert plain(reply).endswith(f"And {50 - SHOWN} more.")
    assert reply.data["damaged"] == 50


async def test_a_store_that_is_away_is_a_sentence(desk: Desk, tmp_path: Path) -> None:
    """And damages nothing."""
    (tmp_path / "objects").rename(tmp_path / "elsewhere")
    for words in (["verify", DOG], ["verify", "--all"]):
        with pytest.raises(OperationError, match="cannot use the object folder"):
            await desk.give(*words)
    assert "Nothing is damaged." in plain(await desk.give("verify"))


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (["verify", CAT, "--all"], ConfigError, "not both"),
        (["verify", str(mxc("pig"))], OperationError, "is not in the archive"),
        (["verify", ALICE], Misused, "is not a media like"),
        (["quarantine", "cats"], Misused, "'cats' is not"),
        (["delete"], Misused, "TARGET"),
    ],
)
async def test_mistakes(desk: Desk, words: list[str], error: type[Exception], told: str) -> None:
    """Each is told in a sentence."""
    with pytest.raises(error, match=told):
        await desk.give(*words)


async def test_what_has_no_bytes_cannot_be_verified(desk: Desk) -> None:
    """It says what became of it."""
    await push(desk.pool, image("$d", "cow"))
    with pytest.raises(OperationError, match="has no bytes to verify: it is pending"):
        await desk.give("verify", str(mxc("cow")))


async def test_sweep_tells_asks_and_lets_go(desk: Desk, tmp_path: Path) -> None:
    """Only with --delete it asks, and only then something goes."""
    assert plain(await desk.give("sweep")) == (
        "Swept; 2 files, 19.5 KiB are where they should be.\n\n"
        "Nothing is left over, and nothing is missing."
    )
    file_of(tmp_path, (await blob_of(desk.pool, "dog")).sha256).unlink()
    await desk.pool.execute("INSERT INTO blob_data VALUES (sha256('stray'), 'stray')")
    told = plain(await desk.give("sweep"))
    assert told.startswith("Swept; 1 file, 9.8 KiB are where they should be.\n\n")
    assert "inline bytes without a row · 1 file, 5 B" in told
    assert "rows without their bytes · 1 file, 9.8 KiB" in told
    asked = plain(await desk.ask("sweep", "--delete"))
    assert asked.startswith("This lets 1 file go (5 B), that no row knows, and notes 1 file, 9.8")
    assert await desk.pool.fetchval("SELECT count(*) FROM blob_data") == 2
    reply = await desk.give("sweep", "--delete")
    assert reply.data["inline"] == {"files": 1, "bytes": 5}
    assert await desk.pool.fetchval("SELECT count(*) FROM blob_data") == 1
    assert "1 is damaged; what somebody still has is fetched again by itself:" in plain(
        await desk.give("verify")
    )
    sweep = next(command for command in keeping.COMMANDS if command.name == "sweep")
    assert sweep.asks_first(sweep.parse([])) is None
    assert sweep.asks_first(sweep.parse(["--delete"])) is sweep.asks
