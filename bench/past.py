"""A homeserver that has been talked on before anybody thought of an archive."""

from __future__ import annotations

import asyncio
import random
import secrets
from typing import Any

import aiohttp

from bench.ground import SERVER_NAME
from tests.support.matrix import MatrixUser
from tests.support.synapse import Synapse

AT_ONCE = 8
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "once", "more")
REACTIONS = ("👍", "❤️", "🎉")


def talk(synapse: Synapse, rooms: int, events: int) -> list[str]:
    """So many rooms of about so many events each, and our bot an administrator; the rooms' ids."""
    return asyncio.run(_talk(synapse, rooms, events))


async def _talk(synapse: Synapse, rooms: int, events: int) -> list[str]:
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        admin = await synapse.register(http, "administrator", admin=True)
        await admin.make_admin(f"@archiver:{SERVER_NAME}")
        people = [await synapse.register(http, f"person{n}") for n in range(3)]
        slots = asyncio.Semaphore(AT_ONCE)

        async def room(number: int) -> str:
            async with slots:
                return await _room(people, number, events)

        return list(await asyncio.gather(*(room(number) for number in range(rooms))))


async def _room(people: list[MatrixUser], number: int, events: int) -> str:
    chance = random.Random(number)  # noqa: S311  # no secret
    first, *others = people
    room = await first.create_room(name=f"Room {number}", preset="public_chat")
    for person in others:
        await person.join(room)
    before = await first.send(room, "m.room.message", {"msgtype": "m.text", "body": "hello"})
    for place in range(events):
        kind, content = _event(chance, place, before)
        sent = await chance.choice(people).send(room, kind, content)
        before = sent if kind == "m.room.message" else before
    return room


def _event(chance: random.Random, place: int, before: str) -> tuple[str, dict[str, Any]]:
    """One in ten is an image, one in ten a reaction, one in twenty an answer; the rest is talk."""
    if place % 10 == 0:
        return "m.room.message", _image()
    if place % 10 == 5:
        key = f"{chance.choice(REACTIONS)}{place}"  # one of a kind by one person is all there is
        relation = {"rel_type": "m.annotation", "event_id": before, "key": key}
        return "m.reaction", {"m.relates_to": relation}
    body = " ".join(chance.choices(WORDS, k=chance.randrange(2, 40)))
    content: dict[str, Any] = {"msgtype": "m.text", "body": body, "m.mentions": {}}
    if place % 20 == 7:
        content["m.relates_to"] = {"m.in_reply_to": {"event_id": before}}
    if chance.random() < 0.3:
        content |= {"format": "org.matrix.custom.html", "formatted_body": f"<p>{body}</p>"}
    return "m.room.message", content


def _image() -> dict[str, Any]:
    """By another server's user, as Element sends one: such media waits for its budget."""
    return {
        "msgtype": "m.image",
        "body": "IMG_20250614_171502.jpg",
        "filename": "IMG_20250614_171502.jpg",
        "url": f"mxc://far.test/{secrets.token_urlsafe(18)}",
        "info": {
            "w": 1600,
            "h": 1200,
            "size": 102_400,
            "mimetype": "image/jpeg",
            "xyz.amorgan.blurhash": "LEHV6nWB2yk8pyo0adR*.7kCMdnj",
        },
        "m.mentions": {},
    }
