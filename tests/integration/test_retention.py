"""Rules of retention on a real database: what goes goes whole, and all else stays."""

from __future__ import annotations

import asyncio
import os
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from archiver.capture.policy import CapturePolicy
from archiver.catalogue import holds, room_use
from archiver.catalogue import retention as catalogue
from archiver.catalogue.deletion import LOOK_AGAIN_AFTER
from archiver.catalogue.retention import Stored
from archiver.catalogue.room_use import Use
from archiver.config import parse_config
from archiver.config.retention import Rule
from archiver.control.asked import Asked, Means
from archiver.control.commands import retaining
from archiver.control.reply import Reply, plain
from archiver.errors import Cancelled
from archiver.fetch.archive import Parts
from archiver.keep.deletion import Deletion
from archiver.keep.quarantine import OURSELVES, quarantine
from archiver.keep.retention import Expiry, Retention
from archiver.keep.rules import Cut, Quota, hour_of
from archiver.matrix.history import History
from archiver.matrix.registration import Registration
from archiver.matrix.speech import Speech
from archiver.model import Source
from tests.support.fetching import INLINE_LIMIT, someone_waits, until
from tests.support.homeserver import BOT, TOKEN, Homeserver
from tests.support.keeping import (
    ADMIN,
    BOB,
    OTHER_ROOM,
    archive,
    custody,
    media,
    read,
    states,
    tables,
)
from tests.support.redacting import (
    ALICE,
    ROOM,
    SERVER,
    image,
    media_row,
    mxc,
    pass_time,
    push,
    put,
    redact,
    redaction,
)

if TYPE_CHECKING:
    import aiohttp

    from archiver.db.pool import Pool

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)
PNG = b"\x89PNG\r\n\x1a\n" + os.urandom(INLINE_LIMIT - 8)
NOW = datetime.now(UTC)
OLD = {"keep": "90 d"}
REASON = "retention: rule 1 (keep 90 d)"


def days_ago(days: float) -> int:
    """As events tell it."""
    return int((NOW - timedelta(days=days)).timestamp() * 1000)


def posted(event_id: str, *names: str, days: float = 100, **fields: Any) -> dict[str, Any]:
    """An image that was posted so many days ago."""
    return image(event_id, *names, origin_server_ts=days_ago(days), **fields)


def face(event_id: str, name: str, days: float) -> dict[str, Any]:
    """Alice shows a new face."""
    content = {"membership": "join", "avatar_url": str(mxc(name))}
    event = posted(event_id, days=days, type="m.room.member", state_key=ALICE)
    return event | {"content": content}


def sticker(event_id: str, name: str, days: float) -> dict[str, Any]:
    content = {"body": "a sticker", "url": str(mxc(name)), "info": {"mimetype": "image/png"}}
    return posted(event_id, days=days, type="m.sticker") | {"content": content}


def retention(pool: Pool, *rules: dict[str, Any], server_name: str = SERVER) -> Retention:
    return Retention(pool, [Rule.model_validate(rule) for rule in rules], server_name)


async def plan(pool: Pool, *rules: dict[str, Any]) -> dict[str, int]:
    """What would go, by which rule."""
    return {
        one.media.mxc.media_id: one.rule
        async for page in retention(pool, *rules).plan()
        for one in page
    }


async def run(pool: Pool, *rules: dict[str, Any]) -> set[str]:
    """What went."""
    going = retention(pool, *rules).run(OURSELVES)
    return {one.media.mxc.media_id async for gone in going for one in gone.media}


async def used(pool: Pool, **days: float) -> None:
    """When media was archived and read last."""
    for name, ago in days.items():
        await pool.execute(
            "UPDATE media SET settled_at = now() - interval '900 d', last_accessed = $2"
            " WHERE media_id = $1",
            name,
            NOW - timedelta(days=ago),
        )


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "object"])
async def test_a_media_goes_with_its_bytes_and_leaves_a_tombstone(
    ours: Parts, homeserver: Homeserver, data: bytes
) -> None:
    """Which tells the rule; custody does so, too; and nothing brings the media back."""
    await push(ours.pool, posted("$a"), posted("$b", "dog", days=1))
    await archive(ours, homeserver, cat=data, dog=os.urandom(5))
    assert await plan(ours.pool, OLD) == {"cat": 1}
    assert set((await states(ours.pool)).values()) == {"ready"}
    assert await run(ours.pool, OLD) == {"cat"}
    row = await media_row(ours.pool, "cat")
    assert (row["state"], row["reason"], row["blob_sha256"]) == ("deleted", REASON, None)
    is_object = data is LARGE
    assert await tables(ours.pool) == {"blob": 1, "data": 1, "garbage": int(is_object)}
    told = {"media": {"rule 1 (keep 90 d)": [str(mxc("cat"))]}, "bytes": len(data)}
    assert await custody(ours.pool) == [(*OURSELVES, "retention", None, told)]
    assert await run(ours.pool, OLD) == set()
    for source in Source:
        async with ours.pool.acquire() as conn:
            await put(conn, posted("$a"), image(f"${source}"), source=source)
    await pass_time(ours.pool, LOOK_AGAIN_AFTER * 2)
    await Deletion(ours.pool, ours.store, timedelta()).work()
    assert await states(ours.pool) == {"cat": "deleted", "dog": "ready"}


async def hold_media(pool: Pool) -> None:
    await _hold(pool, str(mxc("cat")))


async def hold_room(pool: Pool) -> None:
    await _hold(pool, ROOM)


async def hold_sender(pool: Pool) -> None:
    await _hold(pool, ALICE)


async def hold_event(pool: Pool) -> None:
    await _hold(pool, "$a")


async def release_hold(pool: Pool) -> None:
    await _hold(pool, ROOM)
    async with pool.acquire() as conn:
        await holds.release(conn, ROOM)


async def redact_it(pool: Pool) -> None:
    await push(pool, redaction("$r", "$a"))
    await redact(pool)


async def redact_and_hold(pool: Pool) -> None:
    await redact_it(pool)
    await hold_room(pool)


async def set_aside(pool: Pool) -> None:
    async for _ in quarantine(pool, media("cat"), "", ADMIN):
        pass


async def post_again(pool: Pool) -> None:
    await push(pool, posted("$again", sender=BOB, days=1))


async def post_elsewhere(pool: Pool) -> None:
    await push(pool, posted("$again", room_id=OTHER_ROOM))


async def show_as_face(pool: Pool) -> None:
    await push(pool, face("$face", "cat", 200))


async def show_another_face(pool: Pool) -> None:
    await push(pool, face("$face", "cat", 200), face("$new", "new", 150))


async def send_as_sticker(pool: Pool) -> None:
    await push(pool, sticker("$sticker", "cat", 200))


async def nothing(_pool: Pool) -> None: ...


FACES = {"kind": "avatar", "keep": "1 d"}
STICKERS = {"kind": "sticker", "keep": "1 d"}


@pytest.mark.parametrize(
    ("rules", "done", "goes"),
    [
        ([], nothing, None),
        ([{}], nothing, None),
        ([OLD], nothing, 1),
        ([{"keep": "101 d"}], nothing, None),
        ([{"room": ROOM, **OLD}], nothing, 1),
        ([{"room": OTHER_ROOM, **OLD}], nothing, None),
        ([{"room": ROOM}, OLD], nothing, None),
        ([{"sender": ALICE, **OLD}], nothing, 1),
        ([{"sender": BOB, **OLD}], nothing, None),
        ([{"kind": "image", **OLD}], nothing, 1),
        ([{"kind": "video", **OLD}], nothing, None),
        ([{"larger_than": INLINE_LIMIT - 1, **OLD}], nothing, 1),
        ([{"larger_than": INLINE_LIMIT, **OLD}], nothing, None),
        ([{"remote": False, **OLD}], nothing, 1),
        ([{"remote": True, **OLD}], nothing, None),
        ([{"keep_unread": "30 d"}], nothing, None),
        ([OLD], hold_media, None),
        ([OLD], hold_room, None),
        ([OLD], hold_sender, None),
        ([OLD], hold_event, None),
        ([OLD], release_hold, 1),
        ([OLD], redact_it, 1),
        ([{}], redact_it, None),
        ([OLD], redact_and_hold, None),
        ([OLD], set_aside, None),
        ([{"quota": 0}], nothing, 1),
        ([{"quota": 0}], hold_media, None),
        ([{"quota": 0}], set_aside, None),
        ([{"quota": INLINE_LIMIT}], nothing, None),
        ([{"quota_per_room": 0}], nothing, 1),
        ([{"quota_per_room": 0}], hold_media, None),
        ([{"quota_per_room": 0}], set_aside, None),
        ([{"quota_per_room": 0}], redact_it, 1),
        ([{"quota_per_room": 0}], post_elsewhere, 1),
        ([{"room": ROOM, "quota_per_room": 0}], nothing, 1),
        ([{"room": ROOM, "quota_per_room": 0}], post_elsewhere, None),
        ([{"room": OTHER_ROOM}, {"quota_per_room": 0}], nothing, 2),
        ([{"room": OTHER_ROOM}, {"quota_per_room": 0}], post_elsewhere, None),
        ([{"quota_per_room": 0}], show_as_face, None),
        ([{"quota_per_room": 0}], send_as_sticker, None),
        ([{"quota_per_room": INLINE_LIMIT}], nothing, None),
        ([OLD], post_again, None),
        ([{"sender": BOB}, OLD], post_again, None),
        ([{"sender": BOB, "keep": "1 d"}, OLD], post_again, 1),
        ([OLD], post_elsewhere, 1),
        ([{"room": ROOM, **OLD}], post_elsewhere, None),
        ([OLD], show_as_face, None),
        ([FACES, OLD], show_as_face, None),
        ([OLD], show_another_face, None),
        ([FACES, OLD], show_another_face, 2),
        ([OLD], send_as_sticker, None),
        ([STICKERS, OLD], send_as_sticker, 2),
    ],
)
async def test_what_goes_and_what_stays(
    ours: Parts, homeserver: Homeserver, rules: list[dict[str, Any]], done: Any, goes: int | None
) -> None:
    """Alice's image of a hundred days ago; what is planned is what is done."""
    await push(ours.pool, posted("$a"))
    await archive(ours, homeserver, cat=PNG)
    await done(ours.pool)
    before = (await states(ours.pool))["cat"]
    assert await plan(ours.pool, *rules) == ({"cat": goes} if goes else {})
    assert (await states(ours.pool))["cat"] == before
    assert await run(ours.pool, *rules) == ({"cat"} if goes else set())
    assert (await states(ours.pool))["cat"] == ("deleted" if goes else before)
    if before == "ready" and not goes:
        assert await read(ours, "cat") == PNG


async def test_unread_since_it_was_read_or_archived(ours: Parts, homeserver: Homeserver) -> None:
    """However long ago it was posted."""
    await push(ours.pool, *(posted(f"${name}", name) for name in ("cat", "dog", "cow")))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE, cow=b"moo")
    await used(ours.pool, cat=31, dog=29)
    assert await run(ours.pool, {"keep_unread": "30 d"}) == {"cat"}


async def test_a_quota_lets_go_what_was_used_longest_ago(
    ours: Parts, homeserver: Homeserver
) -> None:
    """Down to the quota, and not further; what is held counts and stays."""
    names = [f"m{number}" for number in range(6)]
    await push(ours.pool, *(posted(f"${name}", name) for name in names))
    await archive(ours, homeserver, **{name: os.urandom(1000) for name in names})
    await used(ours.pool, m0=10, m1=60, m2=30, m3=50, m4=20, m5=40)
    await _hold(ours.pool, str(mxc("m1")))
    rule = {"room": ROOM, "quota": 3000}
    assert await plan(ours.pool, rule) == dict.fromkeys(("m3", "m5", "m2"), 1)
    assert await run(ours.pool, rule) == {"m3", "m5", "m2"}
    assert await run(ours.pool, rule) == set()


async def test_each_room_has_a_quota_of_its_own(ours: Parts, homeserver: Homeserver) -> None:
    """Under one rule: of each that is over, what was used longest ago goes; what is held counts
    and stays; no media of a room below its quota goes, however old."""
    here, there = [f"a{number}" for number in range(5)], [f"b{number}" for number in range(3)]
    await push(ours.pool, *(posted(f"${name}", name) for name in here))
    await push(ours.pool, *(posted(f"${name}", name, room_id=OTHER_ROOM) for name in there))
    await push(ours.pool, posted("$c", "c", room_id="!third"))
    names = [*here, *there, "c"]
    await archive(ours, homeserver, **{name: os.urandom(1000) for name in names})
    await used(ours.pool, a0=10, a1=60, a2=30, a3=50, a4=20, b0=5, b1=40, b2=7, c=800)
    await _hold(ours.pool, str(mxc("a1")))
    rule = {"quota_per_room": 2000}
    going = retention(ours.pool, rule)
    doomed = {one.media.mxc.media_id async for page in going.plan() for one in page}
    assert doomed == {"a2", "a3", "a4", "b1"}
    assert [(one.room_id, one.size) for one in going.over] == [(ROOM, 5000), (OTHER_ROOM, 3000)]
    assert await run(ours.pool, rule) == doomed
    assert await run(ours.pool, rule) == set()


async def test_what_is_in_several_rooms_goes_when_all_are_over(
    ours: Parts, homeserver: Homeserver
) -> None:
    """It counts in each of them; one with room left keeps it, and others make room instead."""
    await push(ours.pool, *(posted(f"${name}", name) for name in ("cat", "dog", "cow")))
    await push(ours.pool, posted("$there", "cat", room_id=OTHER_ROOM))
    await archive(ours, homeserver, **{name: os.urandom(1000) for name in ("cat", "dog", "cow")})
    await used(ours.pool, cat=90, dog=60, cow=30)
    rule = {"quota_per_room": 2000}
    assert await plan(ours.pool, rule) == {"dog": 1}
    others = (posted(f"${name}", name, room_id=OTHER_ROOM) for name in ("hen", "pig"))
    await push(ours.pool, *others)
    await archive(ours, homeserver, hen=os.urandom(1000), pig=os.urandom(1000))
    assert await run(ours.pool, rule) == {"cat"}


async def test_the_database_adds_up_what_rules_do(pool: Pool) -> None:
    """Any media in any rooms: the same have to go as if each room had a rule of its own."""
    chance = random.Random(7)  # noqa: S311  # no secret
    alone: dict[tuple[int, str], Quota] = {}
    kept: dict[tuple[int, str], list[Stored]] = defaultdict(list)
    async with room_use.counting(pool) as use:
        for number in range(2000):
            key = chance.randrange(1, 3), f"!{chance.randrange(40)}"
            at = NOW - timedelta(days=chance.randrange(30))
            media = Stored(mxc(str(number)), chance.randrange(1, 99), at, [])
            may_go = chance.random() < 0.6
            quota = alone.setdefault(key, Quota(1500 * key[0]))
            quota.count(media, may_go=may_go)
            kept[key].append(media)
            await use.add([Use(*key, hour_of(media), media.size, may_go)])
        found = {(one.rule, one.room_id): one for one in await use.over({1: 1500, 2: 3000})}
    for key, quota in alone.items():
        quota.settle()
        size = sum(media.size for media in kept[key])
        assert (key in found) is (size > 1500 * key[0])
        cut = Cut(found[key].last, found[key].rest) if key in found else Cut()
        for media in kept[key]:
            assert cut.wants(media) == quota.wants(media)
            if quota.wants(media):
                cut.give(media)
                quota.give(media)
    assert 0 < len(found) < len(alone)
    assert await pool.fetchval("SELECT to_regclass('pg_temp.room_use')") is None


async def test_shared_bytes_stay_while_another_has_them(
    ours: Parts, homeserver: Homeserver
) -> None:
    """They go with the last."""
    await push(ours.pool, posted("$a"), posted("$b", "dog", days=50))
    await archive(ours, homeserver, cat=SMALL, dog=SMALL)
    assert await run(ours.pool, OLD) == {"cat"}
    assert await read(ours, "dog") == SMALL
    assert await run(ours.pool, {"keep": "50 d"}) == {"dog"}
    assert await tables(ours.pool) == {"blob": 0, "data": 0, "garbage": 0}


async def test_a_thumbnail_goes_with_what_it_shows(ours: Parts, homeserver: Homeserver) -> None:
    """It is of the kind of its video."""
    event = posted("$a", "cat", "small")
    event["content"] |= {"msgtype": "m.video"}
    event["content"]["info"]["mimetype"] = "video/mp4"
    await push(ours.pool, event)
    await archive(ours, homeserver, cat=SMALL, small=b"text")
    await ours.pool.execute("UPDATE blob SET mimetype = 'video/mp4' WHERE size > 4")
    assert await plan(ours.pool, {"kind": "image", **OLD}) == {}
    assert await run(ours.pool, {"kind": "video", **OLD}) == {"cat", "small"}


async def test_more_than_a_page(
    ours: Parts, homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of any length find the same."""
    monkeypatch.setattr(catalogue, "AT_ONCE", 2)
    names = [f"m{number}" for number in range(7)]
    await push(ours.pool, *(posted(f"${name}", name) for name in names))
    await archive(ours, homeserver, **{name: os.urandom(9) for name in names})
    assert await run(ours.pool, OLD) == set(names)


async def read_it(pool: Pool) -> None:
    await used(pool, cat=1)


@pytest.mark.parametrize(
    ("rule", "meanwhile", "state"),
    [
        (OLD, post_again, "ready"),
        (OLD, set_aside, "quarantined"),
        ({"keep_unread": "30 d"}, read_it, "ready"),
        ({"quota": 0}, read_it, "ready"),
        ({"quota_per_room": 0}, read_it, "ready"),
        ({"quota_per_room": 0}, post_elsewhere, "ready"),
        ({"quota_per_room": 0}, nothing, "deleted"),
        (OLD, nothing, "deleted"),
    ],
)
async def test_what_happens_after_it_was_looked_at_counts(
    ours: Parts, homeserver: Homeserver, rule: dict[str, Any], meanwhile: Any, state: str
) -> None:
    """What is locked is judged once more."""
    await push(ours.pool, posted("$a"))
    await archive(ours, homeserver, cat=SMALL)
    await used(ours.pool, cat=40)
    async with ours.pool.acquire() as other, other.transaction():
        await holds.place(other, OTHER_ROOM, "a case", "shell:root")
        running = asyncio.create_task(run(ours.pool, rule))
        await until(lambda: someone_waits(ours.pool), "the deletion waits")
        await meanwhile(ours.pool)
    await running
    assert (await states(ours.pool))["cat"] == state


async def test_an_event_that_is_being_recorded_saves_it(
    ours: Parts, homeserver: Homeserver
) -> None:
    """Whoever records it is not waited for: the next run looks again."""
    await push(ours.pool, posted("$a"))
    await archive(ours, homeserver, cat=SMALL)
    async with ours.pool.acquire() as other, other.transaction():
        await put(other, posted("$b", days=1))
        assert await run(ours.pool, OLD) == set()
    assert await run(ours.pool, OLD) == set()


async def test_a_hold_that_is_being_placed_is_waited_for(
    ours: Parts, homeserver: Homeserver
) -> None:
    """Whoever was first wins."""
    await push(ours.pool, posted("$a"))
    await archive(ours, homeserver, cat=SMALL)
    async with ours.pool.acquire() as other, other.transaction():
        await holds.place(other, ROOM, "a case", "shell:root")
        running = asyncio.create_task(run(ours.pool, OLD))
        await until(lambda: someone_waits(ours.pool), "the deletion waits")
    assert await running == set()


async def test_several_may_run_at_once(ours: Parts, homeserver: Homeserver) -> None:
    """Each media is deleted once."""
    names = [f"m{number}" for number in range(20)]
    await push(ours.pool, *(posted(f"${name}", name) for name in names))
    await archive(ours, homeserver, **dict.fromkeys(names, LARGE))
    went = await asyncio.gather(*(run(ours.pool, OLD) for _ in range(3)))
    assert sum(map(len, went)) + len(await run(ours.pool, OLD)) == len(names)
    assert await tables(ours.pool) == {"blob": 0, "data": 0, "garbage": 1}


async def test_it_is_done_once_each_time(ours: Parts, homeserver: Homeserver) -> None:
    """Whichever process comes first does it; the next time is when the last is long enough ago."""
    await push(ours.pool, posted("$a"), posted("$b", "dog", days=80))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    await Expiry(ours.pool, retention(ours.pool, OLD), timedelta(hours=1)).work()
    assert await states(ours.pool) == {"cat": "deleted", "dog": "ready"}
    later = Expiry(ours.pool, retention(ours.pool, {"keep": "80 d"}), timedelta(hours=1))
    await later.work()
    assert await states(ours.pool) == {"cat": "deleted", "dog": "ready"}
    await ours.pool.execute("UPDATE moment SET at = at - interval '1 h'")
    await later.work()
    assert await states(ours.pool) == {"cat": "deleted", "dog": "deleted"}


async def test_the_commands(
    ours: Parts, homeserver: Homeserver, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """The plan tells rule by rule and deletes nothing; the other asks, deletes, and is noted."""
    await push(ours.pool, posted("$a"), posted("$b", "dog", days=50))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    rules = [{"kind": "video", "keep": "1 d"}, OLD]
    asked = await _asked(ours, http, tmp_path, rules)
    told = plain(await retaining.plan.run(asked))
    when = (NOW - timedelta(days=100)).strftime("%Y-%m-%d %H:%M")
    assert told == (
        "Now would go 1 media (9.8 KiB).\n\n"
        "• rule 1 (keep 1 d) · media 0 · bytes 0 B · oldest never\n"
        f"• rule 2 (keep 90 d) · media 1 · bytes 9.8 KiB · oldest {when}"
    )
    assert retaining.run.asks is not None
    assert told in plain(await retaining.run.asks(asked))
    assert set((await states(ours.pool)).values()) == {"ready"}
    assert plain(await retaining.run.run(asked)) == "Deleted 1 media (9.8 KiB)."
    assert plain(await retaining.plan.run(asked)).startswith("Now nothing would go.")
    [(actor, place, action, *_)] = await custody(ours.pool)
    assert (actor, place, action) == (*ADMIN, "retention")
    nothing_set = await _asked(ours, http, tmp_path, [])
    assert "everything is kept for ever" in plain(await retaining.plan.run(nothing_set))


async def test_the_plan_tells_of_rooms(
    ours: Parts, homeserver: Homeserver, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Those over their quota, the largest first."""
    await push(ours.pool, posted("$a"), posted("$b", "dog", room_id=OTHER_ROOM))
    await archive(ours, homeserver, cat=b"woof", dog=LARGE)
    asked = await _asked(ours, http, tmp_path, [{"sender": BOB}, {"quota_per_room": "0 B"}])
    reply = await retaining.plan.run(asked)
    assert plain(reply).endswith(
        "2 rooms over the quota:\n\n"
        f"• rule 2 (quota_per_room 0 B) · room {OTHER_ROOM} · bytes 9.8 KiB · quota 0 B\n"
        f"• rule 2 (quota_per_room 0 B) · room {ROOM} · bytes 4 B · quota 0 B"
    )
    assert [rule["rooms_over"] for rule in reply.data] == [
        [],
        [
            {"room_id": OTHER_ROOM, "size": len(LARGE), "quota": 0},
            {"room_id": ROOM, "size": 4, "quota": 0},
        ],
    ]


async def test_who_has_enough_is_told_how_far_it_came(
    ours: Parts, homeserver: Homeserver, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """What is gone is gone."""
    await push(ours.pool, posted("$a"))
    await archive(ours, homeserver, cat=SMALL)
    asked = await _asked(ours, http, tmp_path, [OLD], patience=0)
    with pytest.raises(Cancelled, match=r"1 media \(9\.8 KiB\) gone so far"):
        await retaining.run.run(asked)


async def _asked(
    ours: Parts,
    http: aiohttp.ClientSession,
    folder: Path,
    rules: list[dict[str, Any]],
    patience: int = 100,
) -> Asked:
    async def show(_reply: Reply) -> None: ...

    async def pause(_seconds: float) -> None:
        nonlocal patience
        patience -= 1
        if patience < 0:
            raise Cancelled("Cancelled.")

    homeserver = {"url": "http://localhost", "server_name": SERVER}
    config = parse_config({"homeserver": homeserver, "retention": {"rules": rules}}, folder)
    url, registration = "http://localhost", Registration("a", TOKEN, "hs", BOT, BOT)
    reader, speech = History(http, url, TOKEN, BOT), Speech(http, url, registration)
    means = Means(config, ours.pool, ours.store, reader, speech, CapturePolicy(SERVER))
    return Asked(means, *ADMIN, show, show, pause)


async def _hold(pool: Pool, target: str) -> None:
    async with pool.acquire() as conn:
        await holds.place(conn, target, "a case", "shell:root")


FILL = """
INSERT INTO blob (sha256, size, place) SELECT sha256(n::text::bytea), 1, 'inline'
FROM generate_series(1, 20000) AS n;
INSERT INTO media (server_name, media_id, state, blob_sha256)
SELECT 'a', n::text, CASE WHEN n % 10 > 0 THEN 'ready' ELSE 'quarantined' END,
       sha256(n::text::bytea)
FROM generate_series(1, 20000) AS n;
INSERT INTO event (event_id, room_id, sender, type, state_key, content, source, has_media)
SELECT '$' || n, '!' || n % 100, '@' || n % 100, 'm.room.member', '@' || n, '{}', 'push', true
FROM generate_series(1, 20000) AS n;
INSERT INTO reference (event_id, server_name, media_id, role)
SELECT '$' || n, 'a', n::text, 'content' FROM generate_series(1, 20000) AS n;
ANALYZE;
"""


async def test_no_look_reads_a_table_whole(pool: Pool) -> None:
    """A page, and what is locked, are found along indices."""
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute(FILL)
    names = ["a"] * 100, [str(number) for number in range(100)]
    for statement, arguments in (
        (catalogue.PAGE, ([ROOM], [BOB], "a", "5", 300)),
        (catalogue.PAGE, (None, [BOB], "a", "5", 300)),
        (catalogue.THESE, ([ROOM], [BOB], *names)),
        (catalogue.HELD, names),
    ):
        rows = await pool.fetch("EXPLAIN " + statement, *arguments)
        scans = [row[0] for row in rows if "Seq Scan" in row[0]]
        assert all("on hold" in scan for scan in scans), "\n".join(row[0] for row in rows)
