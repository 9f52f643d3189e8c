"""`storage move`, and what is quarantined and held by its bytes or its time, as commands."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from archiver.capture.policy import CapturePolicy
from archiver.config import parse_config
from archiver.control.asked import Asked, Means
from archiver.control.registry import find
from archiver.control.reply import Reply, plain
from archiver.errors import Cancelled, ConfigError, Misused, OperationError
from archiver.fetch.archive import Parts
from archiver.matrix.history import History
from archiver.matrix.registration import Registration
from archiver.matrix.speech import Speech
from tests.support.fetching import INLINE_LIMIT, parts
from tests.support.homeserver import BOT, SERVER_NAME, TOKEN, Homeserver
from tests.support.keeping import ADMIN, archive, blob_of, custody, read, states
from tests.support.redacting import image, push

if TYPE_CHECKING:
    from archiver.db.pool import Pool

TINY, SMALL, LARGE = os.urandom(10), os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)


class Desk:
    """An administrator; `patience`: how many pauses they wait for before they cancel."""

    def __init__(self, ours: Parts, folder: Path, session: aiohttp.ClientSession) -> None:
        url = "http://127.0.0.1:9"
        given: dict[str, Any] = {
            "homeserver": {"url": url, "server_name": SERVER_NAME},
            "storage": {"inline_limit": INLINE_LIMIT, "spool": str(folder / "spool")},
        }
        registration = Registration("a", TOKEN, "hs", BOT, "@as:archive.test")
        self._means = Means(
            parse_config(given, folder),
            ours.pool,
            ours.store,
            History(session, url, TOKEN, BOT),
            Speech(session, url, registration),
            CapturePolicy(SERVER_NAME),
        )
        self.ours = ours
        self.patience = 1000

    async def give(self, *words: str) -> Reply:
        """Gives a command."""
        found = find(words)
        assert found is not None
        command, rest = found
        asked = Asked(self._means, *ADMIN, self._nothing, self._nothing, self._pause)
        return await command.run(asked, **command.parse(rest))

    async def _nothing(self, _reply: Reply) -> None:
        pass

    async def _pause(self, _seconds: float) -> None:
        self.patience -= 1
        if self.patience < 0:
            raise Cancelled("Cancelled.")


@pytest.fixture
async def desk(
    pool: Pool, tmp_path: Path, homeserver: Homeserver, http: aiohttp.ClientSession
) -> AsyncIterator[Desk]:
    """A tiny, a small and a large media, the last an object."""
    async with parts(pool, tmp_path, homeserver.url) as ours:
        await push(pool, image("$a", "ant"), image("$b", "cat"), image("$c", "dog"))
        await archive(ours, homeserver, ant=TINY, cat=SMALL, dog=LARGE)
        yield Desk(ours, tmp_path, http)


async def places(pool: Pool) -> dict[str, str]:
    rows = await pool.fetch("SELECT media_id, place FROM media JOIN blob ON sha256 = blob_sha256")
    return {row[0]: row[1] for row in rows}


async def test_moving_by_size(desk: Desk) -> None:
    """Larger or smaller than what is said; without it, what the inline limit says."""
    pool = desk.ours.pool
    before = {"ant": "inline", "cat": "inline", "dog": "object"}
    reply = await desk.give("storage", "move", "--to", "filesystem")
    assert plain(reply) == "Nothing was to move to filesystem."
    assert await places(pool) == before
    reply = await desk.give("storage", "move", "--to", "filesystem", "--larger-than", "1KiB")
    assert plain(reply) == "Moved 1 file, 9.8 KiB to filesystem."
    assert reply.data == {"files": 1, "bytes": len(SMALL), "damaged": []}
    assert await places(pool) == before | {"cat": "object"}
    await desk.give("storage", "move", "--to", "inline")
    assert await places(pool) == before
    await desk.give("storage", "move", "--to", "inline", "--smaller-than", "1 MiB")
    assert await places(pool) == before | {"dog": "inline"}
    await desk.give("storage", "move", "--to", "filesystem", "--smaller-than", "1 KiB")
    assert await places(pool) == {"ant": "object", "cat": "inline", "dog": "inline"}
    for name, data in {"ant": TINY, "cat": SMALL, "dog": LARGE}.items():
        assert await read(desk.ours, name) == data
    assert {line[2] for line in await custody(pool)} == {"storage move"}


async def test_where_to_and_how_much(desk: Desk) -> None:
    """What is wrong is told with what to do."""
    with pytest.raises(ConfigError, match=r"storage.objects to s3 and storage.move_from to files"):
        await desk.give("storage", "move", "--to", "s3")
    for words in ((), ("--to", "tape"), ("--to", "inline", "--larger-than", "much")):
        with pytest.raises(Misused):
            await desk.give("storage", "move", *words)


async def test_it_may_be_cancelled_and_goes_on(desk: Desk) -> None:
    """What was moved until then is moved."""
    desk.patience = 0
    move = "storage", "move", "--to", "filesystem", "--larger-than", "0"
    with pytest.raises(Cancelled, match=r"Cancelled after 2 files, 9.8 KiB. Begun again"):
        await desk.give(*move)
    desk.patience = 1000
    assert plain(await desk.give(*move)) == "Nothing was to move to filesystem."


async def test_what_is_damaged_is_told(desk: Desk) -> None:
    """By its name, and the command did not work."""
    await desk.ours.pool.execute("DELETE FROM blob_data WHERE octet_length(data) = 10")
    reply = await desk.give("storage", "move", "--to", "filesystem", "--smaller-than", "1 MiB")
    assert reply.failed
    name = (await blob_of(desk.ours.pool, "ant")).sha256.hex()
    assert plain(reply) == (
        "Moved 1 file, 9.8 KiB to filesystem. 1 file stayed, being damaged: see `verify`."
        f"\n\n\u2022 {name}"
    )


async def test_a_store_that_is_away_is_told(desk: Desk, tmp_path: Path) -> None:
    """With how far it came."""
    (tmp_path / "objects").rename(tmp_path / "elsewhere")
    with pytest.raises(OperationError, match=r"stopped after 0 files, 0 B: cannot use the object"):
        await desk.give("storage", "move", "--to", "filesystem", "--larger-than", "0")


async def test_bytes_are_quarantined_and_released(desk: Desk) -> None:
    """By their SHA-256, in any case of its letters."""
    name = (await blob_of(desk.ours.pool, "cat")).sha256.hex()
    reply = await desk.give("quarantine", f"sha256:{name.upper()}", "known")
    assert reply.data == {"media": 1, "size": len(SMALL), "told": 0}
    assert (await states(desk.ours.pool))["cat"] == "quarantined"
    await desk.give("release", f"sha256:{name}")
    assert (await states(desk.ours.pool))["cat"] == "ready"
    with pytest.raises(Misused, match="is not a media"):
        await desk.give("quarantine", "2024-01-01..2024-01-31")


async def test_bytes_that_were_never_posted_may_be_refused(desk: Desk) -> None:
    """And it says so."""
    name = "sha256:" + "0f" * 32
    reply = await desk.give("quarantine", name)
    assert plain(reply) == f"No media was to hide; whatever comes with {name} is hidden too."


@pytest.mark.parametrize("target", ["sha256:" + "0f" * 32, "2024-01-01..2024-01-31"])
async def test_bytes_and_spans_are_held(desk: Desk, target: str) -> None:
    """Placed, listed and ended as every hold."""
    assert plain(await desk.give("hold", target, "a", "case")) == f"Held {target}."
    assert target in plain(await desk.give("holds"))
    await desk.give("unhold", target)
    assert plain(await desk.give("holds")) == "Nothing is held."


async def test_neither_is_deleted(desk: Desk) -> None:
    """A command that takes media, events, people and rooms takes nothing else."""
    for target in ("sha256:" + "0f" * 32, "2024-01-01..2024-01-31"):
        with pytest.raises(Misused, match="is not a media"):
            await desk.give("delete", target)
