"""What was posted before the archive was there is archived like everything else."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import pytest
import yaml

from demo.people import People
from tests.acceptance.conftest import UNFORESEEN, Site, new_folder, started
from tests.support.archiver import ARCHIVER, Archiver, eventually
from tests.support.matrix import CLIENT, MatrixUser
from tests.support.process import Server
from tests.support.samples import png
from tests.support.synapse import Synapse

if TYPE_CHECKING:
    from archiver.db.pool import Pool

ROOMS, LONG, SHORT = 20, 1_500, 75
WORDS = "nobody archives these ordinary words"
AT_ONCE = 12
POLL = "org.matrix.msc3381.poll"


class History:
    """People who post, and what an archive of it must have in the end."""

    def __init__(self, alice: MatrixUser, bob: MatrixUser) -> None:
        self.alice, self.bob = alice, bob
        self.rooms: list[str] = []
        self.media: dict[str, bytes] = {}
        self.kept: set[str] = set()
        self.texts: set[str] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def post(self) -> None:
        """3,000 events in 20 rooms, one of them much longer than a page."""
        await self._show_faces()
        await asyncio.gather(*(self._room(LONG if n == 0 else SHORT) for n in range(ROOMS)))

    async def upload(self) -> str:
        """A new media."""
        data = png(8, 8, (1, 2, 3)) + secrets.token_bytes(64)
        async with self._slots:
            mxc = await self.alice.upload(data)
        self.media[mxc] = data
        return mxc

    async def _show_faces(self) -> None:
        for user in (self.alice, self.bob):
            path = f"{CLIENT}/profile/{user.user_id}/avatar_url"
            await user.call("PUT", path, json={"avatar_url": await self.upload()})

    async def _room(self, events: int) -> None:
        async with self._slots:
            room = await self.alice.create_room(name="Old days", preset="public_chat")
            await self.bob.join(room)
        self.rooms.append(room)
        avatar = {"url": await self.upload()}
        self.kept.add(await self.alice.send_state(room, "m.room.avatar", avatar))
        pictures = [await self.upload() for _ in range(3)]
        await asyncio.gather(*(self._one(room, n, pictures) for n in range(events - 10)))

    async def _one(self, room: str, number: int, pictures: list[str]) -> None:
        async with self._slots:
            user = (self.alice, self.bob)[number % 2]
            picture = pictures[number % 3]
            match number % 25:
                case 0:
                    event_id = await user.send_image(room, picture)
                case 3:
                    event_id = await user.send(room, *_file(picture))
                case 6:
                    event_id = await user.send(room, *_attachment(picture))
                case 9:
                    event_id = await user.send(room, "m.sticker", {"body": "s", "url": picture})
                case 12:
                    event_id = await user.send(room, "m.room.encrypted", {"ciphertext": "AwgA"})
                case 15:
                    event_id = await self._edit(user, room, picture)
                case 18:
                    event_id = await user.send(room, f"{POLL}.start", {f"{POLL}.start": {}})
                case 21 if number < 50:
                    event_id = await user.send_image(room, picture)
                    self.kept.add(await user.redact(room, event_id))
                case _:
                    text = {"msgtype": "m.text", "body": f"{WORDS} {number}"}
                    self.texts.add(await user.send(room, "m.room.message", text))
                    return
            self.kept.add(event_id)

    async def _edit(self, user: MatrixUser, room: str, picture: str) -> str:
        event_id = await user.send_image(room, picture)
        self.kept.add(event_id)
        new = {"msgtype": "m.image", "body": "b.png", "url": picture}
        relation = {"rel_type": "m.replace", "event_id": event_id}
        content = {**new, "m.new_content": new, "m.relates_to": relation}
        return await user.send(room, "m.room.message", content)


def _file(mxc: str) -> tuple[str, dict[str, Any]]:
    info = {"mimetype": "text/plain", "thumbnail_url": mxc}
    return "m.room.message", {"msgtype": "m.file", "body": "a.txt", "url": mxc, "info": info}


def _attachment(mxc: str) -> tuple[str, dict[str, Any]]:
    file = {"url": mxc, "key": {"k": "a"}, "iv": "b", "v": "v2"}
    return "m.room.message", {"msgtype": "m.image", "body": "a.png", "file": file}


class Place:
    """A homeserver with a history, and an archive that was added to it just now."""

    def __init__(self, synapse: Synapse, archive: Archiver, admin: MatrixUser) -> None:
        self.synapse, self.archive, self.admin = synapse, archive, admin
        self.history: History
        self._runs = 0

    def backfill(self) -> Server:
        """`archiver backfill --all`, which says nothing before its end."""
        self._runs += 1
        command = [*ARCHIVER, "backfill", "--all", "--json", "-c", str(self.archive.config)]
        log = self.archive.folder / f"backfill{self._runs}.log"
        return Server("backfill", command, log, ready=lambda: True)

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        """`archiver backfill …`: its status, and what it said."""
        config = ("-c", str(self.archive.config))
        done = await asyncio.to_thread(self.archive.attempt, "backfill", *arguments, *config)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
async def place(
    services_folder: Path, synapse_python: Path, http: aiohttp.ClientSession, database_url: str
) -> AsyncIterator[Place]:
    """Nothing of it was ever pushed: the registration comes after everything."""
    folder = new_folder(services_folder)
    synapse, archive = Synapse(synapse_python, folder / "synapse"), Archiver(folder / "archive")
    await asyncio.to_thread(synapse.start)
    place = Place(synapse, archive, await synapse.register(http, "root", admin=True))
    users = [await synapse.register(http, name) for name in ("alice", "bob")]
    place.history = History(*users)
    yield place
    await asyncio.to_thread(synapse.stop)
    for log in archive.folder.glob("*.log"):
        assert UNFORESEEN not in log.read_text("utf-8")


async def _add_archive(place: Place, database_url: str) -> str:
    """Adds the archive to the homeserver, and returns the name of its bot."""
    lines = yaml.safe_load(await asyncio.to_thread(place.archive.init))
    settings = place.archive.folder.parent / "synapse" / "homeserver.yaml"
    settings.write_text(json.dumps({**json.loads(settings.read_text("utf-8")), **lines}), "utf-8")
    await asyncio.to_thread(place.synapse.restart)
    more = {"database": {"url": database_url}, "worker": {"lease": "2s"}}
    place.archive.configure(place.synapse.url, more)
    return _bot(place.synapse)


def _bot(synapse: Synapse) -> str:
    return f"@archiver:{synapse.server_name}"


async def test_a_history_older_than_the_archive_is_archived(
    place: Place, database_url: str, pool: Pool
) -> None:
    """20 rooms with 3,000 events of all kinds: `archiver backfill --all`, killed twice on the
    way, ends with every kept event and every media that can be had, and without ordinary text."""
    history = place.history
    await history.post()
    lost, _ = history.media.popitem()
    await place.admin.delete_media(lost)
    bot = await _add_archive(place, database_url)
    status, _, said = await place.command("--all")
    assert status == 0
    assert f"/_synapse/admin/v1/users/{bot}/admin" in said
    await place.admin.make_admin(bot)

    for progress in ("events > 0", "state = 'done'"):
        run = place.backfill()
        await asyncio.to_thread(run.start)

        async def begun(condition: str = progress, run: Server = run) -> bool:
            rows = await pool.fetchval(f"SELECT count(*) FROM backfill WHERE {condition}")  # noqa: S608  # the test's own words
            return bool(rows) or not run.alive

        await eventually("old messages are read", begun)
        await asyncio.to_thread(run.kill)

    status, told, said = await place.command("--all", "--json")
    assert status == 0, said
    result = json.loads(told)
    assert result["rooms"] == {"asked": ROOMS, "done": ROOMS, "failed": 0, "left_out": 0}
    assert result["events"]["read"] >= len(history.kept) + len(history.texts)
    await _check(pool, history, lost)


async def _check(pool: Pool, history: History, lost: str) -> None:
    events = {row["event_id"] for row in await pool.fetch("SELECT event_id FROM event")}
    assert history.kept - events == set()
    assert history.texts & events == set()
    words = "SELECT count(*) FROM event WHERE strpos(content::text, $1) > 0 OR raw IS NOT NULL"
    assert await pool.fetchval(words, WORDS) == 0
    assert await pool.fetchval("SELECT count(DISTINCT room_id) FROM event") == ROOMS
    assert {row["source"] for row in await pool.fetch("SELECT source FROM event")} == {"backfill"}
    rows = await pool.fetch("SELECT server_name, media_id, state, blob_sha256 FROM media")
    ready = {
        f"mxc://{row['server_name']}/{row['media_id']}": row["blob_sha256"]
        for row in rows
        if row["state"] == "ready"
    }
    assert ready == {mxc: sha256(data).digest() for mxc, data in history.media.items()}
    reason = await pool.fetchval("SELECT reason FROM media WHERE media_id = $1", Path(lost).name)
    assert "M_NOT_FOUND" in reason
    complete = await pool.fetch(
        "SELECT room_id FROM room WHERE complete_from = '-infinity' AND position IS NOT NULL"
    )
    assert {row["room_id"] for row in complete} == set(history.rooms)


async def test_a_bot_without_power_reads_the_rooms_that_it_is_in(
    site: Site, archive: Archiver, http: aiohttp.ClientSession, people: People
) -> None:
    """Others are told with what to do about it, and exit status 1; what is left out on purpose or
    is no room is a wrong usage. A running archive makes no difference. With
    more power it goes the other way to the same end."""
    config = ("-c", str(archive.config))
    picture = await people.alice.upload(png(16, 16, (9, 9, 9)) + secrets.token_bytes(8))
    await people.alice.send_image(people.room, picture)
    name = f"garden-{secrets.token_hex(4)}"
    alias = f"#{name}:{site.synapse.server_name}"
    body = {"room_id": people.room}
    await people.alice.call("PUT", f"{CLIENT}/directory/room/{quote(alias)}", json=body)

    async def backfill(*arguments: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(archive.attempt, "backfill", *arguments, *config)
        return done.returncode, done.stdout, done.stderr

    status, told, said = await backfill(alias)
    assert status == 1
    assert f"{people.room} is not read: the bot may not read it: make the bot an admin" in told
    assert "1 of 1 rooms could not be read" in told
    token = yaml.safe_load(archive.registration.read_text("utf-8"))["as_token"]
    bot = MatrixUser(http, site.synapse.url, _bot(site.synapse), token)
    room, as_bot = f"{CLIENT}/rooms/{quote(people.room)}", {"user_id": bot.user_id}
    await people.alice.call("POST", f"{room}/invite", json=as_bot)
    posted = datetime.now(UTC).isoformat()
    await bot.call("POST", f"{room}/join", json={}, params=as_bot)
    later = await people.alice.upload(png(16, 16, (9, 9, 9)) + secrets.token_bytes(8))
    await people.alice.send_image(people.room, later)
    for where in (people.room, people.direct):
        for _ in range(4):
            await people.alice.send(where, "m.room.message", {"msgtype": "m.text", "body": WORDS})
    status, told, said = await backfill(people.room, "--until", posted, "--json")
    assert status == 0, said
    before = json.loads(told)
    assert sum(media["media"] for media in before["media"]["states"]) == 1

    archive.configure(site.synapse.url, {"capture": {"rooms": {"except": [people.direct]}}})
    status, _, said = await backfill(people.direct)
    assert (status, "capture.rooms" in said) == (2, True)
    for wrong in ((), ("--all", people.room), ("garden",), ("--all", "--since", "soon")):
        status, _, said = await backfill(*wrong)
        assert status == 2, wrong
    status, _, said = await backfill("#none:archive.test")
    assert (status, "#none:archive.test: " in said) == (1, True)

    reader = await started(archive, http)
    status, told, said = await backfill("--all", "--since", "30d", "--json")
    assert status == 0, said
    assert json.loads(told)["events"]["read"] > before["events"]["read"] > 0
    await reader.until("ready", picture, later)

    await people.admin.make_admin(bot.user_id)
    archive.configure(site.synapse.url, {"capture": {"rooms": {"except": []}}})
    _, told, _ = await backfill(people.direct, "--until", posted, "--json")
    _, all_told, _ = await backfill(people.direct, "--json")
    assert json.loads(all_told)["events"]["read"] > json.loads(told)["events"]["read"] > 0
