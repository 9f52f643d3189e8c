"""What people are called and look like, and did."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from archiver.model import Mxc, Scope
from tests.support.samples import png
from tests.support.serving import Archive, Reader, member, serving, state

ALICE = "@alice:archive.test"
NEW_YEAR = "2025-01-01T00:0{}:00+00:00"


def path(user_id: str = ALICE, rest: str = "") -> str:
    return f"/api/v1/users/{quote(user_id, safe='')}{rest}"


async def face(archive: Archive, colour: int) -> tuple[Mxc, bytes]:
    data = png(8, 8, (colour, 0, 0))
    return await archive.put(data), data


async def redact(archive: Archive, event: dict[str, Any]) -> None:
    """As if the redaction had been worked out."""
    await archive.pool.execute(
        "UPDATE event SET redacted_by = '$redaction', redacted_at = now() WHERE event_id = $1",
        event["event_id"],
    )


async def test_the_newest_face_of_all_rooms_is_served(
    archive: Archive, reader: Reader, database_url: str
) -> None:
    """Whichever room tells it, at every server at once; and it is never kept unasked."""
    async with serving(archive, database_url) as other:
        elsewhere = Reader(reader.session, other, reader.headers["Authorization"][7:])
        for minute, room in enumerate(("!one", "!two", "!one")):
            mxc, data = await face(archive, 10 * minute)
            await archive.record(member(ALICE, minute, room, avatar_url=str(mxc)))
            for at in (reader, elsewhere):
                async with at.ask(path(rest="/avatar")) as answer:
                    assert await answer.read() == data
                    assert answer.headers["Cache-Control"] == "private, no-cache"
                    etag = answer.headers["ETag"]
                assert await at.status(path(rest="/avatar"), If_None_Match=etag) == 304


async def test_a_face_of_long_ago_that_comes_late_changes_nothing(
    archive: Archive, reader: Reader
) -> None:
    """Backfill brings the oldest last."""
    mxc, data = await face(archive, 1)
    await archive.record(member(ALICE, 5, avatar_url=str(mxc)))
    await archive.record(member(ALICE, 1, "!old", avatar_url="mxc://a/old"))
    async with reader.ask(path(rest="/avatar")) as answer:
        assert await answer.read() == data


async def test_a_face_that_was_taken_off_is_gone(archive: Archive, reader: Reader) -> None:
    """The older one does not come back, but the history has it."""
    mxc, _ = await face(archive, 1)
    await archive.record(
        member(ALICE, 1, displayname="Alice", avatar_url=str(mxc)),
        member(ALICE, 2, displayname="Alice"),
    )
    async with reader.ask(path(rest="/avatar")) as answer:
        assert answer.status == 404
        assert "has no avatar" in (await answer.json())["error"]
    shown = await reader.json(path())
    assert (shown["displayname"], shown["avatar"]) == ("Alice", None)
    assert [entry["avatar"] for entry in shown["history"]] == [None, str(mxc)]


async def test_a_face_that_is_on_its_way_says_so(archive: Archive, reader: Reader) -> None:
    """Known, and not archived yet."""
    await archive.record(member(ALICE, avatar_url="mxc://archive.test/coming"))
    assert await reader.status(path(rest="/avatar")) == 504


async def test_one_change_of_a_profile_is_one_entry(archive: Archive, reader: Reader) -> None:
    """Though every room tells it; the newest first, with the number of rooms."""
    await archive.record(
        *(
            member(ALICE, minute, room, displayname=name, avatar_url=f"mxc://a/{name}")
            for minute, name in ((1, "Al"), (4, "Alice"))
            for room in ("!one", "!two", "!three")
        ),
        member(ALICE, 6, "!one", displayname="Guest"),
    )
    shown = await reader.json(path())
    assert shown == {
        "user_id": ALICE,
        "displayname": "Guest",
        "avatar": None,
        "history": [
            {"since": NEW_YEAR.format(6), "displayname": "Guest", "avatar": None, "rooms": 1},
            {
                "since": NEW_YEAR.format(4),
                "displayname": "Alice",
                "avatar": "mxc://a/Alice",
                "rooms": 3,
            },
            {"since": NEW_YEAR.format(1), "displayname": "Al", "avatar": "mxc://a/Al", "rooms": 3},
        ],
    }


async def test_only_what_people_wrote_of_themselves_counts(
    archive: Archive, reader: Reader
) -> None:
    """An invitation and a kick are others' words, whatever names they give."""
    await archive.record(
        member(ALICE, 1, displayname="Alice"),
        state("m.room.member", {"membership": "invite", "displayname": "Mallory"}, 2, ALICE, "!m"),
        member(ALICE, 3, membership="leave", displayname="Mallory"),
    )
    shown = await reader.json(path())
    assert [entry["displayname"] for entry in shown["history"]] == ["Alice"]


async def test_hostile_fields_are_as_good_as_none(archive: Archive, reader: Reader) -> None:
    """Objects for names, numbers for faces, and what never ends."""
    await archive.record(member(ALICE, 1, displayname="y" * 60_000, avatar_url="https://a/b"))
    assert (await reader.json(path()))["displayname"] == "y" * 255
    await archive.record(member(ALICE, 2, displayname={"a": 1}, avatar_url=["mxc://a/b"]))
    shown = await reader.json(path())
    assert (shown["displayname"], shown["avatar"]) == (None, None)
    assert await reader.status(path(rest="/avatar")) == 404


@pytest.mark.parametrize("hides", [False, True], ids=["keep", "hide"])
async def test_a_redacted_face_is_a_former_one(
    archive: Archive, database_url: str, http: aiohttp.ClientSession, hides: bool
) -> None:
    """The one before it is shown; the history has it for whom the policy lets see it."""
    mxc, data = await face(archive, 1)
    rude = member(ALICE, 2, displayname="Rude", avatar_url="mxc://a/rude")
    await archive.record(member(ALICE, 1, displayname="Alice", avatar_url=str(mxc)), rude)
    await redact(archive, rude)
    async with serving(archive, database_url, hides_redacted=hides) as server:
        for scope in Scope:
            somebody = Reader(http, server, await archive.token(scope, scope))
            shown = await somebody.json(path())
            assert shown["displayname"] == "Alice"
            former = ["Alice"] if hides and scope is Scope.READ else ["Rude", "Alice"]
            assert [entry["displayname"] for entry in shown["history"]] == former
            async with somebody.ask(path(rest="/avatar")) as answer:
                assert await answer.read() == data


async def test_who_was_never_seen_is_not_found(reader: Reader) -> None:
    """And what cannot be a user id is refused."""
    assert await reader.status(path("@nobody:a")) == 404
    assert await reader.status(path("@nobody:a", "/avatar")) == 404
    assert (await reader.raw("/api/v1/users/%00"))[0] == 400
    assert (await reader.raw("/api/v1/users/%00/avatar"))[0] == 400


async def test_old_user_ids_have_any_characters(archive: Archive, reader: Reader) -> None:
    """Percent-encoded, as everywhere in Matrix."""
    odd = "@a/b+c=?d%:archive.test"
    await archive.record(member(odd, displayname="Odd"))
    assert (await reader.json(path(odd)))["user_id"] == odd
    assert (await reader.json(path(odd, "/")))["displayname"] == "Odd"
