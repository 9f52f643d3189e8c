"""Somebody in a room with the bot, as a client sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.support.archiver import eventually
from tests.support.matrix import CLIENT, MatrixUser

Event = dict[str, Any]
MESSAGE, REACTION = "m.room.message", "m.reaction"
DONE, FAILED = "✅", "❌"
PAGE = 1000


class Answer(NamedTuple):
    """What answers the event `said`, as it reads now; `marks` are reactions on that, `keys` those
    on the answer itself, all of them by who answers."""

    said: str
    event_id: str
    content: Event
    marks: frozenset[str]
    keys: frozenset[str]

    @property
    def body(self) -> str:
        """Its text."""
        return str(self.content["body"])

    @property
    def html(self) -> str:
        """Its text with its form."""
        return str(self.content["formatted_body"])

    @property
    def worked(self) -> bool:
        """True when what it answers is marked as done, and not as failed."""
        return DONE in self.marks and FAILED not in self.marks


class Seen:
    """All that was said in a room, the oldest first."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events

    def by(self, user_id: str) -> list[Event]:
        """What one user said and did there."""
        return [event for event in self.events if event["sender"] == user_id]

    def replies(self, said: str, by: str) -> list[Event]:
        """The messages by a user that answer an event, without later versions of them."""
        return [
            event for event in self.by(by) if event["type"] == MESSAGE and _answered(event) == said
        ]

    def keys(self, event_id: str, by: str) -> frozenset[str]:
        """The reactions of a user on an event."""
        relations = [_relation(event) for event in self.by(by) if event["type"] == REACTION]
        return frozenset(r["key"] for r in relations if r.get("event_id") == event_id)

    def versions(self, event: Event) -> list[Event]:
        """What a message said, from its first version to the one that counts."""
        relation = {"rel_type": "m.replace", "event_id": event["event_id"]}
        later = [e["content"] for e in self.by(event["sender"]) if _relation(e) == relation]
        return [event["content"], *(content["m.new_content"] for content in later)]

    def answer(self, said: str, by: str) -> Answer | None:
        """The last answer in words of a user to an event."""
        said_in_words = [
            event for event in self.replies(said, by) if event["content"]["msgtype"] != "m.image"
        ]
        if not said_in_words:
            return None
        event_id, content = said_in_words[-1]["event_id"], self.versions(said_in_words[-1])[-1]
        return Answer(said, event_id, content, self.keys(said, by), self.keys(event_id, by))


@dataclass(frozen=True)
class Seat:
    """A user's place in a room; `bot` is who answers there.

    Every wait has a deadline and raises TimeoutError.
    """

    user: MatrixUser
    room_id: str
    bot: str

    async def say(self, text: str, thread: str | None = None) -> str:
        """Says a text, in the thread below an event when one is named; returns its id."""
        content: Event = {"msgtype": "m.text", "body": text}
        if thread is not None:
            relation = {"rel_type": "m.thread", "event_id": thread, "is_falling_back": True}
            content["m.relates_to"] = {**relation, "m.in_reply_to": {"event_id": thread}}
        return await self.user.send(self.room_id, MESSAGE, content)

    async def react(self, event_id: str, key: str) -> str:
        """Reacts to an event; returns the reaction's id."""
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self.user.send(self.room_id, REACTION, {"m.relates_to": relation})

    async def ask(self, text: str, thread: str | None = None, timeout: float = 60) -> Answer:
        """Says a text and returns the answer, once the bot has marked what it answers."""
        said = await self.say(text, thread)
        return await self.answer_to(said, lambda answer: bool(answer.marks), timeout)

    async def question(self, text: str) -> Answer:
        """Says a text and returns what the bot asks back, once it can be answered."""
        return await self.answer_to(await self.say(text), lambda answer: len(answer.keys) == 2)

    async def answer_to(
        self, said: str, ready: Callable[[Answer], bool], timeout: float = 60
    ) -> Answer:
        """What the bot answers to an event, once it is `ready`."""
        last: Answer | None = None

        async def is_ready() -> bool:
            nonlocal last
            last = (await self.seen()).answer(said, self.bot)
            return last is not None and ready(last)

        try:
            await eventually("it was answered", is_ready, timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; so far: {last}") from None
        assert last is not None
        return last

    async def marked(self, said: str, timeout: float = 60) -> frozenset[str]:
        """The bot's reactions on an event, once there is one."""
        keys: frozenset[str] = frozenset()

        async def is_marked() -> bool:
            nonlocal keys
            keys = (await self.seen()).keys(said, self.bot)
            return bool(keys)

        await eventually(f"{said} is marked", is_marked, timeout)
        return keys

    async def seen(self) -> Seen:
        """Everything that this user may read there."""
        events: list[Event] = []
        parameters = {"dir": "b", "limit": str(PAGE)}
        while True:
            path = f"{CLIENT}/rooms/{quote(self.room_id)}/messages"
            page = await self.user.call("GET", path, params=parameters)
            events += page["chunk"]
            if not page["chunk"] or "end" not in page:
                return Seen(events[::-1])
            parameters["from"] = page["end"]


def _relation(event: Event) -> Event:
    return dict(event["content"].get("m.relates_to") or {})


def _answered(event: Event) -> str | None:
    """The event that a message answers; in a thread, where it names none, the thread's first."""
    relation = _relation(event)
    if relation.get("rel_type") == "m.replace":
        return None
    named = relation.get("m.in_reply_to", {}).get("event_id")
    return str(named or relation.get("event_id") or "") or None
