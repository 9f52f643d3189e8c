"""Polls over HTTP: who asked what, who voted how, and who may see it already."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
import pytest
from aiohttp.test_utils import TestServer

from archiver.capture.batch import Batch
from archiver.capture.policy import CapturePolicy
from archiver.capture.record import record
from archiver.capture.rows import keep
from archiver.catalogue.polls import EDITS, ENDS, POLLS, RESPONDED, RESPONSES
from archiver.model import Scope, Source
from tests.support.serving import Archive, Reader, serving

if TYPE_CHECKING:
    from archiver.db.pool import Pool

ALICE, BOB, CAROL = "@alice:example.com", "@bob:example.com", "@carol:example.com"
ROOM = "!room:example.com"
NOON = 1_700_000_000_000
POLICY = CapturePolicy("example.com")
UNSTABLE = "org.matrix.msc3381.poll"
TEXT = "org.matrix.msc1767.text"

FILL = """
INSERT INTO event (event_id, room_id, sender, type, content, source, sent_at)
SELECT '$e' || n, '!room' || n % 10, '@u' || n % 7, (array['m.room.encrypted', 'm.poll.start',
       'm.poll.response', 'm.poll.end', 'm.room.message', 'm.poll.response'])[n % 6 + 1],
       jsonb_build_object('m.relates_to',
           jsonb_build_object('rel_type', 'm.reference', 'event_id', '$e' || n / 6 * 6 + 1)),
       'push', now() - n * interval '1 s'
FROM generate_series(1, 30000) AS n;
"""


def start(**block: Any) -> dict[str, Any]:
    poll = {
        "kind": "m.disclosed",
        "max_selections": 1,
        "question": {"m.text": [{"body": "Tea?"}]},
        "answers": [
            {"m.id": "yes", "m.text": [{"body": "Yes"}]},
            {"m.id": "no", "m.text": [{"body": "No"}]},
        ],
    }
    return {"m.text": [{"body": "Tea? Yes, no"}], "m.poll": {**poll, **block}}


def relating(poll: str, rel_type: str = "m.reference") -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": rel_type, "event_id": poll}}


class Room:
    """Sends events into the archive as a push does, in whatever order a test likes."""

    def __init__(self, pool: Pool, room_id: str = ROOM) -> None:
        self.pool = pool
        self.room_id = room_id
        self._ids: Iterator[int] = itertools.count()

    async def send(self, kind: str, sender: str, content: Any, ts: int = 0, **fields: Any) -> str:
        """An event `ts` ms after noon; returns its id."""
        event_id = str(fields.pop("event_id", f"${self.room_id[1:5]}-{next(self._ids)}"))
        event = {
            "event_id": event_id, "room_id": self.room_id, "sender": sender, "type": kind,
            "origin_server_ts": NOON + ts, "content": content, **fields,
        }  # fmt: skip
        await self.send_raw(orjson.dumps(event))
        return event_id

    async def send_raw(self, event: bytes) -> None:
        batch = Batch(b'{"events":[' + event + b"]}")
        async with self.pool.acquire() as conn:
            await record(conn, keep(batch, POLICY), Source.PUSH, POLICY)

    async def ask(self, ts: int = 0, **block: Any) -> str:
        return await self.send("m.poll.start", ALICE, start(**block), ts)

    async def vote(self, poll: str, sender: str, *selected: Any, ts: int = 10) -> str:
        content = {"m.selections": list(selected), **relating(poll)}
        return await self.send("m.poll.response", sender, content, ts)

    async def end(self, poll: str, sender: str = ALICE, ts: int = 100) -> str:
        content = {"m.text": [{"body": "Over"}], **relating(poll)}
        return await self.send("m.poll.end", sender, content, ts)

    async def redacted(self, event_id: str, *edits: str, by: str = ALICE) -> None:
        """What is left when a redaction has been worked out."""
        content = {"redacts": event_id, "reason": "no tea"}
        redaction = await self.send("m.room.redaction", by, content, 50)
        await self.pool.execute(
            "UPDATE event SET redacted_by = $1, redacted_at = now() WHERE event_id = ANY($2)",
            redaction,
            [event_id, *edits],
        )


@pytest.fixture
async def room(pool: Pool) -> Room:
    """A room whose events the archive takes."""
    return Room(pool)


@pytest.fixture
async def admin(reader: Reader, archive: Archive) -> Reader:
    """An administrator at the reader's server."""
    return Reader(reader.session, reader.server, await archive.token("admin", Scope.ADMIN))


@pytest.fixture
async def hiding(archive: Archive, database_url: str) -> AsyncIterator[TestServer]:
    """The readers' door of an archive that hides what was redacted."""
    async with serving(archive, database_url, hides_redacted=True) as server:
        yield server


async def ask(reader: Reader, path: str, **query: Any) -> dict[str, Any]:
    """The JSON of a good answer."""
    url = reader.server.make_url(path).update_query(query)
    async with reader.session.get(url, headers=reader.headers) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "application/json"
        found: dict[str, Any] = await answer.json()
        return found


async def result(reader: Reader, poll: str) -> dict[str, Any]:
    return await ask(reader, f"/api/v1/polls/{quote(poll)}")


def votes(poll: dict[str, Any]) -> dict[str, Any]:
    return {answer["id"]: answer["votes"] for answer in poll["answers"]}


async def test_a_poll_is_told_with_its_votes(reader: Reader, room: Room) -> None:
    """Question, answers, voters, counts, and who closed it when."""
    poll = await room.ask()
    await room.vote(poll, BOB, "no")
    await room.vote(poll, BOB, "yes", ts=20)
    await room.vote(poll, CAROL, "perhaps")
    await room.vote(poll, ALICE, "yes")
    end = await room.end(poll)
    await room.vote(poll, ALICE, "no", ts=101)
    assert await result(reader, poll) == {
        "event_id": poll,
        "room_id": ROOM,
        "sender": ALICE,
        "sent_at": "2023-11-14T22:13:20+00:00",
        "readable": True,
        "question": "Tea?",
        "kind": "disclosed",
        "max_selections": 1,
        "answers": [
            {"id": "yes", "text": "Yes", "votes": 2, "voters": [ALICE, BOB]},
            {"id": "no", "text": "No", "votes": 0, "voters": []},
        ],
        "voters": 2,
        "spoiled": 1,
        "ended": {"event_id": end, "by": ALICE, "at": "2023-11-14T22:13:20.100000+00:00"},
        "redacted": None,
        "edits": [],
    }


async def test_what_came_first_makes_no_difference(reader: Reader, room: Room) -> None:
    """The end and the votes may come before the poll, the last vote before the first."""
    await room.end("$late")
    await room.vote("$late", BOB, "yes", ts=20)
    await room.vote("$late", BOB, "no", ts=10)
    await room.vote("$late", CAROL, "no", ts=101)
    assert await reader.status("/api/v1/polls/$late") == 404
    await room.send("m.poll.start", ALICE, start(), event_id="$late")
    found = await result(reader, "$late")
    assert votes(found) == {"yes": 1, "no": 0}
    assert found["ended"]["by"] == ALICE


async def test_an_undisclosed_poll_is_told_when_it_is_over(
    reader: Reader, admin: Reader, room: Room
) -> None:
    """Until then an administrator sees the votes, and others that there are some."""
    poll = await room.ask(kind="m.undisclosed")
    await room.vote(poll, BOB, "yes")
    found = await result(reader, poll)
    assert [answer["votes"] for answer in found["answers"]] == [None, None]
    assert [answer["voters"] for answer in found["answers"]] == [None, None]
    assert found["voters"] == 1
    assert votes(await result(admin, poll)) == {"yes": 1, "no": 0}
    await room.end(poll, CAROL)
    assert votes(await result(reader, poll)) == {"yes": None, "no": None}
    await room.end(poll, ALICE)
    assert votes(await result(reader, poll)) == {"yes": 1, "no": 0}


async def test_the_levels_at_the_time_say_who_may_close(reader: Reader, room: Room) -> None:
    """A moderator may while they are one; without power levels the room's creator may."""
    before, during, after = [await room.ask(ts) for ts in (0, 1, 2)]
    await room.send("m.room.create", CAROL, {"room_version": "11"}, -9, state_key="")
    await room.end(before, BOB, ts=5)
    await room.end(after, CAROL, ts=6)
    levels = {"users": {BOB: 50}}
    await room.send("m.room.power_levels", CAROL, levels, 10, state_key="")
    await room.end(during, CAROL, ts=15)
    await room.end(during, BOB, ts=20)
    await room.send("m.room.power_levels", CAROL, {"users": {}}, 30, state_key="")
    await room.end(before, BOB, ts=40)
    assert (await result(reader, before))["ended"] is None
    assert (await result(reader, during))["ended"]["by"] == BOB
    assert (await result(reader, after))["ended"]["by"] == CAROL


async def test_a_redacted_vote_and_a_redacted_end_are_none(reader: Reader, room: Room) -> None:
    """The vote before counts again, and the poll is open again."""
    poll = await room.ask()
    await room.vote(poll, BOB, "yes")
    changed = await room.vote(poll, BOB, "no", ts=20)
    end = await room.end(poll)
    await room.redacted(changed)
    await room.redacted(end)
    found = await result(reader, poll)
    assert votes(found) == {"yes": 1, "no": 0}
    assert found["ended"] is None


async def test_a_redacted_poll_says_so(
    reader: Reader, admin: Reader, hiding: TestServer, room: Room
) -> None:
    """Who, when and why; its words stay, or are an administrator's where they are hidden."""
    poll = await room.ask()
    await room.vote(poll, BOB, "yes")
    await room.redacted(poll, by=CAROL)
    kept = await result(reader, poll)
    assert kept["question"] == "Tea?"
    assert kept["redacted"]["by"] == CAROL
    assert kept["redacted"]["reason"] == "no tea"
    reader.server = admin.server = hiding
    hidden = await result(reader, poll)
    assert (hidden["readable"], hidden["question"], hidden["answers"]) == (False, None, [])
    assert hidden["redacted"] == kept["redacted"]
    [listed] = (await ask(reader, "/api/v1/polls"))["polls"]
    assert (listed["question"], listed["answers"]) == (None, [])
    assert await result(admin, poll) == kept
    [listed] = (await ask(admin, "/api/v1/polls"))["polls"]
    assert listed["question"] == "Tea?"


async def test_a_poll_that_came_emptied_says_so(reader: Reader, room: Room) -> None:
    """It was redacted before the archive saw it: nothing can be read."""
    redacted = {"redacted_because": {"type": "m.room.redaction"}}
    poll = await room.send("m.poll.start", ALICE, {}, unsigned=redacted)
    found = await result(reader, poll)
    assert (found["readable"], found["question"], found["answers"]) == (False, None, [])
    assert found["redacted"] == {"event_id": None, "by": None, "at": None, "reason": None}


async def test_a_poll_is_told_as_last_edited(reader: Reader, room: Room) -> None:
    """Votes count by the present answers; another's edit is none, and no edit is a poll."""
    poll = await room.ask()
    await room.vote(poll, BOB, "yes")
    await room.vote(poll, CAROL, "no")
    answers = [{"m.id": "yes", "m.text": [{"body": "Oh yes"}]}]
    content = {"m.new_content": start(answers=answers), **relating(poll, "m.replace")}
    edit = await room.send("m.poll.start", ALICE, content, 30)
    forged = {"m.new_content": start(answers=[]), **relating(poll, "m.replace")}
    await room.send("m.poll.start", BOB, forged, 40)
    found = await result(reader, poll)
    assert found["answers"] == [{"id": "yes", "text": "Oh yes", "votes": 1, "voters": [BOB]}]
    assert found["spoiled"] == 1
    assert [one["event_id"] for one in found["edits"]] == [edit]
    assert await reader.status(f"/api/v1/polls/{quote(edit)}") == 404
    [listed] = (await ask(reader, "/api/v1/polls"))["polls"]
    assert [answer["text"] for answer in listed["answers"]] == ["Oh yes"]
    assert listed["responded"] == 2


async def test_a_redacted_edit_is_taken_back(reader: Reader, room: Room) -> None:
    """The words from before count again; not so where the poll itself was redacted."""
    for edit_alone in (True, False):
        poll = await room.ask()
        content = {"m.new_content": start(question={"m.text": "Coffee?"})}
        content |= relating(poll, "m.replace")
        edit = await room.send("m.poll.start", ALICE, content, 30)
        assert (await result(reader, poll))["question"] == "Coffee?"
        await room.redacted(*([edit] if edit_alone else [poll, edit]))
        found = await result(reader, poll)
        assert found["question"] == ("Tea?" if edit_alone else "Coffee?")
        assert (found["redacted"] is None) is edit_alone
        assert [one["event_id"] for one in found["edits"]] == ([] if edit_alone else [edit])


async def test_what_the_database_cannot_hold_is_read_from_its_bytes(
    reader: Reader, room: Room
) -> None:
    """A question with a NUL or half a character is shown as far as it can be."""
    for name, odd in (("nul", b"\\u0000"), ("half", b"\\ud83d")):
        event = orjson.dumps(
            {"event_id": f"${name}", "room_id": ROOM, "sender": ALICE, "type": "m.poll.start",
             "origin_server_ts": NOON, "content": start(question={"m.text": "Tea ODD"})}
        )  # fmt: skip
        await room.send_raw(event.replace(b"ODD", odd))
    await room.vote("$half", BOB, "yes")
    assert (await result(reader, "$nul"))["question"] == "Tea \0"
    half = await result(reader, "$half")
    assert (half["question"], votes(half)) == ("Tea ?", {"yes": 1, "no": 0})


@pytest.mark.parametrize(
    "content",
    [{}, {"m.poll": []}, {"m.poll": {}}, {"m.poll": {"answers": {}, "question": 1, "kind": []}}],
)
async def test_a_malformed_poll_is_told(reader: Reader, room: Room, content: Any) -> None:
    """With nothing in it, as it came; votes for it are spoiled."""
    poll = await room.send("m.poll.start", ALICE, content)
    await room.vote(poll, BOB, "yes")
    found = await result(reader, poll)
    assert (found["question"], found["answers"], found["spoiled"]) == (None, [], 1)
    assert found["readable"] is isinstance(content.get("m.poll"), dict)


async def test_what_is_no_poll_is_not_found(reader: Reader, room: Room) -> None:
    """Unknown, or another event; what is no text at all is refused."""
    for path in ("$nothing", "x" * 300, "$a/b"):
        assert await reader.status(f"/api/v1/polls/{path}") == 404
    assert (await reader.raw("/api/v1/polls/%00"))[0] == 400
    vote = await room.vote("$x", BOB, "yes")
    assert await reader.status(f"/api/v1/polls/{quote(vote)}") == 404


async def test_the_list_is_read_in_pages(reader: Reader, room: Room) -> None:
    """Newest first, each once, also when the clock says the same; new polls shift nothing."""
    polls = [await room.ask(ts=n // 3) for n in range(10)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = await ask(reader, "/api/v1/polls", **query)
        assert len(page["polls"]) <= 3
        seen += [poll["event_id"] for poll in page["polls"]]
        if page["next"] is None:
            break
        query["from"] = page["next"]
        await room.ask(ts=1000 + len(seen))
    assert sorted(seen) == sorted(polls)
    assert seen[0] == polls[-1]


async def test_the_list_is_filtered(reader: Reader, pool: Pool, room: Room) -> None:
    """By room, and by time: from `since` on, before `until`."""
    other = Room(pool, "!other:example.com")
    early, late = await room.ask(0), await room.ask(60_000)
    there = await other.ask(30_000)
    unstable = {f"{UNSTABLE}.start": {"question": {TEXT: "Coffee?"}, "answers": []}}
    coffee = await other.send(f"{UNSTABLE}.start", ALICE, unstable, 90_000)

    async def listed(**query: Any) -> list[str]:
        page = await ask(reader, "/api/v1/polls", **query)
        return [poll["event_id"] for poll in page["polls"]]

    assert await listed() == [coffee, late, there, early]
    assert await listed(room_id=ROOM) == [late, early]
    assert await listed(room_id=ROOM, unknown="x") == [late, early]
    assert await listed(since="2023-11-14T22:13:50Z") == [coffee, late, there]
    assert await listed(until="2023-11-14T22:13:50Z") == [early]
    assert await listed(since="2023-11-14T23:13:50+01:00", until="2023-11-14T22:14:20") == [there]
    assert await listed(since="2023-11-15") == []


async def test_the_list_tells_who_responded_and_the_end(reader: Reader, room: Room) -> None:
    """People and not responses, in the poll's room; nothing of how they voted."""
    poll = await room.ask()
    for sender, ts in ((BOB, 1), (BOB, 2), (CAROL, 3)):
        await room.vote(poll, sender, "yes", ts=ts)
    await Room(room.pool, "!other:example.com").vote(poll, ALICE, "yes")
    await room.end(poll)
    [listed] = (await ask(reader, "/api/v1/polls/"))["polls"]
    assert listed["responded"] == 2
    assert listed["ended"]["by"] == ALICE
    assert listed["answers"] == [{"id": "yes", "text": "Yes"}, {"id": "no", "text": "No"}]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"}, {"limit": "-1"}, {"limit": "ten"}, {"limit": ""}, {"since": "yesterday"},
        {"until": "0001-01-01T00:00:00+14:00"}, {"from": "x"}, {"from": "bnVsbA"}, {"from": "é"},
        {"from": "WzEsMl0"}, {"room_id": "a\0b"},
    ],
)  # fmt: skip
async def test_a_wrong_question_is_refused(reader: Reader, query: dict[str, str]) -> None:
    """With a sentence that names the parameter."""
    url = reader.server.make_url("/api/v1/polls").update_query(query)
    async with reader.session.get(url, headers=reader.headers) as answer:
        assert answer.status == 400
        error = await answer.json()
    assert error["errcode"] == "M_INVALID_PARAM"
    assert error["error"].startswith(next(iter(query)))


async def test_a_limit_beyond_the_most_is_the_most(reader: Reader, room: Room) -> None:
    """As Matrix does it."""
    await room.ask()
    assert len((await ask(reader, "/api/v1/polls", limit="9" * 50))["polls"]) == 1


async def test_polls_are_for_those_with_a_token(reader: Reader) -> None:
    """Like everything."""
    for path in ("/api/v1/polls", "/api/v1/polls/$x"):
        async with reader.session.get(reader.server.make_url(path)) as answer:
            assert answer.status == 401


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(
    ("statement", "arguments", "index"),
    [
        (POLLS, [None, None, None, None, None, 51], "event_poll"),
        (POLLS, ["!room1", None, None, None, None, 51], "event_poll"),
        (RESPONSES, ["$e7"], "event_vote"),
        (ENDS, [["$e7", "$e13"]], "event_vote"),
        (RESPONDED, [["$e7", "$e13"]], "event_vote"),
        (EDITS, [["$e7"]], "event_replaces"),
    ],
)
async def test_polls_are_found_by_index(
    pool: Pool, statement: str, arguments: list[Any], index: str, mode: str
) -> None:
    """However many events there are: a page of the list comes in order, votes by their poll."""
    await pool.execute(FILL)
    await pool.execute("ANALYZE event")
    async with pool.acquire() as conn:
        await conn.execute(f"SET plan_cache_mode = {mode}")
        text = await conn.fetchval("EXPLAIN (FORMAT JSON) " + statement, *arguments)
    found = list(_nodes(orjson.loads(text)[0]["Plan"]))
    assert [node for node in found if node["Node Type"] == "Seq Scan"] == []
    assert index in {node.get("Index Name") for node in found}


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)
