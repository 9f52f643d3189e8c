"""A room with media of every kind and role, under every odd name, for a bag to hold."""

from __future__ import annotations

import os
from base64 import b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from archiver.fetch.archive import Parts
from tests.support.bags import BOB, bodies, fill
from tests.support.homeserver import Homeserver
from tests.support.keeping import archive
from tests.support.redacting import ALICE, ROOM, SERVER, Event, push

if TYPE_CHECKING:
    from collections.abc import Callable

ODD = (
    "\u202e\u05d0\u05d1gpj.exe", "\U0001f468\u200d\U0001f469\u200d\U0001f467.png",
    "\u00e4" * 127 + "a",
    "same.png", "same.png", "CON", "aux.txt", "-rf", "%0A%2e%2e%2f", ".hidden", " ", "a/../b",
    "\u0645\u0631\u062d\u0628\u0627.ogg", "</title><img src=x onerror=alert(1)>",
    "\ufeff", "\u2028",
)  # fmt: skip
SHARED = b"the very same bytes"
FIRST = 1_700_000_050_000


def _content(kind: str, n: int, **more: Any) -> Event:
    name = ODD[n % len(ODD)]
    url = f"mxc://{SERVER}/f{n}"
    return {"msgtype": kind, "body": name, "filename": name, "url": url, **more}


def _with_thumbnail(kind: str, n: int) -> Event:
    return _content(kind, n, info={"thumbnail_url": f"mxc://{SERVER}/t{n}", "size": n})


def _encrypted(n: int, data: bytes) -> Event:
    key = {"kty": "oct", "alg": "A256CTR", "ext": True, "key_ops": ["decrypt"], "k": "secret"}
    digest = b64encode(sha256(data).digest()).decode().rstrip("=")
    file = {"url": f"mxc://{SERVER}/f{n}", "key": key, "iv": "x", "hashes": {"sha256": digest}}
    return {"msgtype": "m.file", "body": "secret.bin", "file": {**file, "v": "v2"}}


def _reaction(n: int) -> Event:
    relation = {"rel_type": "m.annotation", "event_id": "$e1", "key": f"mxc://{SERVER}/f{n}"}
    return {"m.relates_to": relation, "shortcode": ":party:"}


# Type of event and content, by number and the bytes of its media.
KINDS: tuple[tuple[str, Callable[[int, bytes], Event]], ...] = (
    ("m.room.message", lambda n, _: _with_thumbnail("m.image", n)),
    ("m.room.message", lambda n, _: _content("m.file", n)),
    ("m.room.message", lambda n, _: _content("m.audio", n, info={"duration": 50})),
    ("m.room.message", lambda n, _: _with_thumbnail("m.video", n)),
    ("m.sticker", lambda n, _: _content("", n)),
    ("m.room.member", lambda n, _: {"membership": "join", "avatar_url": f"mxc://{SERVER}/f{n}"}),
    ("m.room.message", _encrypted),
    ("m.reaction", lambda n, _: _reaction(n)),
    ("m.room.message", lambda n, _: _content("m.image", n)),
)


async def furnish(ours: Parts, homeserver: Homeserver, count: int) -> dict[str, bytes]:
    """What `fill` leaves there and `count` events more, each with media; returns the bytes."""
    given: dict[str, bytes] = {}
    events = []
    found = bodies(count).values()
    for n, data in enumerate(found):
        kind, content = KINDS[n % len(KINDS)]
        given[f"f{n}"] = SHARED if n % 7 == 0 else data
        told = content(n, given[f"f{n}"])
        if "thumbnail_url" in told.get("info", {}):
            given[f"t{n}"] = os.urandom(50)
        event: Event = {"event_id": f"$f{n}", "type": kind, "room_id": ROOM, "content": told}
        event |= {"sender": (ALICE, BOB)[n % 2], "origin_server_ts": FIRST + n}
        events.append(event | ({"state_key": f"@u{n}:{SERVER}"} if "membership" in told else {}))
    await push(ours.pool, *events)
    await archive(ours, homeserver, **given)
    return given | await fill(ours, homeserver, 120)
