"""Every place where Matrix can put a media, posted through a real homeserver."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import pytest

from demo.people import People
from tests.acceptance.conftest import started
from tests.support.archiver import Archiver, eventually
from tests.support.encrypted import encrypt
from tests.support.matrix import CLIENT, MatrixUser
from tests.support.samples import png

PNG = {"mimetype": "image/png", "size": 100}
VOICE = {"org.matrix.msc3245.voice": {}, "org.matrix.msc1767.audio": {"duration": 900}}
# In the contents below, "<name>" stands for the mxc of a media, and FILE[name] for an
# EncryptedFile. "<event>" is the id of an event of the same room.
FILE = {f"{prefix}secret": {"<file>": f"{prefix}secret"} for prefix in ("", "thumb ", "new ")}


class Named(NamedTuple):
    """A reference as it must be; `media` is the name in the content."""

    media: str
    role: str
    item: int = 0
    filename: str | None = None
    caption: str | None = None
    encrypted: bool = False


@dataclass(frozen=True)
class Row:
    """An event to be sent, as state where it has a `state_key`, and the media in it."""

    what: str
    type: str
    content: Mapping[str, Any]
    named: list[Named] = field(default_factory=list)
    state_key: str | None = None


def _message(what: str, msgtype: str, *named: Named, **fields: Any) -> Row:
    return Row(what, "m.room.message", {"msgtype": msgtype, **fields}, list(named))


def _attachment(msgtype: str, **more: Any) -> Row:
    return _message(
        f"{msgtype} {' '.join(more)}".strip(),
        msgtype,
        Named("a", "content", 0, "a.bin", "look"),
        Named("b", "thumbnail"),
        body="look",
        filename="a.bin",
        url="<a>",
        info={**PNG, "thumbnail_url": "<b>", "thumbnail_info": PNG},
        **more,
    )


def _encrypted_attachment(msgtype: str) -> Row:
    return _message(
        f"{msgtype}, encrypted",
        msgtype,
        Named("secret", "content", 0, "a.bin", None, True),
        Named("thumb secret", "thumbnail", encrypted=True),
        body="a.bin",
        file=FILE["secret"],
        info={**PNG, "thumbnail_file": FILE["thumb secret"], "thumbnail_info": PNG},
    )


def _gallery(msgtype: str) -> Row:
    items = [
        {"itemtype": "m.image", "body": "one.png", "url": "<a>", "info": {"thumbnail_url": "<b>"}},
        {
            "itemtype": "m.file",
            "body": "words",
            "filename": "two.bin",
            "file": FILE["secret"],
            "info": {"thumbnail_file": FILE["thumb secret"]},
        },
    ]
    named = [
        Named("a", "content", 0, "one.png"),
        Named("b", "thumbnail", 0),
        Named("secret", "content", 1, "two.bin", "words", True),
        Named("thumb secret", "thumbnail", 1, encrypted=True),
    ]
    return _message(msgtype, msgtype, *named, body="Two", itemtypes=items)


def _pack(event_type: str, state_key: str) -> Row:
    images = {"cat": {"url": "<a>", "info": PNG}, "dog": {"url": "<b>", "body": "a good dog"}}
    content = {"images": images, "pack": {"display_name": "Pets", "avatar_url": "<c>"}}
    named = [
        Named("a", "pack_image", 0, None, "cat"),
        Named("b", "pack_image", 1, None, "a good dog"),
        Named("c", "avatar"),
    ]
    return Row(event_type, event_type, content, named, state_key)


def _previews(key: str, encryption: str) -> Row:
    previews = [
        {"matched_url": "https://example.com", "og:image": "<a>", "og:image:type": "image/png"},
        {"matched_url": "https://example.org", encryption: FILE["secret"]},
    ]
    named = [Named("a", "preview", 0), Named("secret", "preview", 1, encrypted=True)]
    return _message(f"{key} {encryption}", "m.text", *named, body="links", **{key: previews})


def _profile(key: str) -> list[Row]:
    person = {"id": "cat", "displayname": "Cat"}
    plain, hidden = {**person, "avatar_url": "<a>"}, {**person, "avatar_file": FILE["secret"]}
    return [
        _message(key, "m.text", Named("a", "avatar"), body="meow", **{key: plain}),
        _message(
            f"{key}, encrypted",
            "m.text",
            Named("secret", "avatar", encrypted=True),
            body="meow",
            **{key: hidden},
        ),
    ]


def _extensible(event_type: str, prefix: str, url: str = "url") -> Row:
    file = {url: "<a>", "name": "a.bin", **PNG}
    thumbnail = {f"{prefix}file": {url: "<b>", **PNG}}
    content = {
        f"{prefix}text": [{"body": "look"}],
        f"{prefix}file": file,
        f"{prefix}thumbnail": [thumbnail],
    }
    named = [Named("a", "content", 0, "a.bin", "look"), Named("b", "thumbnail")]
    return Row(f"{event_type} with {prefix}file.{url}", event_type, content, named)


def _encrypted_extensible(event_type: str, prefix: str) -> Row:
    content = {f"{prefix}text": "a.bin", f"{prefix}file": {"name": "a.bin", **FILE["secret"]}}
    named = [Named("secret", "content", 0, "a.bin", None, True)]
    return Row(f"{event_type} with {prefix}file, encrypted", event_type, content, named)


KINDS = ("file", "image", "video", "audio")
NEW = {"msgtype": "m.image", "body": "new.png", "url": "<b>", "info": {"thumbnail_url": "<c>"}}
NEW_SECRET = {"msgtype": "m.image", "body": "new.png", "file": FILE["new secret"]}
EDIT = {"rel_type": "m.replace", "event_id": "<event>"}
EMOTICON = '<img data-mx-emoticon src="<a>" alt=":cat:" height="32">'
ROWS = [
    *(_attachment(f"m.{kind}") for kind in KINDS),
    *(_encrypted_attachment(f"m.{kind}") for kind in KINDS),
    _attachment("m.audio", **VOICE),
    _message(
        "an image without a filename",
        "m.image",
        Named("a", "content", 0, "cat.png"),
        body="cat.png",
        url="<a>",
    ),
    _message(
        "m.location",
        "m.location",
        Named("a", "thumbnail"),
        body="here",
        geo_uri="geo:1,2",
        info={"thumbnail_url": "<a>", "thumbnail_info": PNG},
    ),
    _message(
        "m.location, encrypted",
        "m.location",
        Named("secret", "thumbnail", encrypted=True),
        body="here",
        geo_uri="geo:1,2",
        info={"thumbnail_file": FILE["secret"], "thumbnail_info": PNG},
    ),
    Row(
        "m.sticker",
        "m.sticker",
        {"body": "a cat", "url": "<a>", "info": {**PNG, "thumbnail_url": "<b>"}},
        [Named("a", "sticker", 0, None, "a cat"), Named("b", "thumbnail")],
    ),
    Row(
        "m.sticker, encrypted",
        "m.sticker",
        {
            "body": "a cat",
            "file": FILE["secret"],
            "info": {**PNG, "thumbnail_file": FILE["thumb secret"]},
        },
        [
            Named("secret", "sticker", 0, None, "a cat", True),
            Named("thumb secret", "thumbnail", encrypted=True),
        ],
    ),
    _message(
        "an edit",
        "m.image",
        Named("a", "content", 0, "* new.png"),
        Named("b", "content", 0, "new.png"),
        Named("c", "thumbnail"),
        **{"body": "* new.png", "url": "<a>", "m.new_content": NEW, "m.relates_to": EDIT},
    ),
    _message(
        "an edit, encrypted",
        "m.image",
        Named("secret", "content", 0, "* new.png", None, True),
        Named("new secret", "content", 0, "new.png", None, True),
        **{
            "body": "* new.png",
            "file": FILE["secret"],
            "m.new_content": NEW_SECRET,
            "m.relates_to": EDIT,
        },
    ),
    _gallery("m.gallery"),
    _gallery("dm.filament.gallery"),
    _message(
        "inline emoticons",
        "m.text",
        Named("a", "emoticon"),
        body=":cat:",
        format="org.matrix.custom.html",
        formatted_body=f"look {EMOTICON}",
    ),
    _message(
        "the fallback of a spoiler",
        "m.text",
        Named("a", "other"),
        body="[Spoiler](<a>)",
        format="org.matrix.custom.html",
        formatted_body="<span data-mx-spoiler>hidden</span>",
    ),
    _pack("m.room.image_pack", "pets"),
    _pack("im.ponies.room_emotes", "pets"),
    Row(
        "a reaction",
        "m.reaction",
        {"m.relates_to": {"rel_type": "m.annotation", "event_id": "<event>", "key": "<a>"}},
        [Named("a", "emoticon")],
    ),
    _previews("m.url_previews", "matrix:image:encrypted"),
    _previews("m.url_previews", "matrix:image:encryption"),
    _previews("com.beeper.linkpreviews", "beeper:image:encryption"),
    *_profile("m.per_message_profile"),
    *_profile("com.beeper.per_message_profile"),
    Row(
        "m.room.avatar",
        "m.room.avatar",
        {"url": "<a>", "info": {**PNG, "thumbnail_url": "<b>"}},
        [Named("a", "avatar"), Named("b", "thumbnail")],
        "",
    ),
    *(_extensible(f"m.{kind}", "m.") for kind in (*KINDS, "voice")),
    *(_extensible(f"org.matrix.msc1767.{kind}", "org.matrix.msc1767.") for kind in KINDS),
    _extensible("org.matrix.msc3245.voice.v2", "org.matrix.msc1767."),
    _extensible("m.image", "m.", "uri"),
    _encrypted_extensible("m.file", "m."),
    _encrypted_extensible("org.matrix.msc1767.file", "org.matrix.msc1767."),
    Row(
        "a poll with pictures",
        "m.poll.start",
        {"m.poll": {"answers": [{"m.id": "a", "m.file": {"url": "<a>"}}]}},
        [Named("a", "other")],
    ),
    Row(
        "what nobody has thought of yet",
        "org.example.unheard_of",
        {"deep": [{"down": {"in": "<a>"}}]},
        [Named("a", "other")],
    ),
]


class _Media:
    """The media of one event, uploaded as they are needed."""

    def __init__(self, user: MatrixUser, event_id: str) -> None:
        self._user = user
        self._event_id = event_id
        self.mxcs: dict[str, str] = {}

    async def fill(self, value: Any) -> Any:
        """The content with what its placeholders stand for."""
        if isinstance(value, str):
            return await self._text(value)
        if isinstance(value, list):
            return [await self.fill(member) for member in value]
        if not isinstance(value, Mapping):
            return value
        rest = {key: await self.fill(member) for key, member in value.items() if key != "<file>"}
        return {**rest, **await self._file(value["<file>"])} if "<file>" in value else rest

    async def _text(self, text: str) -> str:
        text = text.replace("<event>", self._event_id)
        for name in "abc":
            if f"<{name}>" in text:
                mxc = await self._user.upload(png(4, 4, (1, 2, 3)) + secrets.token_bytes(8))
                self.mxcs[name] = mxc
                text = text.replace(f"<{name}>", mxc)
        return text

    async def _file(self, name: str) -> dict[str, Any]:
        data, file = encrypt(png(4, 4, (1, 2, 3)))
        self.mxcs[name] = await self._user.upload(data, "application/octet-stream")
        return {**file, "url": self.mxcs[name]}


async def _post(user: MatrixUser, room: str, row: Row, event_id: str) -> tuple[str, set[Any]]:
    """Sends it; returns the event's id, and the references that it must have."""
    media = _Media(user, event_id)
    content = await media.fill(row.content)
    if row.state_key is None:
        sent = await user.send(room, row.type, content)
    else:
        sent = await user.send_state(room, row.type, content, row.state_key)
    return sent, {named._replace(media=media.mxcs[named.media]) for named in row.named}


async def _references(conn: asyncpg.Connection[asyncpg.Record], event_id: str) -> set[Named]:
    rows = await conn.fetch(
        "SELECT 'mxc://' || server_name || '/' || media_id, role, item, filename, caption, "
        "encryption IS NOT NULL AND encryption ? 'hashes' AND NOT encryption ? 'url' "
        "FROM reference WHERE event_id = $1",
        event_id,
    )
    return {Named(*row) for row in rows}


async def test_every_place_of_a_media_is_known(
    archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """An event of each kind, each with its stable and unstable names: every media in it is
    archived, and its reference says what it is to the event."""
    reader = await started(archive, http)
    room = await people.alice.create_room(name="The shelf")
    first = await people.alice.send(room, "m.room.message", {"msgtype": "m.text", "body": "hi"})
    posted = {row.what: await _post(people.alice, room, row, first) for row in ROWS}
    assert len(posted) == len(ROWS), "two rows have one name"
    expected = {what: named for what, (_, named) in posted.items()}
    await reader.until("ready", *{one.media for named in expected.values() for one in named})
    conn = await asyncpg.connect(archive.dsn)
    try:
        found = {what: await _references(conn, sent) for what, (sent, _) in posted.items()}
    finally:
        await conn.close()
    assert found == expected


async def test_faces_and_the_ones_before_are_known(
    archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """A new avatar in somebody's profile is a reference of the member event, and so is the one
    that it took the place of, even if nobody archived the event that had it."""
    user = people.bob
    before, after = [await user.upload(png(4, 4, (n, 0, 0))) for n in (1, 2)]
    await _show_face(user, people.room, before)
    reader = await started(archive, http)
    event_id = await _show_face(user, people.room, after)
    await reader.until("ready", before, after)
    conn = await asyncpg.connect(archive.dsn)
    try:
        found = await _references(conn, event_id)
    finally:
        await conn.close()
    assert found == {Named(before, "avatar"), Named(after, "avatar")}


async def _show_face(user: MatrixUser, room: str, mxc: str) -> str:
    """Changes the profile; returns the id of the event that it makes in a room."""
    path = f"{CLIENT}/profile/{user.user_id}/avatar_url"
    await user.call("PUT", path, json={"avatar_url": mxc})
    shown: list[str] = []

    async def is_shown() -> bool:
        newest = await user.call("GET", f"{CLIENT}/rooms/{room}/messages?dir=b&limit=5")
        shown[:] = [
            event["event_id"]
            for event in newest["chunk"]
            if event["content"].get("avatar_url") == mxc
        ]
        return bool(shown)

    await eventually("the room shows the new face", is_shown)
    return shown[0]


def _poll(start: str, question: Any, answers: list[Any]) -> dict[str, Any]:
    return {start: {"question": question, "answers": answers, "max_selections": 1}}


UNSTABLE = "org.matrix.msc3381.poll."
TEXT = "org.matrix.msc1767.text"
OPAQUE = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA", "session_id": "s"}
KEPT = [
    ("m.poll.start", _poll("m.poll", {"m.text": [{"body": "Tea?"}]}, [{"m.id": "yes"}])),
    ("m.poll.response", {"m.selections": ["yes"]}),
    ("m.poll.end", {"m.text": [{"body": "Over"}]}),
    (f"{UNSTABLE}start", _poll(f"{UNSTABLE}start", {TEXT: "Tea?"}, [{"id": "yes", TEXT: "Yes"}])),
    (f"{UNSTABLE}response", {f"{UNSTABLE}response": {"answers": ["yes"]}}),
    (f"{UNSTABLE}end", {f"{UNSTABLE}end": {}, TEXT: "Over"}),
    ("m.room.encrypted", OPAQUE),
]


@pytest.mark.parametrize("version", ["10", "12"])
async def test_what_has_no_media_and_is_kept(
    archive: Archiver, people: People, http: aiohttp.ClientSession, version: str
) -> None:
    """Polls, votes and ends under both names, what cannot be opened, and redactions, whose target
    sits in another place since room version 11: each is there word by word."""
    reader = await started(archive, http)
    alice = people.alice
    room = await alice.create_room(room_version=version)
    expected: dict[str, Any] = {}
    poll = ""
    for kind, content in KEPT:
        relation = {"rel_type": "m.reference", "event_id": poll}
        votes = kind.endswith((".response", ".end"))
        whole = {**content, "m.relates_to": relation} if votes else content
        event_id = await alice.send(room, kind, whole)
        poll = event_id if kind.endswith(".start") else poll
        expected[event_id] = (kind, whole)
    picture = await alice.upload(png(4, 4, (5, 5, 5)))
    target = await alice.send_image(room, picture)
    await reader.until("ready", picture)
    redaction = await alice.redact(room, target)
    last = await alice.upload(png(4, 4, (6, 6, 6)))
    await alice.send_image(room, last)
    await reader.until("ready", last)  # the homeserver pushes in order
    conn = await asyncpg.connect(archive.dsn)
    try:
        rows = await conn.fetch("SELECT * FROM event WHERE room_id = $1", room)
    finally:
        await conn.close()
    kept = {row["event_id"]: row for row in rows}
    found = {name: (kept[name]["type"], json.loads(kept[name]["content"])) for name in expected}
    assert found == expected
    assert (kept[redaction]["type"], kept[redaction]["redacts"]) == ("m.room.redaction", target)
    assert json.loads(kept[target]["content"])["url"] == picture
