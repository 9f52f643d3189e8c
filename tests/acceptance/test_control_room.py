"""Administrators command the archive from a room of a real homeserver."""

from __future__ import annotations

import asyncio
import re
import secrets
from datetime import UTC, datetime
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest
import yaml

from archiver.control.registry import COMMANDS
from tests.acceptance.conftest import Site, newcomers, started
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.control import DONE, FAILED, MESSAGE, Answer, Event, Seat
from tests.support.control_room import PREFIX, SOON, Control
from tests.support.matrix import CLIENT
from tests.support.samples import png

CONFIRM_WITHIN = "10 s"


@pytest.fixture
async def setting(site: Site, archive: Archiver, http: aiohttp.ClientSession) -> Control:
    """Two administrators and somebody else in a room, without the bot; nothing is started."""
    people = await newcomers(site.synapse, http)
    name = f"control-{secrets.token_hex(4)}"
    room_id = await people.admin.create_room(
        name="Control", room_alias_name=name, invite=[people.bob.user_id, people.alice.user_id]
    )
    await people.bob.join(room_id)
    await people.alice.join(room_id)
    server = site.synapse.server_name
    admins = [people.admin.user_id, people.bob.user_id]
    alias = f"#{name}:{server}"
    scan = {"with": "command", "command": ["sh", "-c", "cat > /dev/null"]}  # it is all clean
    bot = {"control_room": alias, "admins": admins}
    archive.configure(site.synapse.url, {"bot": bot, "scan": scan})
    return Control(site.synapse, archive, http, people, alias, room_id, f"@archiver:{server}")


@pytest.fixture
async def control(setting: Control) -> Control:
    """The archive is up, and its bot is in the control room."""
    await come(setting)
    return setting


async def come(control: Control) -> None:
    """Starts the archive and has its bot come to the control room."""
    await started(control.archive, control.http)
    await control.invite(control.people.admin, control.room_id)
    await control.came()


async def test_the_bot_comes_to_its_control_room_alone(setting: Control) -> None:
    """It comes when one of bot.admins asks it there, and tells how it is commanded. It comes to no
    other room, and for nobody else."""
    people = setting.people
    await started(setting.archive, setting.http)
    elsewhere = await people.admin.create_room(invite=[people.bob.user_id])
    await setting.invite(people.alice, people.room)
    await setting.invite(people.admin, elsewhere)
    await setting.invite(people.alice, setting.room_id)
    await setting.invitations_dealt_with(people.alice, 2)
    await setting.invitations_dealt_with(people.admin, 1)
    assert not await setting.bots_rooms() & {people.room, elsewhere, setting.room_id}
    await setting.invite(people.bob, setting.room_id)
    await setting.came()
    assert not await setting.bots_rooms() & {people.room, elsewhere}
    [hello] = [e for e in (await setting.ann.seen()).by(setting.bot) if e["type"] == MESSAGE]
    assert f"{PREFIX} help" in hello["content"]["body"]


async def test_the_conversation(control: Control) -> None:
    """Every command does in the room what it says, custody tells of what it changed, and nothing
    that the bot said is in the archive."""
    await control.people.admin.make_admin(control.bot)  # it will ask for a room's old messages
    reader = await control.reader("admin")
    parts = _help, _look_around, _look_at_one, _preview, _tokens, _work, _keep, _upkeep, _delete
    for part in parts:
        await part(control, reader)
    assert control.given == {one.name for one in COMMANDS}
    assert not await control.fetch("SELECT FROM event WHERE sender = $1", control.bot)


async def _help(control: Control, _reader: Reader) -> None:
    listed = await control.ask("help")
    shell = await asyncio.to_thread(control.archive.command, "help")
    for one in COMMANDS:
        assert re.search(
            rf"^• {one.name} · .*{re.escape(one.summary)}$", listed.body, re.MULTILINE
        )
        assert f"<li><strong>{one.name}</strong>" in listed.html
        assert one.name in shell
        assert one.summary in shell
    told = await control.ask("help hold")
    assert "hold TARGET REASON" in told.body
    thread = await control.ann.say("Which one is it?")
    relation = (await control.ask("version", thread=thread)).content["m.relates_to"]
    assert (relation["rel_type"], relation["event_id"]) == ("m.thread", thread)
    unknown = await control.ask("stauts", worked=False)
    assert "`status`" in unknown.body
    wrong = await control.ask("show nonsense", worked=False)
    assert "'nonsense' is not a media like mxc://server/id" in wrong.body
    assert "show" in wrong.body


async def _look_around(control: Control, reader: Reader) -> None:
    await control.post(reader, "tulip.png")
    people, room = control.people, control.people.room
    assert "database" in (await control.ask("status")).body
    assert "Media by state:" in (await control.ask("stats")).body
    for by, expected in (
        ("room", "The garden"), ("user", people.alice.user_id), ("type", "image/png"),
        ("month", f"{datetime.now(UTC):%Y-%m}"),
    ):  # fmt: skip
        assert expected in (await control.ask(f"stats {by} --now")).body
    await eventually("the room is known", lambda: _is_known(control), SOON)
    assert "The garden" in (await control.ask("rooms")).body
    name = f"garden-{secrets.token_hex(4)}"
    alias = f"#{name}:{control.synapse.server_name}"
    path = f"{CLIENT}/directory/room/{quote(alias)}"
    await people.alice.call("PUT", path, json={"room_id": room})
    assert room in (await control.ask(f"room {alias}")).body
    assert "archive.test" in (await control.ask("config")).body
    secrets_ = yaml.safe_load(control.archive.registration.read_text("utf-8"))
    told = [e["content"].get("body", "") for e in (await control.ann.seen()).by(control.bot)]
    assert not any(secrets_[key] in text for key in ("as_token", "hs_token") for text in told)
    assert re.search(r"\d+\.\d+", (await control.ask("version")).body)


async def _is_known(control: Control) -> bool:
    """Rooms are known a little later than what is posted in them."""
    return bool(await control.fetch("SELECT FROM room WHERE room_id = $1", control.people.room))


async def _look_at_one(control: Control, reader: Reader) -> None:
    name = f"rose-{secrets.token_hex(4)}.png"
    posted = await control.post(reader, name)
    link = f"https://matrix.to/#/{control.people.room}/{posted.event_id}?via=archive.test"
    for target in (posted.mxc, link):
        shown = await control.ask(f"show {target}")
        assert posted.mxc in shown.body
        assert posted.event_id in shown.body
        assert "ready" in shown.body
    assert len((await reader.state(posted.mxc))["references"]) == 1  # to ask is not to post
    assert posted.mxc in (await control.ask(f"find {name}")).body


async def _preview(control: Control, reader: Reader) -> None:
    posted = await control.post(reader, "daisy.png")
    pictures = []
    for _ in range(2):
        said = await control.ann.say(f"{PREFIX} preview {posted.mxc}")
        control.given.add("preview")
        assert await control.ann.marked(said) == {DONE}
        [picture] = [
            event["content"]
            for event in (await control.ann.seen()).replies(said, control.bot)
            if event["content"]["msgtype"] == "m.image"
        ]
        pictures.append(picture)
    [mxc] = {picture["url"] for picture in pictures}
    assert mxc != posted.mxc
    assert await control.people.admin.download(mxc) == posted.data
    again = await control.post(reader)  # pushed after it
    assert await reader.state(again.mxc)
    assert await reader.state(mxc) == {}


async def _tokens(control: Control, _reader: Reader) -> None:
    name = f"panel-{secrets.token_hex(4)}"
    before = await control.bots_rooms()
    created = await control.ask(f"token create {name} --scope read")
    assert "mma_" not in created.body + created.html
    [direct] = await control.bots_rooms() - before
    path = f"{CLIENT}/rooms/{quote(direct)}/joined_members"
    await control.people.admin.join(direct)
    told = await Seat(control.people.admin, direct, control.bot).seen()
    [secret] = {match for e in told.by(control.bot) for match in _secrets(e)}
    owner = Reader(control.http, control.archive.url, secret)
    assert await owner.stats()
    members = await control.people.admin.call("GET", path)
    assert set(members["joined"]) == {control.bot, control.people.admin.user_id}
    listed = await control.ask("token list")
    assert name in listed.body
    assert secret not in listed.body
    await control.ask(f"token revoke {name}")

    async def is_refused() -> bool:
        async with owner.ask("/api/v1/stats") as answer:
            return answer.status == 401

    await eventually("the token is refused", is_refused)
    ann = control.people.admin.user_id
    assert await control.custody("token create") == [(ann, name)]
    assert await control.custody("token revoke") == [(ann, name)]


def _secrets(event: Event) -> list[str]:
    return re.findall(r"mma_[\w-]+", event["content"].get("body", ""))


async def _work(control: Control, reader: Reader) -> None:
    ann, room = control.people.admin.user_id, control.people.room
    old = await control.post(reader)
    await control.lose(old)
    assert await reader.state(old.mxc) == {}
    # The control room's own past as well: what the bot said there stays out all the same.
    done = await control.ask(f"backfill {room} {control.room_id}")
    await reader.until("ready", old.mxc)
    assert "2 rooms read" in done.body
    replies = (await control.ann.seen()).replies(done.said, control.bot)
    assert len(replies) <= 2  # how it goes on, which is edited, and what came of it
    assert await control.custody("backfill") == [(ann, None)]
    assert "2 rooms compared" in (await control.ask(f"reconcile {room} {control.room_id}")).body
    assert await control.custody("reconcile") == [(ann, None)]
    posted = await control.post(reader)
    failing = await control.people.alice.upload(png(5, 5, (5, 5, 5)))
    await control.people.admin.delete_media(failing)
    await control.people.alice.send_image(control.people.room, failing)
    tries = await control.tries(reader, failing, 0)
    await control.ask(f"retry {failing}")
    await control.tries(reader, failing, tries)
    assert await control.custody("retry") == [(ann, failing)]
    verified = await control.ask(f"verify {posted.mxc}")
    assert "damaged" not in verified.body.replace("0 damaged", "")


async def _keep(control: Control, reader: Reader) -> None:
    posted, ann = await control.post(reader), control.people.admin.user_id
    plain = await control.reader("read")
    await control.ask(f"quarantine {posted.mxc}")
    async with plain.get(posted.mxc) as answer:
        assert answer.status == 404
    await control.ask(f"release {posted.mxc}")
    assert await plain.download(posted.mxc) == posted.data
    await control.ask(f"quarantine {control.people.room} all of it")
    async with plain.get(posted.mxc) as answer:
        assert answer.status == 404
    await control.ask(f"release {control.people.alice.user_id}")
    assert await plain.download(posted.mxc) == posted.data
    await control.ask(f"hold {posted.mxc} evidence of the day")
    assert "evidence of the day" in (await control.ask("holds")).body
    asked = await control.question(f"delete {posted.mxc}")
    assert "held" in asked.body
    await control.ann.react(asked.event_id, DONE)
    await control.settled(asked)
    assert await plain.download(posted.mxc) == posted.data
    await control.ask(f"unhold {posted.mxc}")
    assert posted.mxc not in (await control.ask("holds")).body
    targets = [posted.mxc, control.people.room]
    assert await control.custody("quarantine") == [(ann, target) for target in targets]
    targets = [posted.mxc, control.people.alice.user_id]
    assert await control.custody("release") == [(ann, target) for target in targets]
    assert await control.custody("hold") == [(ann, posted.mxc)]
    assert await control.custody("unhold") == [(ann, posted.mxc)]


async def _upkeep(control: Control, reader: Reader) -> None:
    posted, ann = await control.post(reader), control.people.admin.user_id
    assert "object" not in (await control.ask(f"show {posted.mxc}")).body
    assert "Moved" in (await control.ask("storage move --to filesystem --larger-than 0")).body
    assert "object" in (await control.ask(f"show {posted.mxc}")).body
    assert await reader.download(posted.mxc) == posted.data
    assert "Moved" in (await control.ask("storage move --to inline")).body
    assert {row[0] for row in await control.custody("storage move")} == {ann}
    assert "are where they should be" in (await control.ask("sweep")).body
    assert "no rules" in (await control.ask("retention plan")).body
    assert "no rule" in (await control.ask("retention run", worked=False)).body
    told = (await control.ask(f"custody {control.people.room}")).body
    assert ann in told
    assert "quarantine" in told
    await control.ask("custody verify")
    assert "The scanner answers" in (await control.ask("scan")).body
    assert "1 file of" in (await control.ask(f"scan {posted.mxc}")).body
    assert "scanned again" in (await control.ask("scan --all")).body
    assert await control.custody("scan again") == [(ann, posted.mxc), (ann, "all")]


async def _delete(control: Control, reader: Reader) -> None:
    posted = await control.post(reader)
    asked = await control.question(f"delete {posted.mxc}")
    assert "1 media" in asked.body
    foreign = await control.ben.react(asked.event_id, DONE)
    await control.dealt_with(foreign)
    await asyncio.to_thread(control.archive.kill)
    await asyncio.to_thread(control.archive.start)
    assert await reader.download(posted.mxc) == posted.data
    await control.ann.react(asked.event_id, DONE)
    await reader.until("deleted", posted.mxc)
    async with reader.get(posted.mxc) as answer:
        assert answer.status == 404
    assert "Deleted 1 media" in (await control.settled(asked)).body
    ann = control.people.admin.user_id
    assert await control.custody("delete") == [(ann, posted.mxc)]
    assert ann in (await reader.state(posted.mxc))["reason"]


async def test_cancel_changes_nothing(control: Control) -> None:
    """❌ under the question, and there is everything as before; OK after it comes too late."""
    reader = await control.reader("read")
    posted = await control.post(reader)
    asked = await control.question(f"delete {posted.mxc}")
    await control.ann.react(asked.event_id, FAILED)
    await control.settled(asked)
    late = await control.ann.react(asked.event_id, DONE)
    await control.dealt_with(late)
    assert await reader.download(posted.mxc) == posted.data
    assert await control.custody("delete") == []


async def test_a_question_expires(setting: Control) -> None:
    """After bot.confirm_within its message says so, and OK changes nothing any more."""
    settings = {"bot": {"confirm_within": CONFIRM_WITHIN}}
    setting.archive.configure(setting.synapse.url, settings)
    await come(setting)
    reader = await setting.reader("read")
    posted = await setting.post(reader)
    asked = await setting.question(f"delete {posted.mxc}")

    def is_expired(answer: Answer) -> bool:
        return "expired" in answer.body

    await setting.ann.answer_to(asked.said, is_expired)
    await setting.dealt_with(await setting.ann.react(asked.event_id, DONE))
    assert await reader.download(posted.mxc) == posted.data
    assert await setting.custody("delete") == []


async def test_nobody_else_commands(control: Control) -> None:
    """Who is no administrator, and administrators elsewhere, get no answer at all; the log and
    custody tell that they tried."""
    people = control.people
    reader = await control.reader("read")
    posted = await control.post(reader)
    elsewhere = Seat(people.bob, people.room, control.bot)
    tried = [
        await control.eve.say(f"{PREFIX} quarantine {posted.mxc}"),
        await elsewhere.say(f"{PREFIX} quarantine {posted.mxc}"),
    ]
    for said in tried:
        await control.dealt_with(said)
    for seat in (control.ann, elsewhere):
        seen = await seat.seen()
        for said in tried:
            assert not seen.replies(said, control.bot)
            assert not seen.keys(said, control.bot)
    assert await reader.download(posted.mxc) == posted.data
    rows = await control.fetch(
        "SELECT actor, place, action FROM custody WHERE place = ANY($1) ORDER BY id",
        [control.room_id, people.room],
    )
    assert [tuple(row) for row in rows] == [
        (people.alice.user_id, control.room_id, "refused"),
        (people.bob.user_id, people.room, "refused"),
    ]
    assert people.alice.user_id in control.archive.log


async def test_a_power_level_lets_others_command(setting: Control) -> None:
    """With bot.power_level whoever has that much power in the control room commands, too; and a
    bot that was asked to come before it was there comes when it is."""
    people = setting.people
    path = f"{CLIENT}/rooms/{quote(setting.room_id)}/state/m.room.power_levels"
    levels = await people.admin.call("GET", path)
    levels["users"][people.bob.user_id] = 50
    await people.admin.call("PUT", path, json=levels)
    rules = {"admins": [people.admin.user_id], "power_level": 50}
    setting.archive.configure(setting.synapse.url, {"bot": rules})
    await setting.invite(people.admin, setting.room_id)
    await started(setting.archive, setting.http)
    await setting.came()
    assert (await setting.ben.ask(f"{PREFIX} version")).worked
    said = await setting.eve.say(f"{PREFIX} version")
    await setting.dealt_with(said)
    assert not (await setting.eve.seen()).replies(said, setting.bot)
    assert await setting.custody("refused") == [(people.alice.user_id, said)]


async def test_custody_is_for_ever(control: Control) -> None:
    """Not even the archive's own database user changes a line of custody, or takes one away."""
    await control.ask("token list")
    await control.ask("hold mxc://archive.test/none never seen")
    for change in (
        "UPDATE custody SET actor = 'nobody'", "DELETE FROM custody", "TRUNCATE custody"
    ):  # fmt: skip
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await control.fetch(change)
    [row] = await control.fetch(
        "SELECT actor, action, target FROM custody WHERE place = $1", control.room_id
    )
    ann = control.people.admin.user_id
    assert tuple(row) == (ann, "hold", "mxc://archive.test/none")
