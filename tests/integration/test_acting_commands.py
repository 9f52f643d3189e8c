"""Commands that read, compare, try, hold, let in and show: a homeserver that plays rooms, and a
real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import tokens
from archiver.config import Config
from archiver.control.asked import Asked, Means
from archiver.control.commands import acting, comparing, reading_told
from archiver.control.reply import Reply, plain
from archiver.errors import Cancelled, ConfigError, Misused, OperationError
from archiver.history import backfill as backfilling
from archiver.history import reconcile as comparing_rooms
from archiver.history.backfill import Backfiller
from archiver.history.reconcile import Reconciler
from archiver.matrix.history import History
from archiver.matrix.registration import Registration
from archiver.matrix.speech import Speech
from archiver.model import Scope
from tests.support.fetching import add, row
from tests.support.homeserver import BOT, SERVER_NAME, TOKEN, mxc
from tests.support.rooms import Event, Rooms
from tests.support.samples import png
from tests.support.serving import Archive

if TYPE_CHECKING:
    from archiver.db.pool import Pool

ALICE = "@alice:archive.test"
HERE = "!control:archive.test"
ROOM, OTHER, SECRET_ROOM = "!room:archive.test", "!other:archive.test", "!secret:archive.test"
POLICY = CapturePolicy(SERVER_NAME, excluded=frozenset({SECRET_ROOM}))
PICTURE = png(16, 9, (200, 30, 30))


class Desk:
    """Alice, who gives commands in the control room. `shown`: progress; `alone`: what was told to
    nobody else. `pauses` is called instead of waiting, and may raise Cancelled."""

    def __init__(self, pool: Pool, archive: Archive, server: Rooms, http: Any) -> None:
        self.pool = pool
        self.server = server
        self.history = History(http, server.url, TOKEN, BOT)
        self.shown: list[Reply] = []
        self.alone: list[Reply] = []
        self.pauses: Callable[[], Awaitable[object]] = partial(asyncio.sleep, 0.01)
        self.config: dict[str, Any] = {}
        registration = Registration("archiver", TOKEN, "hs", BOT, "@appservice:archive.test")
        self._speech = Speech(http, server.url, registration)
        self._store = archive.store

    async def give(self, *words: str, place: str = HERE) -> Reply:
        """Gives a command in these words."""
        for command in acting.COMMANDS:
            name = command.name.split()
            if list(words[: len(name)]) == name:
                return await command.run(self._asked(place), **command.parse(words[len(name) :]))
        raise AssertionError(words)

    async def custody(self) -> list[tuple[str, str, str, str | None, dict[str, Any]]]:
        rows = await self.pool.fetch("SELECT * FROM custody ORDER BY id")
        return [
            (r["actor"], r["place"], r["action"], r["target"], json.loads(r["detail"]))
            for r in rows
        ]

    async def actions(self) -> list[str]:
        return [line[2] for line in await self.custody()]

    def _asked(self, place: str) -> Asked:
        homeserver = {"url": self.server.url, "server_name": SERVER_NAME}
        config = Config.model_validate({"homeserver": homeserver, **self.config})
        means = Means(config, self.pool, self._store, self.history, self._speech, POLICY)
        return Asked(means, ALICE, place, self._show, self._tell, self._pause)

    async def _show(self, reply: Reply) -> None:
        self.shown.append(reply)

    async def _tell(self, reply: Reply) -> None:
        self.alone.append(reply)

    async def _pause(self, _seconds: float) -> None:
        await self.pauses()


@pytest.fixture
async def server() -> AsyncIterator[Rooms]:
    async with Rooms() as playing:
        playing.aliases["#room:archive.test"] = ROOM
        yield playing


@pytest.fixture
def desk(pool: Pool, archive: Archive, server: Rooms, http: aiohttp.ClientSession) -> Desk:
    return Desk(pool, archive, server, http)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfilling, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(comparing_rooms, "POLL_SECONDS", 0.02)


def image(number: int) -> Event:
    content = {"msgtype": "m.image", "body": "cat", "url": f"mxc://{SERVER_NAME}/{number}"}
    return {
        "event_id": f"${number}",
        "type": "m.room.message",
        "sender": "@bob:archive.test",
        "origin_server_ts": 1_700_000_000_000 + number,
        "content": content,
    }


@asynccontextmanager
async def running(part: Backfiller | Reconciler) -> AsyncIterator[None]:
    """What `archiver run` has beside the control room."""
    task = asyncio.create_task(part.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def reader(desk: Desk) -> Backfiller:
    return Backfiller(desk.pool, desk.history, POLICY)


def reconciler(desk: Desk) -> Reconciler:
    at_once = partial(asyncio.sleep, 0)
    every = timedelta(minutes=10)
    return Reconciler(desk.pool, desk.history, POLICY, every, grace=at_once, rest=0)


def never_again() -> Callable[[], Awaitable[object]]:
    async def pause() -> None:
        raise Cancelled("enough")

    return pause


async def test_old_messages_are_read_by_the_worker_and_watched_from_the_room(desk: Desk) -> None:
    """`backfill` of an alias and a link asks once a room, shows how far it is, and tells what it
    brought; given again it has nothing to do."""
    desk.server.add(ROOM, *(image(number) for number in range(5)))
    async with running(reader(desk)):
        reply = await desk.give(
            "backfill", "#room:archive.test", "https://matrix.to/#/%21room%3Aarchive.test?via=a"
        )
        again = await desk.give("backfill", ROOM)
    assert not reply.failed
    assert reply.data["rooms"] == {"asked": 1, "done": 1, "failed": 0, "left_out": 0}
    assert reply.data["events"] == {"read": 5, "new": 5}
    assert "1 room read: 5 events, of these 5 new to the archive" in plain(reply)
    assert "of 1 room read" in plain(desk.shown[0])
    assert again.data["events"] == reply.data["events"]
    [(actor, place, action, target, detail)] = await desk.custody()
    assert (actor, place, action, target) == (ALICE, HERE, "backfill", ROOM)
    assert (detail["rooms"], detail["new"], detail["since"]) == (1, 1, None)


async def test_every_room_is_read_but_those_left_out(desk: Desk) -> None:
    """`backfill --all` reads what the bot may read; what the configuration leaves out is counted,
    and refused by name; a room that cannot be read makes it fail, with the reason."""
    desk.server.add(ROOM, image(1))
    desk.server.add(OTHER, image(2))
    desk.server.add(SECRET_ROOM, image(3))
    desk.server.refused[OTHER] = (403, "M_FORBIDDEN")
    async with running(reader(desk)):
        reply = await desk.give("backfill", "--all")
    assert reply.failed
    assert reply.data["rooms"] == {"asked": 2, "done": 1, "failed": 1, "left_out": 1}
    assert f"{OTHER} is not read: the bot may not read it" in plain(reply)
    assert "1 room left out by capture.rooms" in plain(reply)
    with pytest.raises(ConfigError, match=r"change capture\.rooms"):
        await desk.give("backfill", SECRET_ROOM)
    with pytest.raises(OperationError, match="#none"):
        await desk.give("backfill", "#none:archive.test")
    for wrong in (("backfill",), ("backfill", "--all", ROOM)):
        with pytest.raises(ConfigError, match="--all"):
            await desk.give(*wrong)
    with pytest.raises(Misused, match="no date like 2024-05-31"):
        await desk.give("backfill", ROOM, "--since", "soon")
    with pytest.raises(ConfigError, match="not before --until"):
        await desk.give("backfill", ROOM, "--since", "1d", "--until", "2d")


async def test_whoever_cancels_reading_goes_on_with_the_same_command(desk: Desk) -> None:
    """Cancelled, the rooms that are not read yet are withdrawn, from whoever reads them too; the
    same command goes on where that was."""
    desk.server.add(ROOM, *(image(number) for number in range(250)))
    desk.server.add(OTHER, image(1000))
    gate, cancel = asyncio.Event(), asyncio.Event()

    async def hold_second_page(asked: Any) -> None:
        if asked.room_id == ROOM and asked.token is not None and asked.direction == "b":
            cancel.set()
            await gate.wait()

    async def until_cancelled() -> None:
        await asyncio.sleep(0.01)
        other = "SELECT state = 'done' FROM backfill WHERE room_id = $1"
        read = "SELECT events > 0 FROM backfill WHERE room_id = $1"
        if (
            cancel.is_set()
            and await desk.pool.fetchval(other, OTHER)
            and await desk.pool.fetchval(read, ROOM)
        ):
            raise Cancelled("enough")

    desk.server.before, desk.pauses = hold_second_page, until_cancelled
    async with running(Backfiller(desk.pool, desk.history, POLICY)):
        with pytest.raises(Cancelled, match="1 of 2 rooms read, "):
            await desk.give("backfill", ROOM, OTHER)
        withdrawn = await desk.pool.fetchrow("SELECT * FROM backfill WHERE room_id = $1", ROOM)
        assert withdrawn is not None
        assert (withdrawn["state"], withdrawn["reason"]) == ("failed", f"{ALICE} cancelled it")
        assert withdrawn["cursor"] is not None
        gate.set()
        desk.pauses = partial(asyncio.sleep, 0.01)
        reply = await desk.give("backfill", ROOM, OTHER)
    assert reply.data["rooms"]["done"] == 2
    assert reply.data["events"]["read"] == 251
    assert await desk.actions() == ["backfill", "backfill cancelled", "backfill"]


async def test_reading_that_nobody_does_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no worker runs, the progress says what is missing; the request stays."""
    monkeypatch.setattr(reading_told, "QUIET_SECONDS", 0.0)
    desk.server.add(ROOM, image(1))
    desk.pauses = never_again()
    with pytest.raises(Cancelled, match="0 of 1 room read, "):
        await desk.give("backfill", ROOM)
    assert "has the part `worker`" in plain(desk.shown[-1])


async def test_comparing_tells_what_was_missing_and_where(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`reconcile` makes rooms due, waits for whoever compares them, and tells how many events
    were missing in which room, and which room nobody may read."""
    monkeypatch.setattr(comparing, "QUIET_SECONDS", float("inf"))
    desk.server.add(ROOM, image(1))
    async with running(reconciler(desk)):
        first = await desk.give("reconcile")
        desk.server.add(ROOM, image(2), image(3))
        desk.server.add(OTHER, image(4))
        desk.server.refused[OTHER] = (403, "M_FORBIDDEN")
        reply = await desk.give("reconcile", "#room:archive.test", OTHER)
        with pytest.raises(OperationError, match="#none"):
            await desk.give("reconcile", "#none:archive.test")
    assert first.data[0]["room_id"] == ROOM
    found = {room["room_id"]: (room["found"], room["reason"]) for room in reply.data}
    assert found[ROOM] == (2, None)
    assert "may not read it" in found[OTHER][1]
    assert not reply.failed
    said = plain(reply)
    assert f"{ROOM} · events that were missing 2" in said
    assert f"{OTHER} · not compared the bot may not read it" in said
    noted = await desk.pool.fetch("SELECT action, target, detail::jsonb->'rooms' FROM custody")
    assert [tuple(row) for row in noted] == [
        ("reconcile", None, '"all"'),
        ("reconcile", None, "2"),
    ]
    assert "1 room compared, 2 missing events archived now." in said


async def test_comparing_that_nobody_does_ends_with_a_sentence(desk: Desk) -> None:
    """Where nothing is ever compared, `reconcile` says so at once, or after a while without
    any; cancelled, it says how far it came."""
    desk.server.add(ROOM, image(1))
    desk.config = {"history": {"reconcile_every": None}}
    with pytest.raises(OperationError, match="reconcile_every is null"):
        await desk.give("reconcile")
    desk.config = {}
    with pytest.raises(OperationError, match="0 of 1 room compared, and none for 2 min"):
        await desk.give("reconcile")
    desk.pauses = never_again()
    with pytest.raises(Cancelled, match="0 of 1 room compared"):
        await desk.give("reconcile", ROOM)


async def test_what_failed_is_tried_again(desk: Desk) -> None:
    """`retry` makes all that failed pending and due, and claims of before void."""
    await add(desk.pool, "a", "b", state="failed")
    await add(desk.pool, "left out", state="excluded")
    reply = await desk.give("retry")
    assert plain(reply) == "2 media are tried again."
    for name in ("a", "b"):
        media = await row(desk.pool, name)
        assert (media["state"], media["reason"], media["attempts"]) == ("pending", "a reason", 1)
        assert media["due_in"] <= 0
    assert (await row(desk.pool, "left out"))["state"] == "excluded"
    assert plain(await desk.give("retry", "failed")) == "Nothing has failed."
    assert await desk.custody() == [(ALICE, HERE, "retry", "failed", {"media": 2})]


async def test_one_media_is_tried_now(desk: Desk) -> None:
    """`retry MXC` gives one that failed, that waits, or that waits for the budget its turn now;
    the others are told apart by a sentence."""
    later = timedelta(hours=1)
    await add(desk.pool, "failed", state="failed")
    await add(desk.pool, "waits", "paced", "leased", due=later)
    await desk.pool.execute(
        "UPDATE media SET paced_at = now(), due_at = 'infinity', charged = 7"
        " WHERE media_id = 'paced'"
    )
    await desk.pool.execute("UPDATE media SET unfinished = 1 WHERE media_id = 'leased'")
    for name in ("failed", "waits", "paced"):
        assert plain(await desk.give("retry", str(mxc(name)))) == f"{mxc(name)} is tried now."
        media = await row(desk.pool, name)
        assert (media["state"], media["paced_at"]) == ("pending", None)
        assert media["due_in"] <= 0
    assert (await row(desk.pool, "paced"))["charged"] == 0
    for state in ("excluded", "quarantined", "deleted"):
        await add(desk.pool, state, state=state)
    for name, sentence in (
        ("leased", "is being fetched right now"),
        ("excluded", "is left out by the configuration (a reason)"),
        ("quarantined", "is in quarantine"),
        ("deleted", "was deleted"),
        ("unknown", "is not in the archive"),
    ):
        with pytest.raises(OperationError) as told:
            await desk.give("retry", str(mxc(name)))
        assert f"{mxc(name)} {sentence}" in str(told.value)
    with pytest.raises(Misused, match="mxc://server/id"):
        await desk.give("retry", "everything")
    assert await desk.actions() == ["retry"] * 3


async def test_what_must_stay_is_held_and_released(desk: Desk) -> None:
    """A hold has whoever placed it and why, by any name that Matrix has for the target."""
    assert plain(await desk.give("holds")) == "Nothing is held."
    await desk.give("hold", "#room:archive.test", "a", "court", "case")
    await desk.give("hold", "https://matrix.to/#/@bob:archive.test", "evidence")
    reply = await desk.give("holds")
    held = [(row["target"], row["reason"], row["holder"]) for row in reply.data]
    assert held == [(ROOM, "a court case", ALICE), ("@bob:archive.test", "evidence", ALICE)]
    assert f"{ROOM} · reason a court case · by {ALICE}" in plain(reply)
    with pytest.raises(OperationError, match="held already"):
        await desk.give("hold", ROOM, "again")
    assert plain(await desk.give("unhold", "#room:archive.test")) == f"Released {ROOM}."
    with pytest.raises(OperationError, match="no hold"):
        await desk.give("unhold", ROOM)
    with pytest.raises(Misused, match="REASON"):
        await desk.give("hold", ROOM)
    assert [(line[2], line[3], line[4]) for line in await desk.custody()] == [
        ("hold", ROOM, {"reason": "a court case"}),
        ("hold", "@bob:archive.test", {"reason": "evidence"}),
        ("unhold", ROOM, {}),
    ]


async def test_the_secret_of_a_token_is_told_alone(desk: Desk) -> None:
    """The room and custody learn a token's name alone; it opens the archive until revoked."""
    assert plain(await desk.give("token", "list")) == "There is no token."
    reply = await desk.give("token", "create", "panel", "--scope", "read", "--expires", "30d")
    secret = desk.alone[0].data["token"]
    assert desk.alone[0].parts[-1] == secret
    assert "told you its secret alone" in plain(reply)
    assert secret not in plain(reply) + str(reply.data) + str(await desk.custody())
    async with desk.pool.acquire() as conn:
        token = await tokens.find(conn, tokens.hash_of(secret))
    assert token is not None
    assert (token.name, token.scope) == ("panel", Scope.READ)
    assert token.expires_at is not None
    assert token.expires_at - datetime.now(UTC) > timedelta(days=29)
    listed = await desk.give("token", "list")
    assert "panel · scope read" in plain(listed)
    assert "valid until " in plain(listed)
    assert [row["name"] for row in listed.data] == ["panel"]
    with pytest.raises(OperationError, match="live token called panel"):
        await desk.give("token", "create", "panel", "--scope", "admin")
    await desk.give("token", "revoke", "panel")
    assert "valid revoked " in plain(await desk.give("token", "list"))
    with pytest.raises(OperationError, match="`token list`"):
        await desk.give("token", "revoke", "panel")
    with pytest.raises(Misused, match="scope"):
        await desk.give("token", "create", "x", "--scope", "everything")
    assert await desk.actions() == ["token create", "token revoke"]


async def test_a_secret_that_reaches_nobody_makes_no_token(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the direct message cannot be sent, there is no token."""

    async def unreachable(_reply: Reply) -> None:
        raise OperationError("the homeserver does not answer")

    monkeypatch.setattr(desk, "_tell", unreachable)
    with pytest.raises(OperationError, match="does not answer"):
        await desk.give("token", "create", "panel", "--scope", "read")
    assert await desk.pool.fetchval("SELECT count(*) FROM token") == 0
    assert await desk.actions() == []


async def test_the_shell_prints_nothing_but_the_secret(desk: Desk) -> None:
    """On the shell a new token's secret is all there is to see."""
    reply = await desk.give("token", "create", "panel", "--scope", "read", place="shell")
    assert reply.parts == ()
    assert desk.alone[0].parts == (desk.alone[0].data["token"],)


async def test_a_picture_is_uploaded_once_and_shown_ever_after(
    desk: Desk, archive: Archive
) -> None:
    """`preview` uploads the bytes as archived; another media with the same bytes is the same."""
    media, same = await archive.put(PICTURE, upload_name="a/cat\n.png"), await archive.put(PICTURE)
    reply = await desk.give("preview", str(media))
    assert desk.server.uploads == [PICTURE]
    picture = reply.picture
    assert picture is not None
    assert (str(picture.mxc), picture.mimetype) == ("mxc://homeserver.test/1", "image/png")
    assert (picture.size, picture.width, picture.height) == (len(PICTURE), 16, 9)
    assert picture.name == "a_cat_.png"
    for again in (media, same):
        repeated = (await desk.give("preview", str(again))).picture
        assert repeated is not None
        assert repeated.mxc == picture.mxc
    assert len(desk.server.uploads) == 1
    lines = await archive.pool.fetch("SELECT action, target FROM custody ORDER BY id")
    assert [tuple(line) for line in lines] == [
        ("preview", str(shown)) for shown in (media, media, same)
    ]


async def test_a_large_picture_is_uploaded_as_it_is_read(desk: Desk, archive: Archive) -> None:
    """What rests as an object arrives byte for byte; what the homeserver refuses is told, and
    tried again by the next command."""
    large = PICTURE + bytes(3_000_000)
    media = await archive.put(large)
    desk.server.takes_uploads = False
    with pytest.raises(OperationError, match="did not take the picture"):
        await desk.give("preview", str(media))
    desk.server.takes_uploads = True
    await desk.give("preview", str(media))
    assert desk.server.uploads == [large]


async def test_what_is_no_picture_to_be_shown_gets_a_sentence(
    desk: Desk, archive: Archive
) -> None:
    """Hidden, missing, too large and other media are told apart; nothing is uploaded."""
    text, huge, redacted = [await archive.put(b) for b in (b"words", PICTURE + b"h", PICTURE)]
    await desk.pool.execute(
        "UPDATE blob SET size = 20971521 FROM media WHERE sha256 = blob_sha256 AND media_id = $1",
        huge.media_id,
    )
    event_id = await archive.refer(redacted)
    await desk.pool.execute("UPDATE event SET redacted_by = '$r' WHERE event_id = $1", event_id)
    await desk.pool.execute(
        "UPDATE media SET redacted_at = now() WHERE media_id = $1", redacted.media_id
    )
    hidden = await archive.put(PICTURE)
    await desk.pool.execute(
        "UPDATE media SET state = 'quarantined' WHERE media_id = $1", hidden.media_id
    )
    desk.config = {"capture": {"on_redaction": "hide"}}
    for media, sentence in (
        (text, "is no picture"),
        (huge, "is 20.0 MiB, too large"),
        (redacted, "was redacted"),
        (hidden, "is in quarantine"),
        (await archive.put_state("deleted", "by @root"), "was deleted: by @root"),
        (await archive.put_state("pending", None), "is not archived yet"),
        (await archive.put_state("failed", "M_NOT_FOUND"), "could not be archived: M_NOT_FOUND"),
        (mxc("unknown"), "is not in the archive"),
    ):
        with pytest.raises(OperationError) as told:
            await desk.give("preview", str(media))
        assert f"{media} {sentence}" in str(told.value)
    with pytest.raises(OperationError, match="control room"):
        await desk.give("preview", str(hidden), place="shell")
    assert desk.server.uploads == []
