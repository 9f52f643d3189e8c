"""Faces of people and rooms: a new one shows at once everywhere, and the old ones are kept."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from demo.people import People
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.matrix import CLIENT, MatrixUser
from tests.support.samples import png


@pytest.fixture
def servers(archive: Archiver, second_url: str, http: aiohttp.ClientSession) -> list[Reader]:
    """The same reader at two serving processes of one archive."""
    return [Reader(http, url, archive.token) for url in (archive.url, second_url)]


async def put_on(user: MatrixUser, picture: bytes) -> str:
    """A new avatar in the profile, which every room of the user is told."""
    mxc = await user.upload(picture)
    path = f"{CLIENT}/profile/{quote(user.user_id)}/avatar_url"
    await user.call("PUT", path, json={"avatar_url": mxc})
    return mxc


async def told(reader: Reader, user: MatrixUser, what: str, value: str | None) -> bool:
    """True when both rooms of a user have told the archive of a change of the profile."""
    path = f"/api/v1/users/{quote(user.user_id)}"
    if await reader.lacks(path):
        return False
    history = (await reader.json(path))["history"]
    return (history[0][what], history[0]["rooms"]) == (value, 2)


async def test_a_new_face_shows_at_once_at_every_server(
    servers: list[Reader], people: People
) -> None:
    """As soon as it is archived both servers have it, though each gave out the old one a moment
    ago; taken off, it is gone; the history has all of it, once each for all rooms."""
    alice, mxcs = people.alice, []
    path = f"/api/v1/users/{quote(alice.user_id)}"
    for colour in (60, 160):
        picture = png(32, 32, (colour, 90, 20))
        mxcs.append(await put_on(alice, picture))
        await servers[0].until("ready", mxcs[-1])
        for server in servers:
            assert await server.body(f"{path}/avatar") == picture
        await eventually(
            "both rooms told it", partial(told, servers[1], alice, "avatar", mxcs[-1])
        )
    path_of_profile = f"{CLIENT}/profile/{quote(alice.user_id)}/avatar_url"
    await alice.call("PUT", path_of_profile, json={"avatar_url": ""})
    for server in servers:
        await eventually("it is taken off", partial(server.lacks, f"{path}/avatar"))
    await eventually("both rooms told it", partial(told, servers[1], alice, "avatar", None))
    history = (await servers[1].json(path))["history"]
    assert [entry["avatar"] for entry in history][:3] == [None, *reversed(mxcs)]
    assert [entry["rooms"] for entry in history][:3] == [2, 2, 2]


async def test_a_room_shows_its_face_its_name_and_its_image_pack(
    servers: list[Reader], people: People
) -> None:
    """The present avatar, the names people use, and a pack with its images."""
    alice, room_id = people.alice, people.room
    path = f"/api/v1/rooms/{quote(room_id)}"
    old, new = (png(16, 16, (20, colour, 90)) for colour in (60, 160))
    for picture in (old, new):
        mxc = await alice.upload(picture)
        await alice.send_state(room_id, "m.room.avatar", {"url": mxc})
        await servers[0].until("ready", mxc)
        for server in servers:
            assert await server.body(f"{path}/avatar") == picture
    purr = await alice.upload(png(8, 8, (9, 9, 9)))
    pack = {"pack": {"display_name": "Cats"}, "images": {"purr": {"url": purr, "body": "purrs"}}}
    await alice.send_state(room_id, "im.ponies.room_emotes", pack, "cats")
    await servers[0].until("ready", purr)
    room: dict[str, Any] = await servers[1].json(path)
    assert room["name"] == "The garden"
    assert [entry["avatar"] is not None for entry in room["avatars"]] == [True, True]
    [shown] = room["image_packs"]
    assert shown["name"] == "Cats"
    assert shown["images"] == [{"shortcode": "purr", "mxc": purr, "body": "purrs"}]
    assert {member["user_id"] for member in room["members"]} == {
        user.user_id for user in (people.admin, people.alice, people.bob)
    }
    assert room["coverage"]["percent"] == 100
    direct = await servers[1].json(f"/api/v1/rooms/{quote(people.direct)}")
    localparts = sorted(user.user_id[1:].partition(":")[0] for user in (people.alice, people.bob))
    assert direct["name"] == " and ".join(localparts)


async def test_an_event_reads_like_people_talk(servers: list[Reader], people: People) -> None:
    """The sender's name as it was when it was sent, and the room's."""
    alice = people.alice
    path = f"{CLIENT}/profile/{quote(alice.user_id)}/displayname"
    name = "Alice of the garden"
    await alice.call("PUT", path, json={"displayname": name})
    await eventually("both rooms told it", partial(told, servers[0], alice, "displayname", name))
    mxc = await alice.upload(png(8, 8, (1, 2, 3)))
    event_id = await alice.send_image(people.room, mxc, "rose.png")
    await alice.call("PUT", path, json={"displayname": "Somebody else"})
    await servers[0].until("ready", mxc)
    shown = await servers[1].json(f"/api/v1/events/{quote(event_id)}")
    assert shown["sender"] == {"user_id": alice.user_id, "displayname": name}
    assert shown["room"]["name"] == "The garden"
    assert shown["references"][0]["filename"] == "rose.png"
