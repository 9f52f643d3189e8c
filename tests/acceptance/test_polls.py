"""Polls that people hold through a real homeserver, counted by the archive."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from demo.people import People
from tests.acceptance.conftest import started
from tests.support.archiver import Archiver, eventually
from tests.support.matrix import MatrixUser
from tests.support.samples import png

UNSTABLE = "org.matrix.msc3381.poll"
TEXT = "org.matrix.msc1767.text"
CHOICES = {"tea": "Tea 🍵", "cocoa": "Cocoa", "nothing": "Nothing"}


class Ballot:
    """A poll in one of the two schemas, as clients send it."""

    def __init__(self, room: str, *, stable: bool) -> None:
        self.room = room
        self.stable = stable
        self.prefix = "m.poll" if stable else UNSTABLE
        self.event_id = ""

    async def ask(self, user: MatrixUser, **more: Any) -> None:
        """Opens it: up to two choices, shown to all."""
        text, name = ("m.text", "m.id") if self.stable else (TEXT, "id")
        poll = {
            "kind": "m.disclosed" if self.stable else f"{UNSTABLE}.disclosed",
            "max_selections": 2,
            "question": {text: self._text("What to drink?")},
            "answers": [{name: key, text: self._text(said)} for key, said in CHOICES.items()],
            **more,
        }
        block = "m.poll" if self.stable else f"{UNSTABLE}.start"
        content = {text: self._text("What to drink? Tea, cocoa, nothing"), block: poll}
        self.event_id = await user.send(self.room, f"{self.prefix}.start", content)

    async def vote(self, user: MatrixUser, *selected: str) -> str:
        """Returns the id of the response."""
        chosen = list(selected)
        content = (
            {"m.selections": chosen}
            if self.stable
            else {f"{UNSTABLE}.response": {"answers": chosen}}
        )
        kind = f"{self.prefix}.response"
        return await user.send(self.room, kind, content | self._relation())

    async def end(self, user: MatrixUser) -> str:
        """Returns the id of what may be the end."""
        content: dict[str, Any] = {"m.text" if self.stable else TEXT: self._text("Over")}
        if not self.stable:
            content[f"{UNSTABLE}.end"] = {}
        return await user.send(self.room, f"{self.prefix}.end", content | self._relation())

    def _text(self, words: str) -> Any:
        return [{"body": words}] if self.stable else words

    def _relation(self) -> dict[str, Any]:
        return {"m.relates_to": {"rel_type": "m.reference", "event_id": self.event_id}}


class Clerk:
    """Reads what the archive knows."""

    def __init__(self, http: aiohttp.ClientSession, archive: Archiver, token: str) -> None:
        self._http = http
        self._url = archive.url
        self._headers = {"Authorization": f"Bearer {token}"}

    async def ask(self, path: str) -> dict[str, Any]:
        """The answer, or `{}` where there is none."""
        async with self._http.get(f"{self._url}/api/v1/{path}", headers=self._headers) as answer:
            assert answer.status in (200, 404), await answer.text()
            found: dict[str, Any] = await answer.json()
            return found if answer.status == 200 else {}

    async def until_redacted(self, event_id: str) -> None:
        """Waits until a redaction took effect."""

        async def redacted() -> bool:
            return bool((await self.ask(f"events/{quote(event_id)}")).get("redacted"))

        await eventually(f"{event_id} is redacted", redacted)

    async def until_known(self, event_id: str) -> None:
        """Waits for an event, and so for all before it: the homeserver pushes in order."""

        async def known() -> bool:
            return bool(await self.ask(f"events/{quote(event_id)}"))

        await eventually(f"the archive has {event_id}", known)


@pytest.fixture
async def clerk(archive: Archiver, http: aiohttp.ClientSession) -> Clerk:
    """Somebody who reads the archive, which is up then."""
    await started(archive, http)
    return Clerk(http, archive, await asyncio.to_thread(lambda: archive.token))


async def test_a_poll_of_three_is_counted(people: People, clerk: Clerk) -> None:
    """Votes changed, spoiled, cut, redacted and too late, an end by somebody who may not: the
    count is that of MSC3381, and the same in both schemas."""
    alice, bob, carol = people.alice, people.bob, people.admin
    results = []
    for ballot in (Ballot(people.room, stable=True), Ballot(people.room, stable=False)):
        await ballot.ask(bob)
        await ballot.vote(alice, "cocoa")
        await ballot.vote(carol, "tea", "cocoa", "nothing")
        await ballot.vote(alice, "tea")
        await ballot.vote(bob, "tea")
        await ballot.vote(bob, "coffee")
        invalid = await ballot.end(carol)  # an administrator of the homeserver, nobody in the room
        await ballot.vote(alice, "tea", "tea", "nothing")
        withdrawn = await ballot.vote(carol)
        await carol.redact(people.room, withdrawn)
        await clerk.until_redacted(withdrawn)
        open_poll = await clerk.ask(f"polls/{quote(ballot.event_id)}")
        assert open_poll["ended"] is None, invalid
        end = await ballot.end(bob)
        await ballot.end(alice)
        await clerk.until_known(await ballot.vote(alice, "nothing"))
        found = await clerk.ask(f"polls/{quote(ballot.event_id)}")
        assert (found["event_id"], found["sender"]) == (ballot.event_id, bob.user_id)
        assert found["ended"]["event_id"] == end
        assert found["ended"]["by"] == bob.user_id
        assert {answer["id"]: answer["voters"] for answer in found["answers"]} == {
            "tea": sorted([carol.user_id, alice.user_id]),
            "cocoa": [carol.user_id],
            "nothing": [],
        }
        assert (found["voters"], found["spoiled"]) == (2, 1)
        results.append({key: found[key] for key in found.keys() - _OWN})
    assert results[0] == results[1]
    assert results[0]["question"] == "What to drink?"
    assert [answer["text"] for answer in results[0]["answers"]] == list(CHOICES.values())


_OWN = {"event_id", "sent_at", "ended"}


async def test_a_moderator_closes_a_poll(people: People, clerk: Clerk) -> None:
    """Whoever may redact may: by the power levels that the room had at the time."""
    first, second = (Ballot(people.room, stable=stable) for stable in (True, False))
    await first.ask(people.admin)
    await second.ask(people.admin, kind=f"{UNSTABLE}.undisclosed")
    await second.vote(people.alice, "tea")
    await first.end(people.bob)
    levels = {"users": {people.alice.user_id: 100, people.bob.user_id: 50}}
    # From room version 12 on a creator is not to be named: the power is theirs anyhow.
    state = f"/_matrix/client/v3/rooms/{quote(people.room)}/state/m.room.power_levels/"
    present = await people.alice.call("GET", state)
    if people.alice.user_id not in present.get("users", {}):
        del levels["users"][people.alice.user_id]
    await people.alice.send_state(people.room, "m.room.power_levels", {**present, **levels})
    await clerk.until_known(await second.vote(people.bob, "cocoa"))
    undisclosed = await clerk.ask(f"polls/{quote(second.event_id)}")
    assert [answer["votes"] for answer in undisclosed["answers"]] == [None, None, None]
    await second.end(people.bob)
    third = Ballot(people.room, stable=True)
    await third.ask(people.admin)
    await third.end(people.alice)
    await clerk.until_known(await second.vote(people.alice, "cocoa"))
    polls = (await clerk.ask(f"polls?room_id={quote(people.room)}"))["polls"]
    assert [poll["event_id"] for poll in polls] == [
        ballot.event_id for ballot in (third, second, first)
    ]
    closed_by = [poll["ended"] and poll["ended"]["by"] for poll in polls]
    assert closed_by == [people.alice.user_id, people.bob.user_id, None]
    disclosed = await clerk.ask(f"polls/{quote(second.event_id)}")
    assert [answer["votes"] for answer in disclosed["answers"]] == [1, 1, 0]


async def test_a_picture_in_an_answer_is_archived(
    archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """Like any other, and it outlives the homeserver's copy."""
    reader = await started(archive, http)
    picture = png(64, 64, (10, 120, 60))
    mxc = await people.alice.upload(picture)
    block = {"m.file": {"url": mxc, "mimetype": "image/png"}, "m.image": {"width": 64}}
    answers = [{"m.id": "this", "m.text": [{"body": "This one"}], **block}]
    await Ballot(people.room, stable=True).ask(people.alice, answers=answers)
    await reader.until("ready", mxc)
    await people.admin.delete_media(mxc)
    assert await reader.download(mxc) == picture
