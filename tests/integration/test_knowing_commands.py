"""The commands that tell what the archive knows, on a real database."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from archiver.app import capture_policy
from archiver.catalogue import backfill, counting, holds, moments, readers, rooms
from archiver.catalogue.moments import Moment
from archiver.config import Config, parse_config
from archiver.control.asked import SHELL, Asked, Means
from archiver.control.commands import standing
from archiver.control.commands.knowing import COMMANDS
from archiver.control.reply import Reply, Table, as_html, plain
from archiver.errors import ConfigError, Misused, OperationError
from archiver.matrix.history import History
from archiver.matrix.registration import Registration
from archiver.matrix.speech import Speech
from archiver.model import Mxc
from tests.support import samples
from tests.support.homeserver import BOT, SERVER_NAME, TOKEN, Homeserver, error
from tests.support.serving import Archive, member, state

ALICE, BOB = "@alice:archive.test", "@bob:archive.test"
ROOM, DEN = "!room:a", "!den:a"
START = 1_735_689_600_000
ADMIN = f"/_synapse/admin/v1/users/{BOT}/admin"
VERSION = "/_synapse/admin/v1/server_version"
BY_NAME = {command.name: command for command in COMMANDS}

Ask = Callable[..., Awaitable[Reply]]


def answering(body: dict[str, Any]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    return answer


def configured(database_url: str, folder: Path, homeserver: str, **sections: Any) -> Config:
    """A configuration whose files lie in `folder`."""
    return parse_config(
        {
            "homeserver": {"url": homeserver, "server_name": SERVER_NAME},
            "database": {"url": database_url},
            **sections,
        },
        base=folder,
    )


def asking(archive: Archive, config: Config, http: aiohttp.ClientSession) -> Ask:
    """Gives a command, as words, on the shell."""
    registration = Registration("archive", TOKEN, "the-hs-token", BOT, "@_archiver:archive.test")
    url = config.homeserver.url
    means = Means(
        config,
        archive.pool,
        archive.store,
        History(http, url, TOKEN, BOT),
        Speech(http, url, registration),
        capture_policy(config, registration),
    )

    async def nothing(_reply: Reply) -> None:
        return None

    async def ask(name: str, *words: str) -> Reply:
        asked = Asked(means, "shell:test", SHELL, nothing, nothing, asyncio.sleep)
        reply = await BY_NAME[name].run(asked, **BY_NAME[name].parse(words))
        # Everything can be shown in every way.
        as_html(reply)
        orjson.dumps(reply.data)
        assert reply.data is not None
        return reply

    return ask


@pytest.fixture
def homeserver() -> Homeserver:
    """One whose administrator the bot is, not started yet."""
    server = Homeserver()
    server.give(ADMIN, answering({"admin": True}))
    server.give(VERSION, answering({"server_version": "1.98.0"}))
    return server


@pytest.fixture
def ask(
    archive: Archive, database_url: str, homeserver: Homeserver, http: aiohttp.ClientSession
) -> Ask:
    """A command to an archive with nothing special about it."""
    return asking(archive, configured(database_url, archive.folder, homeserver.url), http)


def post(mxc: Mxc, minute: int = 0, **fields: Any) -> dict[str, Any]:
    """An image, so many minutes after the first of January 2025."""
    content = {"msgtype": "m.image", "url": str(mxc), "body": f"picture{minute}.png"}
    return {
        "event_id": f"${mxc.media_id}{minute}",
        "room_id": ROOM,
        "sender": ALICE,
        "type": "m.room.message",
        "origin_server_ts": START + 60_000 * minute,
        "content": content,
        **fields,
    }


async def fill(archive: Archive) -> list[Mxc]:
    """The garden with two pictures of Alice and one that failed; the den with one of Bob's."""
    first = await archive.put(samples.png(4, 3, (1, 2, 3)))
    second = await archive.put(samples.png(5, 3, (1, 2, 3)))
    third = await archive.put(b"text", "text/plain")
    lost = Mxc(SERVER_NAME, "lost")
    await archive.record(
        state("m.room.name", {"name": "The garden"}),
        state("m.room.canonical_alias", {"alias": "#garden:archive.test"}),
        state("m.room.name", {"name": "The den"}, room=DEN),
        member(ALICE, displayname="Alice"),
        post(first, 1),
        post(second, 2),
        post(lost, 3),
        post(third, 60 * 24 * 40, room_id=DEN, sender=BOB),
        post(first, 60 * 24 * 41, room_id=DEN, sender=BOB),
    )
    await archive.pool.execute(
        "UPDATE media SET state = 'failed', reason = 'it is gone: 404', settled_at = now()"
        " WHERE media_id = 'lost'"
    )
    async with archive.pool.acquire() as conn:
        await rooms.see(conn, [ROOM, DEN])
    return [first, second, lost, third]


def lines(reply: Reply) -> list[str]:
    return plain(reply).splitlines()


def levels(reply: Reply) -> dict[str, str]:
    return {finding["check"]: finding["level"] for finding in reply.data}


async def say(archive: Archive, moment: Moment) -> None:
    async with archive.pool.acquire() as conn:
        await moments.note(conn, moment)


def test_every_command_has_help_that_fits_a_phone() -> None:
    """A first line that says what it is for."""
    for command in COMMANDS:
        assert 20 < len(command.summary) < 90, command.name
        assert command.summary.endswith((".", "?"))
        assert not command.changes
        assert command.name in command.usage


async def test_all_is_well(archive: Archive, ask: Ask, homeserver: Homeserver) -> None:
    """One line each, all of them good."""
    await archive.put(b"text")
    await say(archive, Moment.PUSH)
    async with homeserver:
        reply = await ask("status")
    assert lines(reply)[0] == "All is well."
    assert set(levels(reply).values()) == {"ok"}
    shown = plain(reply)
    for line in (
        "• ✅ queue · 0 due now; 0 later; 0 failed in the last day",
        "• ✅ files · 1 inline (4 B)",
        "• ✅ last push · just now",
        "• ✅ last reconcile · never; 0 rooms still to be compared",
        "• ✅ backfill · none under way",
        "• ✅ budget · 0 old media of other servers wait; they get 64.0 KiB a second",
        "• ✅ damaged files · none known",
        "• ✅ object store · filesystem answers",
        "• ✅ homeserver · answers (1.98.0); the bot is an administrator",
    ):
        assert line in re.sub(r"\d+ s ago", "just now", shown)
    assert re.search(r"• ✅ database · answers, \d", shown)
    assert re.search(r"• ✅ disk of objects, spool · .* free", shown)


async def test_what_is_wrong_says_what_to_do(archive: Archive, ask: Ask) -> None:
    """The homeserver is away, nobody fetches, a room cannot be read, a file is damaged."""
    await fill(archive)
    mxc = await archive.put_state("pending", None)
    async with archive.pool.acquire() as conn:
        await backfill.request(conn, [ROOM])
    await archive.pool.execute("UPDATE backfill SET state = 'failed', reason = 'no'")
    await archive.pool.execute("UPDATE blob SET damaged_at = now() WHERE size = 4")
    late = "UPDATE media SET due_at = now() - interval '2 h' WHERE media_id = $1"
    await archive.pool.execute(late, mxc.media_id)
    await archive.pool.execute(
        "INSERT INTO moment VALUES ('doubt', now() - interval '3 d'),"
        " ('push', now() - interval '3 d')"
    )
    reply = await ask("status")
    assert not reply.failed
    assert lines(reply)[0] == "6 things to look at."
    found = {finding["check"]: finding for finding in reply.data}
    assert (
        found["queue"]["said"]
        == "1 due now, the oldest for 2 h; 0 later; 1 failed in the last day"
    )
    assert found["damaged files"]["level"] == found["homeserver"]["level"] == "bad"
    assert found["last push"]["said"] == "3 d ago"
    wrong = {name for name, finding in found.items() if finding["level"] != "ok"}
    assert wrong == {
        "queue", "last push", "last reconcile", "backfill", "damaged files", "homeserver",
    }  # fmt: skip
    assert all(found[name]["advice"] for name in wrong)
    assert "→ run `archiver doctor`" in plain(reply)


async def test_a_database_that_is_away_is_one_line(
    archive: Archive, ask: Ask, homeserver: Homeserver
) -> None:
    """And what does not need it is looked at all the same."""
    await archive.pool.close()
    async with homeserver:
        reply = await ask("status")
    assert {"database": "bad", "homeserver": "ok", "object store": "ok"}.items() <= levels(
        reply
    ).items()


async def test_a_bot_without_power_is_told(ask: Ask, homeserver: Homeserver) -> None:
    """Which is no fault, but what it cannot read is said."""
    homeserver.give(ADMIN, answering({"admin": False}))
    homeserver.give(VERSION, error(404, "M_UNRECOGNIZED"))
    async with homeserver:
        shown = plain(await ask("status"))
    assert "• ✅ homeserver · answers; the bot is no administrator" in shown


async def test_a_folder_that_cannot_be_looked_at(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """Is told, and the other one's disk all the same."""
    storage = {"spool": str(archive.folder / ("x" * 300))}
    config = configured(database_url, archive.folder, "http://127.0.0.1:1", storage=storage)
    found = levels(await asking(archive, config, http)("status"))
    assert found["disk of spool"] == "bad"
    assert found["disk of objects"] == "ok"


@pytest.mark.parametrize(
    ("little", "none", "level"), [(2**60, 0, "warning"), (2**60, 2**60, "bad")]
)
async def test_a_disk_that_fills_up(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, little: int, none: int, level: str
) -> None:
    """Is to be looked at, and then to be mended."""
    monkeypatch.setattr(standing, "LITTLE_DISK", little)
    monkeypatch.setattr(standing, "NO_DISK", none)
    reply = await ask("status")
    assert levels(reply)["disk of objects, spool"] == level
    assert "→ free disk space" in plain(reply)


async def test_the_object_store_is_asked(
    archive: Archive, ask: Ask, homeserver: Homeserver
) -> None:
    """A folder that is gone is told."""
    (archive.folder / "objects").rename(archive.folder / "elsewhere")
    async with homeserver:
        assert levels(await ask("status"))["object store"] == "bad"


async def test_totals(archive: Archive, ask: Ask) -> None:
    """Media, files, events, reads, coverage, and the rooms that lack most."""
    await fill(archive)
    await archive.pool.execute("INSERT INTO served VALUES ('2025-01-01', 'memory', 1234)")
    reply = await ask("stats")
    assert reply.data["media"] == {"failed": 1, "ready": 3}
    assert reply.data["coverage"]["percent"] == 80.0
    shown = plain(reply)
    for line in (
        "Media by state:\n\n• failed · 1\n• ready · 3",
        "• inline · 3 · ",
        "• m.room.message · 5",
        "• given from memory · 1,234 · 0 in 30 days",
        "Coverage: 80.00 % of what was posted is here.",
        "• failed · 1 · it is gone: 1",
        "• rooms still to be compared with history · 2",
        "• unknown · 2",
        "• The garden · 66.66 % · ready 2 · pending 0 · failed 1 · other 0",
    ):
        assert line in shown


@pytest.mark.parametrize(
    ("group", "found"),
    [
        ("room", [("The den", "2"), ("The garden", "3")]),
        ("user", [(ALICE, "3"), (BOB, "2")]),
        ("type", [("image/png", "2"), ("(unknown)", "1")]),
        ("month", [("2025-02", "2"), ("2025-01", "3")]),
    ],
)
async def test_who_and_what_fills_it(
    archive: Archive, ask: Ask, group: str, found: list[tuple[str, str]]
) -> None:
    """Each media once in a group, the latest month first, else the most bytes."""
    await fill(archive)
    reply = await ask("stats", group)
    [table] = [part for part in reply.parts if isinstance(part, Table)]
    shown = [(name, media) for name, media, _ in table.rows]
    assert shown == found if group == "month" else set(shown) == set(found)
    sizes = [tally["bytes"] for tally in reply.data]
    assert group == "month" or sizes == sorted(sizes, reverse=True)


async def test_shared_bytes_count_once_in_a_group(archive: Archive, ask: Ask) -> None:
    """Two media of the same bytes, each posted twice."""
    same = [await archive.put(b"four"), await archive.put(b"four")]
    await archive.record(*(post(mxc, minute) for mxc in same for minute in (1, 2)))
    for group in ("room", "user", "type", "month"):
        [tally] = (await ask("stats", group)).data
        assert (tally["media"], tally["bytes"]) == (2, 4), group


@pytest.mark.parametrize("group", [(), ("room",)])
async def test_it_says_when_it_was_counted(
    archive: Archive, ask: Ask, group: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large archive is not counted for whoever asks, unless that is asked for."""
    monkeypatch.setattr(counting, "SMALL", -1)
    await fill(archive)
    assert "Counted" not in plain(await ask("stats", *group))
    await archive.pool.execute("UPDATE tally SET counted_at = now() - interval '5 min'")
    await archive.pool.execute("UPDATE media SET state = 'deleted', blob_sha256 = NULL")
    kept = await ask("stats", *group)
    assert re.search(r"Counted 5 min ago; --now counts anew\.", plain(kept))
    new = await ask("stats", *group, "--now")
    assert "Counted" not in plain(new)
    assert new.data != kept.data
    assert (await ask("stats", *group)).data == new.data


async def test_groups_of_nothing(ask: Ask) -> None:
    """An empty archive has a sentence, and an unknown group another."""
    assert plain(await ask("stats", "user")) == "Nothing is archived yet."
    with pytest.raises(Misused, match="colour"):
        await ask("stats", "colour")


async def test_rooms_by_their_media(archive: Archive, ask: Ask) -> None:
    """Named like people call them, those with most media first."""
    await fill(archive)
    assert lines(await ask("rooms")) == [
        "2 rooms:",
        "",
        "• The garden · 66.66 % · media 3 · newest 2025-01-01 00:03 · #garden:archive.test",
        "• The den · 100.00 % · media 2 · newest 2025-02-11 00:00 · !den:a",
    ]


@pytest.mark.parametrize("text", ["E den", "the DEN", "#garden", "!room:a"])
async def test_rooms_are_found_by_any_of_their_names(
    archive: Archive, ask: Ask, text: str
) -> None:
    """Name, alias and id, in any case."""
    await fill(archive)
    [found] = (await ask("rooms", *text.split())).data
    assert found["name"] == ("The garden" if "!" in text or "#" in text else "The den")


async def test_no_room_is_called_so(archive: Archive, ask: Ask) -> None:
    """Which is no mistake."""
    assert plain(await ask("rooms")) == "No room is known yet."
    await fill(archive)
    assert plain(await ask("rooms", "attic")) == "No room is called 'attic'."


async def test_a_room_in_full(archive: Archive, ask: Ask, homeserver: Homeserver) -> None:
    """By an alias, with what is not here and why, and how far its history is known."""
    await fill(archive)
    await archive.record(post(Mxc("a", "b"), 9, type="m.room.encrypted", content={}))
    await archive.pool.execute(
        "UPDATE room SET complete_from = '-infinity', complete_until = '2025-06-01'"
        " WHERE room_id = $1",
        ROOM,
    )
    homeserver.give(
        "/_matrix/client/v3/directory/room/#garden:archive.test", answering({"room_id": ROOM})
    )
    async with homeserver:
        reply = await ask("room", "https://matrix.to/#/%23garden%3Aarchive.test")
    assert lines(reply) == [
        "The garden (#garden:archive.test, !room:a)",
        "",
        "66.66 % of what was posted is here:",
        "",
        "• ready · 2",
        "• failed · 1 · it is gone: 1",
        "",
        "• 🔒 encrypted · 1 event cannot be opened",
        "• gaps · 0 events never pushed, found since; none open",
        "• complete · from beginning up to 2025-06-01 00:00",
        "• last active · never",
    ]


async def test_a_room_that_is_left_out(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> None:
    """By policy; also why its history cannot be read, and how its backfill stands."""
    await fill(archive)
    async with archive.pool.acquire() as conn:
        await backfill.request(conn, [DEN])
    await archive.pool.execute(
        "UPDATE room SET reason = 'the bot may not' WHERE room_id = $1", DEN
    )
    capture = {"rooms": {"except": [DEN]}}
    config = configured(database_url, archive.folder, "http://127.0.0.1:1", capture=capture)
    reply = await asking(archive, config, http)("room", DEN)
    assert reply.data["excluded"]
    shown = plain(reply)
    assert "• ⚠️ left out · capture.rooms says" in shown
    assert "• ⚠️ history cannot be read · the bot may not" in shown
    assert "• backfill · pending, 0 events read" in shown


async def test_a_room_that_nobody_knows(ask: Ask, homeserver: Homeserver) -> None:
    """By id, by an alias, and what is no room at all."""
    with pytest.raises(OperationError, match="knows nothing of !x:y"):
        await ask("room", "!x:y")
    async with homeserver:
        with pytest.raises(OperationError, match="#x:y: the homeserver does not have it"):
            await ask("room", "#x:y")
    with pytest.raises(Misused, match="is not a room"):
        await ask("room", ALICE)


async def test_a_media_in_full(archive: Archive, ask: Ask) -> None:
    """State, bytes, who posted it, who read it, what holds it."""
    first, *_ = await fill(archive)
    async with archive.pool.acquire() as conn:
        now = datetime(2025, 6, 1, tzinfo=UTC)
        await readers.add(
            conn, {readers.Read("token:panel", None, first): readers.Reads(2, now, now)}
        )
        await holds.place(conn, DEN, "a case", "shell:root")
        await holds.place(conn, BOB, "another", "shell:root")
        await holds.place(conn, "!elsewhere:a", "no matter", "shell:root")
    reply = await ask("show", str(first))
    assert reply.data["state"] == "ready"
    assert [hold["target"] for hold in reply.data["holds"]] == [DEN, BOB]
    shown = plain(reply)
    for line in (
        f"{first} is ready",
        "image/png, 4 x 3 pixels, kept inline, verified never\nSHA-256 ",
        "Posted 2 times:",
        f"• {BOB} · in The den · 2025-02-11 00:00 · as content: picture59040.png · $",
        f"• Alice ({ALICE}) · in The garden · 2025-01-01 00:01 · as content: picture1.png",
        "Read by:\n\n• token:panel · 2 times · 2025-06-01 00:00",
        "It is held:\n\n• !den:a · a case · by shell:root · since 2",
    ):
        assert line in shown


async def test_a_media_without_bytes(archive: Archive, ask: Ask) -> None:
    """Why there are none."""
    _, _, lost, _ = await fill(archive)
    shown = plain(await ask("show", str(lost)))
    assert f"{lost} is failed: it is gone: 404" in shown
    assert "There are no bytes of it." in shown
    assert "Nobody is known to have read it here." in shown


async def test_a_damaged_media_with_many_references(archive: Archive, ask: Ask) -> None:
    """The ten newest, and how many there are; the sender's time may be anything."""
    mxc = await archive.put(b"data")
    await archive.put(b"data")
    await archive.record(
        *(post(mxc, minute, sender=BOB) for minute in range(12)),
        post(mxc, 99, origin_server_ts=2**62),
    )
    await archive.pool.execute("UPDATE blob SET damaged_at = '2025-01-01'")
    reply = await ask("show", str(mxc))
    assert len(reply.data["references"]) == 10
    assert "Posted 13 times, the newest 10:" in plain(reply)
    assert "shared by 2 media" in plain(reply)
    assert "❌ damaged since 2025-01-01 00:00" in plain(reply)


async def test_an_event_with_several_media(archive: Archive, ask: Ask) -> None:
    """What it is, the state of all that it names, and its content in full."""
    content, thumbnail = await archive.put(b"data"), Mxc(SERVER_NAME, "small")
    event = post(content, 5)
    event["content"] |= {"info": {"thumbnail_url": str(thumbnail)}}
    await archive.record(event)
    shown = plain(await ask("show", event["event_id"]))
    for line in (
        f"{event['event_id']}: m.room.message by {ALICE} in {ROOM}",
        "sent 2025-01-01 00:05, received 2",
        "It names 2 media:",
        f"• {content} · content · picture5.png · ready",
        f"• {thumbnail} · thumbnail · pending",
        f"{content} is ready",
    ):
        assert line in shown


async def test_an_event_without_media(archive: Archive, ask: Ask) -> None:
    """Is shown as it is, with who redacted it."""
    event = state("m.room.name", {"name": "Den"})
    redaction = post(Mxc("a", "r"), 2, type="m.room.redaction", sender=BOB) | {
        "content": {"redacts": event["event_id"], "reason": "rude"}
    }
    await archive.record(event, redaction)
    await archive.pool.execute(
        "UPDATE event SET redacted_by = $2, redacted_at = now() WHERE event_id = $1",
        event["event_id"],
        redaction["event_id"],
    )
    shown = plain(await ask("show", event["event_id"]))
    assert f"redacted by {BOB}: rude" in shown
    assert "It names no media." in shown


async def test_what_is_not_there_cannot_be_shown(ask: Ask) -> None:
    """Media, events, and what is neither."""
    with pytest.raises(OperationError, match="nobody ever posted mxc://a/b"):
        await ask("show", "mxc://a/b")
    with pytest.raises(OperationError, match="keeps no ordinary text"):
        await ask("show", "$x")
    with pytest.raises(Misused, match="is not a media like mxc"):
        await ask("show", "!room:a")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("picture2", ["2"]),
        ("pict png", ["59040", "57600", "3", "2", "1"]),
        (f"--user {BOB}", ["59040", "57600"]),
        (f"pic --user {ALICE} --room {ROOM} --type image/png", ["2", "1"]),
        (f"--room {ROOM} --type image", ["2", "1"]),
        ("--type image/*", ["59040", "2", "1"]),
        ("--type file", ["57600", "3"]),
        ("--type avatar", []),
        ("--since 2025-02-01 picture", ["59040", "57600"]),
        ("--since 2025-02-10T00:00:01+00:00", ["59040"]),
    ],
)
async def test_media_is_found(archive: Archive, ask: Ask, words: str, found: list[str]) -> None:
    """By words, sender, room, type and time, the newest first."""
    await fill(archive)
    reply = await ask("find", *words.split())
    names = [re.sub(r"\D", "", item["filename"]) for item in reply.data]
    assert names == found
    if not found:
        assert plain(reply) == "Nothing like that was found."


async def test_a_find_reads_well(archive: Archive, ask: Ask) -> None:
    """File, size or state, who, where and when, and the mxc to go on with."""
    first, second, lost, _ = await fill(archive)
    assert lines(await ask("find", "--room", ROOM)) == [
        "3 matches:",
        "",
        f"• picture3.png · failed · by Alice · The garden, 2025-01-01 00:03 · {lost}",
        f"• picture2.png · {len(samples.png(5, 3, (1, 2, 3)))} B · by Alice"
        f" · The garden, 2025-01-01 00:02 · {second}",
        f"• picture1.png · {len(samples.png(4, 3, (1, 2, 3)))} B · by Alice"
        f" · The garden, 2025-01-01 00:01 · {first}",
    ]


async def test_only_the_newest_are_shown(archive: Archive, ask: Ask) -> None:
    """And how many there are."""
    mxc = await archive.put(b"data")
    await archive.record(*(post(mxc, minute) for minute in range(20)))
    reply = await ask("find", "picture")
    assert lines(reply)[0] == "20 matches, the newest 15:"
    assert len(reply.data) == 15


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "say what to look for"),
        ("?!", "holds no word"),
        ("x " * 200, "holds no word"),
        ("--type colour", "'colour' is none of image, video"),
        ("--type image/", "'image/' is none of"),
        ("--since yesterday", "no date like"),
        ("--since 0001-01-01T00:00+14:00", "no date like"),
        ("--user alice", "is not a user like"),
        ("--size 5", "No such option"),
    ],
)
async def test_a_wrong_find_is_a_sentence(ask: Ask, words: str, sentence: str) -> None:
    """That says what was expected."""
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        await ask("find", *words.split())


async def test_versions(ask: Ask, homeserver: Homeserver) -> None:
    """Of everything that has one, as far as it answers."""
    reply = await ask("version")
    assert "• homeserver · the homeserver does not answer" in plain(reply)
    assert re.fullmatch(r"\d{4}_\w+", reply.data["schema"])
    assert re.match(r"\d+\.\d", reply.data["PostgreSQL"])
    async with homeserver:
        assert (await ask("version")).data["homeserver"] == "1.98.0"
        homeserver.give(VERSION, answering({}))
        assert (await ask("version")).data["homeserver"] == "does not tell"


async def test_the_configuration_keeps_its_secrets(
    archive: Archive, http: aiohttp.ClientSession
) -> None:
    """Neither keys nor passwords, wherever they are written; what is set is marked."""
    config = configured(
        "postgresql://me:hunter2@db.example/archive?password=hunter2&x=1",
        archive.folder,
        "http://hs.example:8008",
        storage={"s3": {"access_key_id": "AK", "secret_access_key": "hunter2",
                        "endpoint_url": "https://u:hunter2@s3.example"},
                 "inline_limit": "2 MiB"},
        capture={"max_size": "1 GiB", "rooms": {"except": ["!a:b", "#c:d"]}},
        history={"remote_rate": None, "reconcile_every": "90 s"},
    )  # fmt: skip
    reply = await asking(archive, config, http)("config")
    shown = lines(reply)
    for line in (
        "• ✏️ database.url · postgresql://me:***@db.example/archive?***",
        "• ✏️ storage.s3.endpoint_url · https://u:***@s3.example",
        "• ✏️ storage.s3.secret_access_key · ***",
        "• ✏️ storage.inline_limit · 2.0 MiB",
        "• ✏️ capture.max_size · 1.0 GiB",
        "• ✏️ capture.rooms.except · !a:b, #c:d",
        "• ✏️ history.remote_rate · null",
        "• ✏️ history.reconcile_every · 90 s",
        "• capture.delete_after · 7 d",
        "• capture.remote_media · true",
        "• serve.listen · 127.0.0.1:29341",
        "• serve.keep_reads · 90 d",
        "• serve.hot_cache · 64.0 MiB",
        "• worker.concurrency · 8",
        f"• storage.spool · {archive.folder / 'data/spool'}",
    ):
        assert line in shown, line
    assert "hunter2" not in plain(reply) + orjson.dumps(reply.data).decode()
    assert not reply.data["database.url"]["default"]
    assert reply.data["storage.spool"]["default"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hun/ter2@db/a",
        "postgresql://me:hunt?er2@db/a",
        "postgres://me:h@unter2@db",
    ],
)
async def test_a_url_that_is_odd_is_not_shown(
    archive: Archive, http: aiohttp.ClientSession, url: str
) -> None:
    """A part of the password might be anywhere in it."""
    reply = await asking(archive, configured(url, archive.folder, "http://a"), http)("config")
    assert reply.data["database.url"]["value"] == "***"


async def test_an_old_media_waits_for_the_budget(archive: Archive, ask: Ask) -> None:
    """And the status says for how long it is spent."""
    mxc = await archive.put_state("pending", None)
    await archive.pool.execute(
        "UPDATE media SET paced_at = now(), due_at = 'infinity' WHERE media_id = $1", mxc.media_id
    )
    soon = datetime.now(UTC) + timedelta(hours=2, minutes=1)
    await archive.pool.execute("INSERT INTO budget VALUES ('remote', $1)", soon)
    found = {finding["check"]: finding["said"] for finding in (await ask("status")).data}
    assert found["queue"].startswith("0 due now; 0 later")
    assert found["budget"].startswith("1 old media of other servers wait")
    assert found["budget"].endswith("spent for 2 h ahead")


async def test_many_kinds_and_reasons_stay_short(archive: Archive, ask: Ask) -> None:
    """Whoever sends events chooses their types, so the commonest are shown."""
    await archive.pool.execute(
        "INSERT INTO event (event_id, room_id, type, content, source)"
        " SELECT '$' || n, '!room:a', 't' || n % 40, '{}', 'push'"
        " FROM generate_series(1, 400) AS n"
    )
    await archive.pool.execute(
        "INSERT INTO media (server_name, media_id, state, reason)"
        " SELECT 'a', n, 'failed', 'reason ' || n FROM generate_series(1, 20) AS n"
    )
    await archive.pool.execute(
        "INSERT INTO reference (event_id, server_name, media_id, role)"
        " SELECT '$' || n, 'a', n, 'content' FROM generate_series(1, 20) AS n"
    )
    reply = await ask("stats")
    shown = lines(reply)
    assert "• 25 other types · 250" in shown
    [failed] = [line for line in shown if line.startswith("• failed · 20 · reason")]
    assert failed.count("reason") == 8
    assert failed.endswith("…")
    assert len(reply.data["events"]) == 40
