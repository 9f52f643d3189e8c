"""One event as it is kept: the words, the media, the edits, and who redacted it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from archiver.capture.policy import CapturePolicy
from archiver.model import Scope
from tests.support.serving import POLICY, Archive, Reader, member, serving, state

ALICE, BOB = "@alice:archive.test", "@bob:archive.test"
ROOM = "!room:a"
START = 1_735_689_600_000
ENCRYPTION = {"key": {"k": "secret"}, "hashes": {"sha256": "hash"}}


def path(event_id: str) -> str:
    return f"/api/v1/events/{quote(event_id, safe='')}"


def image(event_id: str, minute: int = 5, **fields: Any) -> dict[str, Any]:
    content = {
        "msgtype": "m.image",
        "body": "look at that",
        "filename": "cat.jpg",
        "info": {"mimetype": "image/jpeg", "size": 5},
        "file": {"url": "mxc://archive.test/cat", **ENCRYPTION},
    }
    return {
        "event_id": event_id,
        "room_id": ROOM,
        "sender": ALICE,
        "type": "m.room.message",
        "origin_server_ts": START + 60_000 * minute,
        "content": content,
        **fields,
    }


def edit(event_id: str, of: str, minute: int, media_id: str, **fields: Any) -> dict[str, Any]:
    new = {"msgtype": "m.image", "body": "better.jpg", "url": f"mxc://archive.test/{media_id}"}
    relation = {"rel_type": "m.replace", "event_id": of}
    content = {"body": "* better", "m.new_content": new, "m.relates_to": relation}
    return image(event_id, minute, content=content, **fields)


async def redact(archive: Archive, event_id: str) -> None:
    """As if Bob's redaction had been worked out."""
    content = {"redacts": event_id, "reason": "rude"}
    await archive.record(
        image("$redaction", 9, type="m.room.redaction", sender=BOB, content=content)
    )
    await archive.pool.execute(
        "UPDATE event SET redacted_by = '$redaction', redacted_at = sent_at + interval '1 min'"
        " WHERE event_id = $1",
        event_id,
    )


async def test_an_event_is_shown_with_its_media(archive: Archive, reader: Reader) -> None:
    """Room and sender by the names they had, content as sent, and what became of each media."""
    await archive.record(
        state("m.room.name", {"name": "Garden"}),
        member(ALICE, 1, displayname="Al"),
        member(ALICE, 3, displayname="Alice"),
        member(ALICE, 7, displayname="Later"),
        member(ALICE, 4, "!elsewhere", displayname="Somebody"),
        image("$cat"),
    )
    await archive.pool.execute("UPDATE media SET state = 'failed', reason = 'gone: for good'")
    shown = await reader.json(path("$cat"))
    assert shown["room"] == {"room_id": ROOM, "name": "Garden"}
    assert shown["sender"] == {"user_id": ALICE, "displayname": "Alice"}
    assert shown["content"] == image("$cat")["content"]
    assert (shown["type"], shown["source"]) == ("m.room.message", "push")
    assert shown["sent_at"] == "2025-01-01T00:05:00+00:00"
    assert shown["references"] == [
        {
            "mxc": "mxc://archive.test/cat",
            "state": "failed",
            "reason": "gone: for good",
            "role": "content",
            "item": 0,
            "filename": "cat.jpg",
            "caption": "look at that",
            "declared_type": "image/jpeg",
            "declared_size": 5,
            "encrypted": True,
            "encryption": ENCRYPTION,
        }
    ]
    unsaid = ("raw", "original", "redacted", "edit_of")
    assert [shown[key] for key in unsaid] == [None] * 4
    assert (shown["hidden"], shown["edits"]) == (False, [])


async def test_a_media_is_listed_with_the_names_that_people_use(
    archive: Archive, reader: Reader
) -> None:
    """The room's, and the sender's as it was; without one, the user id."""
    await archive.record(
        state("m.room.name", {"name": "Garden"}),
        member(ALICE, 3, displayname="Alice"),
        image("$early", 1),
        image("$cat", 5),
        image("$nameless", 6, room_id="!nameless"),
    )
    shown = await reader.json("/api/v1/media/archive.test/cat")
    assert [(r["event_id"], r["room_name"], r["sender_name"]) for r in shown["references"]] == [
        ("$nameless", None, ALICE),
        ("$cat", "Garden", "Alice"),
        ("$early", "Garden", ALICE),
    ]


async def test_who_has_no_name_is_called_by_the_user_id(archive: Archive, reader: Reader) -> None:
    """Before the first join with a name, after one without, and where the name is no text."""
    await archive.record(image("$1", 1), image("$2", 3), image("$3", 5))
    await archive.record(member(ALICE, 2, displayname={"a": 1}), member(ALICE, 4))
    for event_id in ("$1", "$2", "$3"):
        assert (await reader.json(path(event_id)))["sender"]["displayname"] == ALICE


async def test_both_versions_of_an_edited_message_are_shown(
    archive: Archive, reader: Reader
) -> None:
    """With the media of each; the edit itself tells what it changes."""
    await archive.record(
        edit("$second", "$cat", 8, "second"), image("$cat"), edit("$first", "$cat", 6, "first")
    )
    shown = await reader.json(path("$cat"))
    assert [entry["event_id"] for entry in shown["edits"]] == ["$first", "$second"]
    named = [[media["mxc"] for media in entry["references"]] for entry in shown["edits"]]
    assert named == [["mxc://archive.test/first"], ["mxc://archive.test/second"]]
    assert shown["references"][0]["mxc"] == "mxc://archive.test/cat"
    assert shown["edits"][0]["content"]["m.new_content"]["body"] == "better.jpg"
    one = await reader.json(path("$first"))
    assert one["edit_of"] == {"event_id": "$cat", "valid": True}
    assert one["edits"] == []


async def test_what_is_no_valid_edit_changes_nothing(archive: Archive, reader: Reader) -> None:
    """Another's, one from another room, of another type, and an edit of an edit."""
    await archive.record(
        image("$cat"),
        edit("$good", "$cat", 6, "good"),
        edit("$other", "$cat", 6, "x1", sender=BOB),
        edit("$room", "$cat", 6, "x2", room_id="!elsewhere"),
        edit("$type", "$cat", 6, "x3", type="m.sticker"),
        edit("$twice", "$good", 7, "x4"),
        edit("$orphan", "$gone", 7, "x5"),
    )
    assert [e["event_id"] for e in (await reader.json(path("$cat")))["edits"]] == ["$good"]
    for event_id in ("$other", "$room", "$type", "$twice", "$orphan"):
        shown = await reader.json(path(event_id))
        assert shown["edit_of"]["valid"] is False
        assert shown["edits"] == []


@pytest.mark.parametrize("hides", [False, True], ids=["keep", "hide"])
async def test_a_redacted_event_is_shown_as_the_policy_has_it(
    archive: Archive, database_url: str, http: aiohttp.ClientSession, hides: bool
) -> None:
    """Who redacted it, when and why is for all; the words, those of its edits as well, only for
    administrators unless the policy is `keep`."""
    await archive.record(image("$cat"), edit("$edit", "$cat", 6, "better"))
    await redact(archive, "$cat")
    async with serving(archive, database_url, hides_redacted=hides) as server:
        for scope in Scope:
            somebody = Reader(http, server, await archive.token(scope, scope))
            hidden = hides and scope is Scope.READ
            shown = await somebody.json(path("$cat"))
            assert shown["redacted"] == {
                "event_id": "$redaction",
                "by": BOB,
                "at": "2025-01-01T00:06:00+00:00",
                "reason": "rude",
            }
            for entry in (shown, shown["edits"][0], await somebody.json(path("$edit"))):
                assert entry["hidden"] is hidden
                assert (entry["content"] is None) is hidden
            [media] = shown["references"]
            words = ("filename", "caption", "encryption")
            assert [media[key] is None for key in words] == [hidden] * 3
            assert (media["mxc"], media["state"]) == ("mxc://archive.test/cat", "pending")
            assert media["encrypted"]
            text = str(await somebody.json(path("$cat")))
            assert ("cat.jpg" in text) is not hidden


async def test_an_event_that_came_emptied_says_so(archive: Archive, reader: Reader) -> None:
    """What it held is wanted still, or lost."""
    await archive.record(image("$cat", content={}, unsigned={"redacted_because": {"a": 1}}))
    assert (await reader.json(path("$cat")))["original"] == "wanted"


async def test_what_the_database_could_not_hold_is_shown_raw(
    archive: Archive, reader: Reader
) -> None:
    """A NUL in the words: the whole event as it came."""
    content = {"msgtype": "m.image", "body": "nul\0", "url": "mxc://archive.test/cat"}
    await archive.record(image("$nul", content=content))
    shown = await reader.json(path("$nul"))
    assert shown["content"] is None
    assert "nul\\u0000" in shown["raw"]
    assert shown["references"][0]["mxc"] == "mxc://archive.test/cat"


async def test_an_event_of_a_room_that_is_left_out_has_no_words(
    archive: Archive, reader: Reader
) -> None:
    """But the reason why its media is not here."""
    policy = CapturePolicy(POLICY.server_name, excluded={ROOM})
    await archive.record(image("$cat"), policy=policy)
    shown = await reader.json(path("$cat"))
    assert shown["content"] == {}
    assert shown["references"][0]["state"] == "excluded"
    assert shown["references"][0]["reason"].startswith("capture.rooms")


@pytest.mark.parametrize(
    "event_id",
    ["$abc_-Z", "$a/b+c", "$143273582443PhrSn:example.org", "$a%2Fb?#", "$a/b/", "$\u00e9 "],
)
async def test_event_ids_of_every_room_version_are_found(
    archive: Archive, reader: Reader, event_id: str
) -> None:
    """Percent-encoded, and with a slash as it is."""
    await archive.record(image(event_id))
    assert (await reader.json(path(event_id)))["event_id"] == event_id
    if "?" not in event_id:
        plain = f"/api/v1/events/{quote(event_id)}"
        assert (await reader.raw(plain))[1]["event_id"] == event_id


async def test_what_was_never_kept_is_not_found(reader: Reader) -> None:
    """The answer says that ordinary messages are not kept; what is no id is refused."""
    async with reader.ask(path("$unknown")) as answer:
        assert answer.status == 404
        assert "keeps no ordinary text messages" in (await answer.json())["error"]
    assert (await reader.raw("/api/v1/events/%00"))[0] == 400


async def test_without_a_room_or_a_sender(archive: Archive, reader: Reader) -> None:
    """An event with next to nothing is shown as well."""
    await archive.record({"event_id": "$bare", "content": {"url": "mxc://a/b"}})
    shown = await reader.json(path("$bare"))
    assert shown["room"] == {"room_id": None, "name": None}
    assert shown["sender"] == {"user_id": None, "displayname": None}
