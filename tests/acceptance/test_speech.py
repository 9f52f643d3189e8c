"""What the bot says and does in the rooms of a real Synapse."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from mautrix.errors import MForbidden

from archiver.capture.powers import Powers
from archiver.matrix.bot import Bot
from archiver.matrix.registration import load_registration
from archiver.matrix.speech import Speech
from demo.people import People
from tests.acceptance.conftest import Site
from tests.support.matrix import CLIENT, MatrixError, MatrixUser
from tests.support.samples import png

REASON = "this is not the control room"
NOTICE = {"msgtype": "m.notice", "body": "All is well."}


@pytest.fixture
async def speech(site: Site, http: aiohttp.ClientSession) -> Speech:
    """The bot of the site, registered; its archive need not run."""
    path, name = site.archive.registration, site.synapse.server_name
    registration = load_registration(path, name)
    await Bot(http, site.synapse.url, registration).register()
    return Speech(http, site.synapse.url, registration)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


async def events(user: MatrixUser, room_id: str, kind: str) -> list[dict[str, Any]]:
    path = f"{CLIENT}/rooms/{quote(room_id)}/messages?dir=b&limit=50"
    return [event for event in (await user.call("GET", path))["chunk"] if event["type"] == kind]


async def room_with(speech: Speech, user: MatrixUser, **options: Any) -> str:
    room_id = await user.create_room(invite=[speech.user_id], **options)
    await speech.join(room_id)
    return room_id


async def test_a_message_and_a_reaction_are_sent_once(speech: Speech, people: People) -> None:
    """The same transaction again is the same event."""
    alice = people.alice
    room_id = await room_with(speech, alice)
    said = [await speech.send(room_id, "m.room.message", NOTICE, "said/1?") for _ in range(2)]
    other = await speech.send(room_id, "m.room.message", NOTICE, "said/2?")
    assert (said[0] == said[1], said[0] == other) == (True, False)
    keys = [await speech.react(room_id, other, "✅", "reacted") for _ in range(2)]
    assert keys[0] == keys[1]
    messages = await events(alice, room_id, "m.room.message")
    assert [event["event_id"] for event in messages] == [other, said[0]]
    assert {event["sender"] for event in messages} == {speech.user_id}
    [reaction] = await events(alice, room_id, "m.reaction")
    relation = reaction["content"]["m.relates_to"]
    assert relation == {"rel_type": "m.annotation", "event_id": other, "key": "✅"}


async def test_it_speaks_nowhere_uninvited(speech: Speech, people: People) -> None:
    """Where it is not in, it may not speak and does not join, even if it could."""
    room_id = await people.alice.create_room(preset="public_chat")
    with pytest.raises(MForbidden):
        await speech.send(room_id, "m.room.message", NOTICE, "uninvited")
    with pytest.raises(MForbidden):
        await speech.power_levels(room_id)
    assert room_id not in await speech.joined_rooms()
    private = await people.alice.create_room()
    with pytest.raises(MForbidden):
        await speech.join(private)


async def test_it_joins_and_leaves_as_told(speech: Speech, people: People) -> None:
    """And says why it leaves; an invitation is declined the same way."""
    alice = people.alice
    room_id = await room_with(speech, alice)
    assert room_id in await speech.joined_rooms()
    await speech.leave(room_id, REASON)
    assert room_id not in await speech.joined_rooms()
    declined = await alice.create_room(invite=[speech.user_id])
    await speech.leave(declined, REASON)
    for left in (room_id, declined):
        path = f"{CLIENT}/rooms/{quote(left)}/state/m.room.member/{quote(speech.user_id)}"
        content = await alice.call("GET", path)
        assert (content["membership"], content["reason"]) == ("leave", REASON)


async def test_a_file_is_uploaded(speech: Speech, people: People) -> None:
    """Piece by piece, and everybody gets the same bytes."""
    data = png(40, 30, (200, 90, 20))
    mxc = await speech.upload(pieces(data), len(data), "image/png", "Größe & Co.png")
    assert mxc.server_name == "archive.test"
    assert await people.alice.download(str(mxc)) == data


async def test_it_finds_rooms_by_their_alias(speech: Speech, people: People) -> None:
    """Without being in them; None for what does not exist."""
    name = people.alice.user_id[1:].partition(":")[0]
    room_id = await people.alice.create_room(room_alias_name=f"of-{name}")
    assert await speech.room_of(f"#of-{name}:archive.test") == room_id
    assert await speech.room_of("#nowhere/at all?:archive.test") is None


@pytest.mark.parametrize(("version", "power"), [("11", 100), ("12", math.inf)])
async def test_it_knows_who_may_what(
    speech: Speech, people: People, version: str, power: float
) -> None:
    """Also in rooms whose power levels do not name who made them."""
    alice, bob = people.alice.user_id, people.bob.user_id
    levels = {"users": {bob: 50}} if version == "12" else {"users": {alice: 100, bob: 50}}
    room_id = await room_with(
        speech, people.alice, room_version=version, power_level_content_override=levels
    )
    created = await speech.created(room_id)
    powers = Powers(await speech.power_levels(room_id), created["content"], created["sender"])
    assert [powers.level(user) for user in (alice, bob, speech.user_id)] == [power, 50, 0]


async def test_it_knows_whether_a_room_is_encrypted(speech: Speech, people: People) -> None:
    """Which nobody can take back."""
    alice = people.alice
    room_id = await room_with(speech, alice)
    assert not await speech.is_encrypted(room_id)
    await alice.send_state(room_id, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    assert await speech.is_encrypted(room_id)


async def test_a_direct_room_is_for_two(speech: Speech, people: People) -> None:
    """It is used again while nobody left or came; who is written to cannot bring others along."""
    alice, bob = people.alice, people.bob
    room_id = await speech.direct_room(alice.user_id)
    assert await speech.direct_room(alice.user_id) == room_id
    assert await speech.direct_room(bob.user_id) != room_id
    await alice.join(room_id)
    assert await speech.direct_room(alice.user_id) == room_id
    path = f"{CLIENT}/rooms/{quote(room_id)}"
    with pytest.raises(MatrixError, match="403"):
        await alice.call("POST", f"{path}/invite", json={"user_id": bob.user_id})
    await alice.call("POST", f"{path}/leave", json={})
    again = await speech.direct_room(alice.user_id)
    assert again != room_id
    assert await speech.direct_room(alice.user_id) == again
