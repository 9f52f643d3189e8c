"""Lists of media: what was posted, newest first, by every filter, page by page."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import pytest

from archiver.catalogue import listing
from archiver.model import Scope, Source
from tests.support import samples
from tests.support.serving import Archive, Reader, member, serving, state

ALICE, BOB = "@alice:archive.test", "@bob:archive.test"
ROOM, GARDEN = "!room:a", "!garden:a"
START = 1_735_689_600_000
PATH = "/api/v1/media"


def post(
    media_id: str,
    minute: int = 0,
    *,
    kind: str = "m.image",
    mimetype: str | None = "image/png",
    server: str = "archive.test",
    content: dict[str, Any] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """A message with a file, so many minutes after the first of January 2025."""
    body = {"msgtype": kind, "body": f"{media_id}.png", "url": f"mxc://{server}/{media_id}"}
    info = {"info": {"mimetype": mimetype, "size": 5}}
    return {
        "event_id": f"${media_id}{minute}",
        "room_id": ROOM,
        "sender": ALICE,
        "type": "m.room.message",
        "origin_server_ts": START + 60_000 * minute,
        "content": {**body, **info, **(content or {})},
        **fields,
    }


def png(width: int) -> bytes:
    """Three pixels high."""
    return samples.png(width, 3, (1, 2, 3))


def path(**query: Any) -> str:
    return f"{PATH}?{urlencode(query)}"


async def listed(reader: Reader, **query: Any) -> list[str]:
    """The media ids of a page."""
    return [item["mxc"].rpartition("/")[2] for item in (await reader.json(path(**query)))["media"]]


async def pages(reader: Reader, **query: Any) -> list[list[str]]:
    """The media ids of all pages."""
    found: list[list[str]] = []
    behind: dict[str, str] = {}
    while True:
        page = await reader.json(path(**query, **behind))
        found.append([item["mxc"].rpartition("/")[2] for item in page["media"]])
        if page["next"] is None:
            return found
        behind = {"from": page["next"]}


async def settle(archive: Archive, media_id: str, state: str, reason: str | None) -> None:
    await archive.pool.execute(
        "UPDATE media SET state = $2, reason = $3 WHERE media_id = $1", media_id, state, reason
    )


async def redact(archive: Archive, event_id: str) -> None:
    """As if Bob's redaction had been worked out."""
    redaction = {"redacts": event_id, "reason": "rude"}
    await archive.record(
        post("r", 90, type="m.room.redaction", sender=BOB, event_id="$r") | {"content": redaction}
    )
    await archive.pool.execute(
        "UPDATE event SET redacted_by = '$r', redacted_at = sent_at WHERE event_id = $1", event_id
    )


async def test_an_item_says_who_posted_what_where(archive: Archive, reader: Reader) -> None:
    """Names as they were, the sender's words, what became of it, and where its bytes are."""
    mxc = await archive.put(png(4), None)
    await archive.record(
        state("m.room.name", {"name": "Garden"}),
        member(ALICE, 1, displayname="Al"),
        member(ALICE, 9, displayname="Later"),
        post(mxc.media_id, 5, server=mxc.server_name, content={"body": "Hi", "filename": "a.png"}),
    )
    [item] = (await reader.json(PATH))["media"]
    blob = item.pop("blob")
    assert (blob["mimetype"], blob["width"], blob["height"]) == ("image/png", 4, 3)
    assert (blob["place"], blob["size"]) == ("inline", len(png(4)))
    assert item == {
        "mxc": str(mxc),
        "event_id": f"${mxc.media_id}5",
        "room": {"room_id": ROOM, "name": "Garden"},
        "sender": {"user_id": ALICE, "displayname": "Al"},
        "sent_at": "2025-01-01T00:05:00+00:00",
        "kind": "image",
        "role": "content",
        "item": 0,
        "filename": "a.png",
        "caption": "Hi",
        "declared_type": "image/png",
        "declared_size": 5,
        "encrypted": False,
        "state": "ready",
        "reason": None,
        "redacted": None,
        "content_url": f"/api/v1/media/{mxc.server_name}/{mxc.media_id}/content",
    }
    assert await reader.status(item["content_url"]) == 200


async def test_what_was_posted_twice_is_there_twice(archive: Archive, reader: Reader) -> None:
    """Each time in its own place, the newest first; a slash at the end changes nothing."""
    await archive.record(post("cat", 1), post("cat", 3, room_id=GARDEN), post("dog", 2))
    items = (await reader.json(PATH + "/"))["media"]
    assert [item["event_id"] for item in items] == ["$cat3", "$dog2", "$cat1"]
    assert [item["room"]["room_id"] for item in items] == [GARDEN, ROOM, ROOM]
    assert [item["state"] for item in items] == ["pending"] * 3
    assert [item["content_url"] for item in items] == [None] * 3


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_pages_hold_everything_once(archive: Archive, reader: Reader, size: int) -> None:
    """Also where an event names many media, and many events came in one moment."""
    gallery = {
        "msgtype": "m.gallery",
        "itemtypes": [
            {"itemtype": "m.image", "url": f"mxc://archive.test/g{n}", "body": "g"}
            for n in range(5)
        ],
    }
    await archive.record(
        post("a", 1),
        post("gallery", 1, content=gallery),
        *(post(f"b{n}", 1) for n in range(3)),
        post("c", 2),
    )
    whole = await listed(reader)
    assert len(whole) == 11
    gallery_items = [name for name in whole if name[0] == "g" and len(name) == 2]
    assert gallery_items == ["g0", "g1", "g2", "g3", "g4"]
    found = await pages(reader, limit=size)
    assert [name for page in found for name in page] == whole
    assert all(len(page) == size for page in found[:-1])


async def test_what_comes_meanwhile_moves_no_page(archive: Archive, reader: Reader) -> None:
    """A page goes on where the last one ended, whatever was posted or found since."""
    await archive.record(*(post("m", minute) for minute in range(4)))
    first = await reader.json(path(limit=2))
    await archive.record(post("new", 9), post("new", 3), post("old", 0))
    second = await reader.json(path(**{"limit": 9, "from": first["next"]}))
    assert [item["event_id"] for item in second["media"]] == ["$m1", "$old0", "$m0"]


@pytest.fixture
async def filled(archive: Archive) -> Archive:
    """One of everything, a minute apart."""
    await archive.record(
        post("image", 1),
        post("video", 2, kind="m.video", mimetype="video/mp4", room_id=GARDEN),
        post("audio", 3, kind="m.audio", mimetype="audio/ogg; codecs=opus", sender=BOB),
        post("file", 4, kind="m.file", mimetype=None, server="far.example"),
        post("sticker", 5, type="m.sticker"),
        member(BOB, 6, avatar_url="mxc://archive.test/avatar"),
        post("excluded", 7),
        post("secret", 8, mimetype="IMAGE/JPEG", content={
            "url": None, "file": {"url": "mxc://archive.test/secret", "key": {}}}),
    )  # fmt: skip
    await settle(archive, "excluded", "excluded", "capture.max_size: too large")
    return archive


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"room_id": GARDEN}, "video"),
        ({"sender": BOB}, "avatar audio"),
        ({"sender": BOB, "room_id": GARDEN}, ""),
        ({"kind": "image"}, "secret excluded image"),
        ({"kind": "video"}, "video"),
        ({"kind": "audio"}, "audio"),
        ({"kind": "file"}, "file"),
        ({"kind": "avatar"}, "avatar"),
        ({"kind": "sticker"}, "sticker"),
        ({"role": "content", "sender": BOB}, "audio"),
        ({"state": "excluded"}, "excluded"),
        ({"state": "failed"}, ""),
        ({"state": "pending", "kind": "video"}, "video"),
        ({"mimetype": "image/jpeg"}, "secret"),
        ({"mimetype": "Audio/OGG"}, "audio"),
        ({"mimetype": "image/*"}, "secret excluded sticker image"),
        ({"server_name": "far.example"}, "file"),
        ({"event_id": "$video2"}, "video"),
        ({"event_id": "$unheard-of"}, ""),
        ({"since": "2025-01-01T00:06:00Z"}, "secret excluded avatar"),
        ({"until": "2025-01-01T01:03:00+01:00"}, "video image"),
        ({"since": "2025-01-01 00:02", "until": "2025-01-01 00:03"}, "video"),
        ({"until": "2024-12-31"}, ""),
        ({"text": "video"}, "video"),
        ({"something": "else"}, "secret excluded avatar sticker file audio video image"),
    ],
    ids=str,
)
async def test_a_filter(
    filled: Archive, reader: Reader, query: dict[str, str], expected: str
) -> None:
    """Each by itself and together; the count says the same, also of an empty list."""
    assert await listed(reader, **query) == expected.split()
    found = await reader.json(path(**query, count="true", limit=1))
    assert found["count"] == {"matches": len(expected.split()), "exact": True}


async def test_all_media_of_the_same_bytes(archive: Archive, reader: Reader) -> None:
    """By the hash of the bytes, whatever they were called."""
    one, other = await archive.put(png(2)), await archive.put(png(2))
    await archive.put(png(3))
    for minute, mxc in enumerate((one, other)):
        await archive.record(post(mxc.media_id, minute, server=mxc.server_name))
    [first, _] = (await reader.json(PATH))["media"]
    for sha256 in (first["blob"]["sha256"], first["blob"]["sha256"].upper()):
        assert await listed(reader, sha256=sha256) == [other.media_id, one.media_id]
    assert await listed(reader, sha256="00" * 32) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("holiday", True), ("HOLIDAY", True), ("holi", True), ("img 2024", True), ("05", True),
        ("beach", True), ("jpg beach", True), ("größe", True), ("写真", True),
        ("gro\u0308ße", True), ("GRÖSSE", True),
        ("holiday.jpg", True), ("IMG_2024-05.holiday.jpg", True), ("it's", True),
        ("oliday", False), ("holiday mountain", False), ("0", False), ("bea & mountain", False),
    ],
)  # fmt: skip
async def test_words_are_found(archive: Archive, reader: Reader, text: str, found: bool) -> None:
    """In file name and caption, by their beginnings; punctuation parts words, case is none."""
    content = {"filename": "IMG_2024-05.holiday.jpg", "body": "It's the beach: Größe (写真集)"}
    await archive.record(post("a", 1, content=content), post("other", 2))
    assert await listed(reader, text=text) == (["a"] if found else [])


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1024, "ö" * 4096, "a " * 2048, "a-" * 2048, "'\\:*&|!()<->" * 300, "<a" * 2000,
        "http://a.b/" * 300, "1e9 " * 1000, "\u0301" * 4000, "\U0001f600" * 4000,
        "\x01\x7f" * 2000, "word%d " * 600, "../" * 1300, "ﷺ" * 4000, "\u0390" * 4000,
    ],
    ids=lambda text: ascii(text[:6]),
)  # fmt: skip
async def test_no_words_of_a_sender_are_refused(
    archive: Archive, reader: Reader, text: str
) -> None:
    """However long and odd, they are recorded as ever, and are no query's end."""
    await archive.record(post("a", 1, content={"filename": text[:1024], "body": text}))
    assert await archive.pool.fetchval("SELECT count(*) FROM reference") == 1
    async with reader.ask(path(text=text[:200])) as answer:
        assert answer.status in {200, 400}


async def test_only_the_first_words_of_a_long_caption_are_found(
    archive: Archive, reader: Reader
) -> None:
    """Two thousand characters of it, after the file name's thousand."""
    content = {"filename": "f" * 1024, "body": "near " + "x" * 2000 + " lost"}
    await archive.record(post("a", 1, content=content))
    assert await listed(reader, text="near") == ["a"]
    assert await listed(reader, text="lost") == []


async def test_hidden_ones_are_left_out_for_readers(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """Of a redacted event, and of an edit of it; administrators see who redacted it, and why."""
    edit = {"m.relates_to": {"rel_type": "m.replace", "event_id": "$bad1"}}
    await archive.record(post("bad", 1), post("edit", 2, content=edit), post("good", 3))
    await redact(archive, "$bad1")
    secrets = await archive.token("r"), await archive.token("a", Scope.ADMIN)
    async with serving(archive, database_url, hides_redacted=True) as server:
        reader, admin = (Reader(http, server, secret) for secret in secrets)
        assert await listed(reader) == ["good"]
        assert (await reader.json(path(count="true")))["count"]["matches"] == 1
        assert await listed(reader, event_id="$bad1") == []
        assert await listed(reader, text="bad") == []
        items = (await admin.json(PATH))["media"]
    assert [item["event_id"] for item in items] == ["$good3", "$edit2", "$bad1"]
    assert items[2]["redacted"] == {
        "by": "$r", "at": "2025-01-01T00:01:00+00:00", "sender": BOB, "reason": "rude"
    }  # fmt: skip
    assert items[0]["redacted"] is None


async def test_nothing_is_hidden_where_it_is_kept(archive: Archive, reader: Reader) -> None:
    """`capture.on_redaction: keep`: readers see it, and that it was redacted."""
    await archive.record(post("bad", 1))
    await redact(archive, "$bad1")
    [item] = (await reader.json(PATH))["media"]
    assert item["redacted"]["sender"] == BOB


@pytest.mark.parametrize(
    "query",
    [
        "kind=picture", "kind=", "role=x", "state=lost", "sha256=abc", "since=yesterday",
        "until=10000-01-01", "count=maybe", "limit=0", "limit=x", "text=%2E%2E", "text=", "from=x",
        "from=WzEsMl0", f"text={'a' * 201}", "room_id=%00", "event_id=%ED%A0%80%00",
        "from=" + quote("WyIyMDI1LTAxLTAxVDAwOjAwOjAwWiIsImUiLCJ4IiwxLDIsM10"),
    ],
)  # fmt: skip
async def test_a_wrong_query_is_told_so(reader: Reader, query: str) -> None:
    """400, and a sentence."""
    async with reader.ask(f"{PATH}?{query}") as answer:
        assert answer.status == 400
        assert (await answer.json())["errcode"] == "M_INVALID_PARAM"


async def test_a_page_looks_only_so_far(
    archive: Archive, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no index tells comes in pages that may be short or empty, and together have it all."""
    monkeypatch.setattr(listing, "FEW", 2)
    monkeypatch.setattr(listing, "MANY", 3)
    monkeypatch.setattr(listing, "MORE", 3)
    rare: dict[str, Any] = {"kind": "m.video", "mimetype": "video/mp4"}
    await archive.record(
        *(post(f"m{n}", n) for n in range(20)), post("v", 3, **rare), post("v", 12, **rare)
    )
    found = await pages(reader, kind="video")
    assert [name for page in found for name in page] == ["v", "v"]
    assert [] in found
    count = (await reader.json(path(kind="video", count="true")))["count"]
    assert count == {"matches": 0, "exact": False}
    assert sum(map(len, await pages(reader, limit=4))) == 22


@pytest.mark.parametrize(
    ("query", "complete"),
    [
        ({"state": "failed"}, True), ({"text": "rare"}, True), ({"server_name": "far"}, True),
        ({"state": "failed", "room_id": ROOM}, True), ({"text": "rare", "sender": ALICE}, True),
        ({"state": "pending"}, False), ({"text": "png"}, False),
    ],
)  # fmt: skip
async def test_what_an_index_tells_is_found_at_once(
    archive: Archive,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    query: dict[str, str],
    complete: bool,
) -> None:
    """However far back it is; only where there is too much of it, it is walked to."""
    await archive.record(
        *(post(f"m{n}", n) for n in range(20)), *(post("rare", n, server="far") for n in (1, 4))
    )
    await settle(archive, "rare", "failed", "gone: for good")
    monkeypatch.setattr(listing, "FEW", 2)
    monkeypatch.setattr(listing, "MANY", 0)
    monkeypatch.setattr(listing, "MORE", 0)
    monkeypatch.setattr(listing, "AT_ONCE", 3)
    found = await reader.json(path(**query, limit=50, count="true"))
    if complete:
        assert [item["event_id"] for item in found["media"]] == ["$rare4", "$rare1"]
        assert (found["count"], found["next"]) == ({"matches": 2, "exact": True}, None)
    else:
        assert found["next"]
        assert not found["count"]["exact"]


async def test_a_count_ends_at_its_most(
    filled: Archive, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are at least so many then."""
    monkeypatch.setattr(listing, "COUNTED", 3)
    found = await reader.json(path(count="true"))
    assert found["count"] == {"matches": 3, "exact": False}
    assert "count" not in await reader.json(path(count="false"))


async def test_what_came_emptied_is_listed_when_it_comes_filled(
    archive: Archive, reader: Reader
) -> None:
    """An event that names media only at its second coming is there, too."""
    because = {"redacted_because": {"type": "m.room.redaction"}}
    await archive.record(post("late", 1) | {"content": {}, "unsigned": because})
    assert await listed(reader) == []
    await archive.record(post("late", 1))
    assert await listed(reader) == ["late"]


async def test_media_found_in_a_known_event_are_listed(archive: Archive, reader: Reader) -> None:
    """A newer version may see more in it; where it came from stays known."""
    await archive.record(post("seen", 1))
    await archive.pool.execute("DELETE FROM reference")
    await archive.pool.execute("UPDATE event SET has_media = false")
    await archive.record(post("seen", 1), source=Source.RECONCILE)
    assert await listed(reader) == ["seen"]
    assert await archive.pool.fetchval("SELECT source FROM event") == "push"
