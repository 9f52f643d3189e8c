"""Rooms as people know them: names, faces, image packs, and what they were before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import knowledge
from archiver.model import Mxc, Scope
from tests.support.samples import png
from tests.support.serving import Archive, Reader, member, serving, state

ROOM = "!room:a"
ALICE, BOB = "@alice:archive.test", "@bob:archive.test"
NOW = datetime(2025, 6, 1, tzinfo=UTC)


async def active(archive: Archive, *room_ids: str, at: datetime = NOW) -> None:
    """The rooms, each a minute less recently active than the one before."""
    await archive.pool.executemany(
        "INSERT INTO room (room_id, active_at) VALUES ($1, $2)",
        [(room_id, at - timedelta(minutes=n)) for n, room_id in enumerate(room_ids)],
    )


def path(room_id: str = ROOM, rest: str = "") -> str:
    return f"/api/v1/rooms/{quote(room_id, safe='')}{rest}"


async def listed(reader: Reader) -> dict[str, dict[str, Any]]:
    return {room["room_id"]: room for room in (await reader.json("/api/v1/rooms"))["rooms"]}


async def test_a_room_is_shown_as_its_newest_state_has_it(
    archive: Archive, reader: Reader
) -> None:
    """Name, alias, avatar, encryption, type, version and creator, in the list and alone."""
    await active(archive, ROOM)
    await archive.record(
        state("m.room.create", {"room_version": "11", "type": "m.space"}, sender=BOB),
        state("m.room.name", {"name": "Old"}, 1),
        state("m.room.name", {"name": " The garden "}, 3),
        state("m.room.name", {"name": "Between"}, 2),
        state("m.room.canonical_alias", {"alias": "#garden:archive.test"}, 1),
        state("m.room.avatar", {"url": "mxc://archive.test/rose"}, 1),
        state("m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}, 1),
    )
    expected = {
        "room_id": ROOM,
        "name": "The garden",
        "alias": "#garden:archive.test",
        "avatar": "mxc://archive.test/rose",
        "encrypted": True,
        "type": "m.space",
        "version": "11",
        "creator": BOB,
        "active_at": NOW.isoformat(),
        "excluded": None,
    }
    for room in ((await listed(reader))[ROOM], await reader.json(path())):
        assert {key: room[key] for key in expected} == expected
        assert room["coverage"]["references"]["pending"] == 1


async def test_a_room_without_a_name_is_called_after_its_alias_or_its_people(
    archive: Archive, reader: Reader
) -> None:
    """As clients do; an empty name is none, and who has no name is called by the user id."""
    rooms = ["!alias", "!one", "!two", "!many", "!nobody"]
    await active(archive, *rooms)
    await archive.record(
        state("m.room.name", {"name": " "}, room="!alias"),
        state("m.room.canonical_alias", {"alias": "#a:b"}, room="!alias"),
        member(ALICE, room="!one", displayname="Alice"),
        member(ALICE, room="!two", displayname="Alice"),
        member(BOB, room="!two"),
        member("@gone:a", 1, room="!two", displayname="Gone"),
        member("@gone:a", 2, room="!two", membership="leave", displayname="Gone"),
        *(member(f"@{name}:a", room="!many", displayname=name) for name in "abcde"),
        state("m.room.create", {}, room="!nobody"),
    )
    names = {room_id: room["name"] for room_id, room in (await listed(reader)).items()}
    assert names == {
        "!alias": "#a:b",
        "!one": "Alice",
        "!two": f"Alice and {BOB}",
        "!many": "a, b, c and others",
        "!nobody": None,
    }


async def test_a_date_in_the_future_gives_no_lasting_say(archive: Archive, reader: Reader) -> None:
    """A forged `origin_server_ts` counts as the time at which the event came."""
    await active(archive, ROOM)
    await archive.record(
        state("m.room.name", {"name": "Forged"}, origin_server_ts=253_402_300_799_000)
    )
    assert (await listed(reader))[ROOM]["name"] == "Forged"
    coming = int(datetime.now(UTC).timestamp() * 1000) + 60_000
    await archive.record(state("m.room.name", {"name": "True"}, origin_server_ts=coming))
    assert (await listed(reader))[ROOM]["name"] == "True"


async def test_a_redacted_name_is_none(archive: Archive, reader: Reader) -> None:
    """The room is called after its people again; the older name does not return."""
    await active(archive, ROOM)
    rude = state("m.room.name", {"name": "Rude"}, 2)
    await archive.record(
        member(ALICE, displayname="Alice"), state("m.room.name", {"name": "Nice"}, 1), rude
    )
    await redact(archive, rude)
    assert (await listed(reader))[ROOM]["name"] == "Alice"


async def redact(archive: Archive, event: dict[str, Any]) -> None:
    """As if the redaction had been worked out."""
    await archive.pool.execute(
        "UPDATE event SET redacted_by = '$redaction', redacted_at = now() WHERE event_id = $1",
        event["event_id"],
    )


async def test_former_names_and_faces_are_kept_with_their_times(
    archive: Archive, reader: Reader
) -> None:
    """The newest first; a name that is set again unchanged is one."""
    first = state("m.room.name", {"name": "First"}, 1)
    await archive.record(
        first,
        state("m.room.name", {"name": "First"}, 2),
        state("m.room.name", {"name": "Second"}, 3, sender=BOB),
        state("m.room.avatar", {"url": "mxc://a/1"}, 1),
        state("m.room.avatar", {}, 2),
    )
    room = await reader.json(path())
    assert [(name["name"], name["since"], name["sender"]) for name in room["names"]] == [
        ("Second", "2025-01-01T00:03:00+00:00", BOB),
        ("First", "2025-01-01T00:01:00+00:00", ALICE),
    ]
    assert room["names"][1]["event_id"] == first["event_id"]
    assert [avatar["avatar"] for avatar in room["avatars"]] == [None, "mxc://a/1"]
    assert room["avatar"] is None


@pytest.mark.parametrize("hides", [False, True], ids=["keep", "hide"])
async def test_a_redacted_former_name_is_shown_as_the_policy_has_it(
    archive: Archive, database_url: str, http: aiohttp.ClientSession, hides: bool
) -> None:
    """To all under `keep`, else to administrators only; that there was one is always seen."""
    rude = state("m.room.name", {"name": "Rude"}, 2)
    await archive.record(rude)
    await redact(archive, rude)
    async with serving(archive, database_url, hides_redacted=hides) as server:
        for scope in Scope:
            somebody = Reader(http, server, await archive.token(scope, scope))
            [name] = (await somebody.json(path()))["names"]
            assert name["redacted"]
            assert name["name"] == (None if hides and scope is Scope.READ else "Rude")


async def test_a_room_shows_faces_of_its_people(
    archive: Archive, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a number, and whether there are more."""
    monkeypatch.setattr("archiver.serve.rooms.MEMBERS", 2)
    await archive.record(
        member(ALICE, 1, displayname="Alice"),
        member(ALICE, 2, displayname="Alice II", avatar_url="mxc://a/alice"),
        member(BOB, 1),
    )
    room = await reader.json(path())
    assert room["members"] == [
        {
            "user_id": ALICE,
            "displayname": "Alice II",
            "avatar": "mxc://a/alice",
            "since": "2025-01-01T00:02:00+00:00",
        },
        {
            "user_id": BOB,
            "displayname": None,
            "avatar": None,
            "since": "2025-01-01T00:01:00+00:00",
        },
    ]
    assert not room["more_members"]
    await archive.record(member("@zoe:a"))
    assert (await reader.json(path()))["more_members"]


async def test_a_room_shows_its_image_packs(archive: Archive, reader: Reader) -> None:
    """The newest of each state key, with what can be shown of it."""
    old = {"images": {"gone": {"url": "mxc://a/gone"}}}
    new = {
        "pack": {"display_name": "Cats", "avatar_url": "mxc://a/cats"},
        "images": {
            "purr": {"url": "mxc://a/purr", "body": "a cat that purrs"},
            "odd": {"url": 5},
            "odder": [],
        },
    }
    await archive.record(
        state("im.ponies.room_emotes", old, 1, "cats"),
        state("im.ponies.room_emotes", new, 2, "cats"),
        state("m.room.image_pack", {"images": [], "pack": "mxc://a/b"}, 2, "hostile"),
    )
    assert (await reader.json(path()))["image_packs"] == [
        {
            "state_key": "cats",
            "name": "Cats",
            "avatar": "mxc://a/cats",
            "images": [{"shortcode": "purr", "mxc": "mxc://a/purr", "body": "a cat that purrs"}],
        },
        {"state_key": "hostile", "name": None, "avatar": None, "images": []},
    ]


async def test_hostile_state_is_as_good_as_none(archive: Archive, reader: Reader) -> None:
    """Whatever the fields are; what is long is cut."""
    await active(archive, ROOM, "!long")
    await archive.record(
        state("m.room.create", {"room_version": [1], "type": {"a": 1}}),
        state("m.room.name", {"name": {"object": 1}}),
        state("m.room.canonical_alias", {"alias": 5}),
        state("m.room.avatar", {"url": ["mxc://a/b"]}),
        state("m.room.encryption", {"algorithm": None}),
        member(ALICE, displayname={"x": 1}, avatar_url=7),
        state("m.room.name", {"name": "Nul\0name"}, room="!long"),
        state("m.room.name", {"name": "x" * 60_000}, 1, room="!long"),
        state("m.room.avatar", {"url": "mxc://../etc/passwd"}, room="!long"),
    )
    rooms = await listed(reader)
    shown = [rooms[ROOM][key] for key in ("name", "alias", "avatar", "type", "version")]
    assert shown == [ALICE, None, None, None, "1"]
    assert rooms[ROOM]["encrypted"]
    assert rooms["!long"]["name"] == "x" * 255
    assert rooms["!long"]["avatar"] is None
    for room_id in rooms:
        await reader.json(path(room_id))


async def test_pages_bring_every_room_once(archive: Archive, reader: Reader) -> None:
    """The most recently active first, also among rooms that were active at the same time."""
    await active(archive, *(f"!{n}:a" for n in range(7)))
    await active(archive, *(f"!same{n}" for n in range(3)), at=NOW)
    await archive.pool.execute("UPDATE room SET active_at = $1 WHERE room_id ~ 'same'", NOW)
    await archive.pool.execute(
        "INSERT INTO room (room_id, seen_at) VALUES ('!silent', '2020-01-01')"
    )
    seen, query = [], "limit=3"
    while query:
        answer = await reader.json(f"/api/v1/rooms?{query}")
        seen += [room["room_id"] for room in answer["rooms"]]
        query = f"limit=3&from={answer['next']}" if answer["next"] else ""
    same = ["!same2", "!same1", "!same0"]
    assert seen == [*same, *(f"!{n}:a" for n in range(7)), "!silent"]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=x", "limit=-1", "limit=\u0663", "from=", "from=x", "from=W10",
     "from=bnVsbA", "from=WyIyMDI1LTAxLTAxVDAwOjAwOjAwIiwiYSJd"],
)  # fmt: skip
async def test_a_page_that_is_none_is_refused(reader: Reader, query: str) -> None:
    """A limit that is no number, and a place that we did not give."""
    async with reader.ask(f"/api/v1/rooms?{query}") as answer:
        assert (answer.status, (await answer.json())["errcode"]) == (400, "M_INVALID_PARAM")


async def test_a_room_that_nobody_knows_is_not_found(archive: Archive, reader: Reader) -> None:
    """A name that cannot be one is refused as such."""
    assert await reader.status(path("!unknown")) == 404
    assert await reader.status(path("!unknown", "/avatar")) == 404
    assert (await reader.raw("/api/v1/rooms/%00"))[0] == 400
    assert (await reader.raw("/api/v1/rooms/%00/avatar"))[0] == 400
    await active(archive, "!odd/room?:a")
    assert (await reader.json(path("!odd/room?:a", "/")))["room_id"] == "!odd/room?:a"


async def test_a_room_that_is_left_out_says_so(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """It is in the list, with what was left out of it."""
    policy = CapturePolicy("archive.test", excluded={ROOM})
    await active(archive, ROOM)
    await archive.record(state("m.room.avatar", {"url": "mxc://a/b"}), policy=policy)
    async with serving(archive, database_url, policy) as server:
        room = (await listed(Reader(http, server, await archive.token())))[ROOM]
    assert room["excluded"] == "capture.rooms: this room is left out"
    assert room["coverage"]["excluded"] == {"capture.rooms": 1}
    assert room["name"] is None


async def test_the_avatar_is_the_present_one(
    archive: Archive, reader: Reader, database_url: str
) -> None:
    """At once at every server; no reader keeps it unasked; parts of it and 304 are to be had."""
    faces, etag = {}, ""
    for colour in (10, 20):
        data = png(8, 8, (colour, 0, 0))
        mxc = await archive.put(data)
        faces[mxc] = data
    async with serving(archive, database_url) as other:
        elsewhere = Reader(reader.session, other, reader.headers["Authorization"][7:])
        for minute, (mxc, data) in enumerate(faces.items()):
            await archive.record(state("m.room.avatar", {"url": str(mxc)}, minute))
            for at in (reader, elsewhere):
                async with at.ask(path(rest="/avatar")) as answer:
                    assert await answer.read() == data
                    assert answer.headers["Cache-Control"] == "private, no-cache"
                    assert answer.content_type == "image/png"
                    etag = answer.headers["ETag"]
        assert await reader.status(path(rest="/avatar"), If_None_Match=etag) == 304
        assert await reader.status(path(rest="/avatar"), Range="bytes=0-3") == 206
        await archive.record(state("m.room.avatar", {}, 9))
        for at in (reader, elsewhere):
            async with at.ask(path(rest="/avatar"), If_None_Match=etag) as answer:
                assert answer.status == 404
                assert "has no avatar" in (await answer.json())["error"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("mxc://a/b", Mxc("a", "b")),
        ("mxc://a/b#auto", Mxc("a", "b")),
        ("mxc://a/", None),
        ("mxc://./b", None),
        ("https://a/b", None),
        (None, None),
        (5, None),
    ],
)
def test_what_an_avatar_names(value: object, expected: Mxc | None) -> None:
    """The media that the references name, too."""
    assert knowledge.mxc_of(value) == expected
