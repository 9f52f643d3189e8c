"""A thousand events as a hostile room would send them, and what an archive must find in them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import count

SERVER_NAME = "archive.test"
INLINE_LIMIT = 64 * 1024

# $E is the event's id, $M the mxc URI that must be found.
_ORDINARY = '{"msgtype": "m.image", "body": "a.png", "url": "$M", "info": {"size": 7}}'
_DEEP = 30_000  # deeper than any Python parses, within 64 KiB


def _event(
    content: str = _ORDINARY,
    *,
    event_id: str = '"$E"',
    kind: str = '"m.room.message"',
    room: str = '"!garden"',
    sender: str = '"@mallory:archive.test"',
    ts: str = "1700000000000",
    more: str = "",
) -> str:
    return (
        f'{{"event_id": {event_id}, "type": {kind}, "room_id": {room}, "sender": {sender},'
        f' "origin_server_ts": {ts}, "content": {content}{more}}}'
    )


_NAMED = [
    _event('{"msgtype": "m.image", "url": "$M", "info": "x"}'),
    _event('{"msgtype": "m.image", "url": "$M", "info": {"thumbnail_file": [7]}}'),
    _event('{"msgtype": ["m.image"], "url": "$M", "m.relates_to": "x"}'),
    _event('{"msgtype": "m.image", "url": {"url": "$M"}}'),
    _event('{"msgtype": "m.image", "file": {"url": "$M", "hashes": 5, "key": [], "iv": null}}'),
    _event('{"msgtype": "m.gallery", "itemtypes": [7, null, {"itemtype": {}, "url": "$M"}]}'),
    _event('{"msgtype": "m.image", "body": "\\u0000", "filename": "a\\u0000b", "url": "$M"}'),
    _event('{"msgtype": "m.image", "body": "\\ud800", "url": "$M"}'),
    _event('{"msgtype": "m.image", "\\udfff": "\\ud800\\ud800", "url": "$M"}'),
    _event('{"msgtype": "m.image", "url": "$M", "n": 1e400}'),
    _event('{"msgtype": "m.image", "url": "$M", "n": ' + "9" * 5000 + "}"),
    _event('{"msgtype": "m.image", "url": "$M", "n": -170141183460469231731687303715884105728}'),
    _event('{"msgtype": "m.image", "url": "$M", "info": {"size": -1, "w": 1.5, "mimetype": 5}}'),
    _event('{"msgtype": "m.image", "url": "$M", "url": "$M", "body": "' + "b" * 60_000 + '"}'),
    _event('{"msgtype": "m.image", "url": "mxc://../../etc/passwd", "x": ["$M"]}'),
    _event('{"msgtype": "m.image", "url": "mxc://archive.test/..", "x": "see $M there"}'),
    _event('{"msgtype": "m.image", "url": "mxc:///x", "avatar_url": "$M"}'),
    _event('{"msgtype": "m.image", "url": "mxc://archive.test/' + "a" * 300 + '", "x": "$M"}'),
    _event('{"msgtype": "m.text", "formatted_body": "<img src=\\"$M\\"><img src=\'mxc://\'>"}'),
    _event('{"$M": {"$M": "$M"}}'),
    _event('{"m.relates_to": {"rel_type": "m.annotation", "key": "$M"}}', kind='"m.reaction"'),
    _event('{"images": {"a": {"url": "$M"}, "b": 1}, "pack": []}', kind='"m.room.image_pack"'),
    _event('{"m.new_content": [{"url": "$M"}], "m.relates_to": {"rel_type": "m.replace"}}'),
    _event('["$M"]'),
    _event('"$M"'),
    _event("null", more=', "unsigned": {"prev_content": {"avatar_url": "$M"}}'),
    _event(kind="7"),
    _event(kind="null"),
    _event(kind='"m.\\u0000"'),
    _event(kind='"' + "k" * 5000 + '"'),
    _event(sender='["@mallory:archive.test"]'),
    _event(sender='"\\ud800"'),
    _event(room='{"!garden": 1}'),
    _event(room='"' + "r" * 5000 + '"'),
    _event(ts='"yesterday"'),
    _event(ts="-5"),
    _event(ts="9223372036854775807"),
    _event(ts="1e300"),
    _event(more=', "state_key": 5, "redacts": {}'),
    _event(more=', "state_key": "\\u0000", "event_id": "$E"'),
]
# Without an id that a database could take, or too deep for anyone to find it.
_NAMELESS = [
    _event('{"a": ' + "[" * _DEEP + '"$M"' + "]" * _DEEP + "}"),
    _event('{"x": ' + '{"x": ' * _DEEP + '"$M"' + "}" * _DEEP + "}"),
    _event(event_id="null"),
    _event(event_id="17"),
    _event(event_id='"$E\\u0000"'),
    _event(event_id='"$E\\ud800"'),
    _event(event_id='"$E' + "e" * 300 + '"'),
    _event(event_id="[]"),
    '{"content": {"url": "$M"}}',
    '["$M"]',
    '"$M"',
]
# Of no concern to an archive of media.
_IDLE = [
    _event('{"msgtype": "m.text", "body": "hello"}'),
    _event('{"msgtype": "m.image", "url": "mxc://../.."}'),
    "null",
    "17",
    '"mxc://"',
    "[]",
    "{}",
]


@dataclass
class Room:
    """What was posted: raw events, and what must be known of it afterwards.

    `media` holds the ids of all media, `named` the ids of the events that can keep theirs, by the
    media they name, `nameless` the number of the other events that must be kept.
    """

    events: list[bytes] = field(default_factory=list)
    media: set[str] = field(default_factory=set)
    named: dict[str, str] = field(default_factory=dict)
    nameless: int = 0


def bytes_of(media_id: str) -> bytes:
    """The body behind a media id, which says what it is: `number-seed-size`."""
    _, seed, size = media_id.split("-")
    return random.Random(seed).randbytes(int(size))  # noqa: S311  # no secret, the same each time


def hostile_room(distinct: int, repeated: int) -> Room:
    """`distinct` different events, of which `repeated` ones come twice, in no order.

    Half of them are ordinary, the others are not. A third of the media shares its bytes with
    other media; a quarter is over INLINE_LIMIT.
    """
    chance = random.Random(1)  # noqa: S311  # the same room each time
    room = Room()
    numbers = count()
    shapes = [*_NAMED, *_NAMELESS, *_IDLE]
    for number in range(distinct):
        text = _event() if number % 2 else shapes[number // 2 % len(shapes)]
        media_id = _media_id(next(numbers), chance)
        raw = text.replace("$E", f"$event{number}").replace(
            "$M", f"mxc://{SERVER_NAME}/{media_id}"
        )
        room.events.append(raw.encode())
        if text in _IDLE:
            continue
        room.media.add(media_id)
        if text in _NAMELESS:
            room.nameless += 1
        else:
            room.named[media_id] = f"$event{number}"
    room.events += chance.sample(room.events, repeated)
    chance.shuffle(room.events)
    return room


def _media_id(number: int, chance: random.Random) -> str:
    large = chance.random() < 0.25
    if chance.random() < 0.33:
        seed, size = chance.choice(((1, 200_000), (2, 90_000)) if large else ((3, 5000), (4, 0)))
        return f"{number}-{seed}-{size}"
    size = chance.randrange(INLINE_LIMIT + 1, 4 * INLINE_LIMIT) if large else 100 + number * 37
    return f"{number}-{1000 + number}-{size}"
