"""Deleting by hand: gone for ever, but for what is held and what others posted too."""

from __future__ import annotations

import asyncio
import os
import random
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
import pytest

from archiver.catalogue import erasure as catalogue
from archiver.catalogue import holds, queue
from archiver.catalogue.deletion import LOOK_AGAIN_AFTER
from archiver.catalogue.deletion import REASON as REDACTED
from archiver.catalogue.erasure import Weight
from archiver.catalogue.garbage import BYTES_AFTER
from archiver.catalogue.targets import AT_ONCE, OTHERS_OF_ROOM, WALKS, Target
from archiver.fetch.archive import Parts, archive_one
from archiver.keep.deletion import Deletion
from archiver.keep.erasure import Erased, Erasure
from archiver.keep.quarantine import quarantine, release
from archiver.model import Source
from tests.support.fetching import INLINE_LIMIT, claim, someone_waits, until
from tests.support.homeserver import Homeserver
from tests.support.keeping import (
    ADMIN,
    BOB,
    OF_ALICE,
    OF_ROOM,
    OTHER_ROOM,
    archive,
    blob_of,
    custody,
    file_of,
    media,
    read,
    states,
    tables,
)
from tests.support.redacting import (
    ALICE,
    ROOM,
    edit,
    emptied,
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
    from archiver.db.pool import Pool

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)
NOTHING = {"blob": 0, "data": 0, "garbage": 0}


async def delete(pool: Pool, target: Target) -> Erased:
    """Deletes to the end."""
    return [Erased(), *[done async for done in Erasure(pool, target, ADMIN).run()]][-1]


async def weigh(pool: Pool, target: Target) -> Weight:
    async with pool.acquire() as conn:
        return await catalogue.weigh(conn, target)


async def hold(pool: Pool, target: str) -> None:
    async with pool.acquire() as conn:
        await holds.place(conn, target, "a case", "shell:root")


async def contents(pool: Pool) -> dict[str, bool]:
    """Which events still have words."""
    rows = await pool.fetch("SELECT event_id, content <> '{}' OR raw IS NOT NULL FROM event")
    return {row[0]: row[1] for row in rows}


def member(event_id: str, sender: str, state_key: str, face: str) -> dict[str, Any]:
    content = {"membership": "join", "displayname": "Somebody", "avatar_url": str(mxc(face))}
    event = image(event_id, sender=sender, type="m.room.member", state_key=state_key)
    return event | {"content": content}


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "object"])
async def test_a_media_goes_with_its_bytes_and_leaves_a_tombstone(
    ours: Parts, homeserver: Homeserver, tmp_path: Path, data: bytes
) -> None:
    """Rows at once, an object's bytes a day later; who named it stays known, with their words."""
    await push(ours.pool, image("$a"), image("$b", sender=BOB))
    await archive(ours, homeserver, cat=data)
    file = file_of(tmp_path, (await blob_of(ours.pool, "cat")).sha256)
    assert await weigh(ours.pool, media("cat")) == Weight(1, len(data), 1, 0, 0, True)
    assert await delete(ours.pool, media("cat")) == Erased(1, len(data), 0)
    row = await media_row(ours.pool, "cat")
    assert (row["state"], row["blob_sha256"], row["due_at"]) == ("deleted", None, None)
    assert row["reason"] == f"delete: by {ADMIN.actor}, mxc {mxc('cat')}"
    assert row["redacted_at"] is None
    assert await contents(ours.pool) == {"$a": True, "$b": True}
    is_object = data is LARGE
    assert await tables(ours.pool) == {**NOTHING, "garbage": int(is_object)}
    assert file.exists() == is_object
    await pass_time(ours.pool, BYTES_AFTER)
    await Deletion(ours.pool, ours.store, None).work()
    assert not file.exists()
    told = {"media": [str(mxc("cat"))], "bytes": len(data)}
    assert await custody(ours.pool) == [(*ADMIN, "delete", str(mxc("cat")), told)]


async def test_it_does_not_come_back(ours: Parts) -> None:
    """Neither by a push, nor by old messages, nor by whatever tidies up after redactions."""
    await push(ours.pool, image("$a"))
    await delete(ours.pool, OF_ROOM)
    for source in Source:
        async with ours.pool.acquire() as conn:
            await put(conn, image("$a"), image(f"${source}"), source=source)
    await pass_time(ours.pool, LOOK_AGAIN_AFTER * 2)
    await Deletion(ours.pool, ours.store, timedelta()).work()
    assert await states(ours.pool) == {"cat": "deleted"}
    assert not (await contents(ours.pool))["$a"]


async def test_what_redaction_deleted_does_not_come_back_either(ours: Parts) -> None:
    """After `delete`, that somebody posts it again changes nothing."""
    await push(ours.pool, image("$a"), redaction("$r", "$a"))
    await redact(ours.pool)
    await pass_time(ours.pool, timedelta(days=8))
    await Deletion(ours.pool, ours.store, timedelta(days=7)).work()
    assert (await media_row(ours.pool, "cat"))["reason"] == REDACTED
    assert (await delete(ours.pool, media("cat"))).media == 1
    await push(ours.pool, image("$b"))
    assert (await media_row(ours.pool, "cat"))["state"] == "deleted"


async def test_words_go_with_an_event_a_user_a_room(ours: Parts) -> None:
    """Content, file names and captions, of what has no media too; not who may do what."""
    vote = image("$v", type="m.poll.response") | {"content": {"org.matrix.msc3381.v2": [1]}}
    power = image("$p", type="m.room.power_levels", state_key="") | {"content": {"ban": 50}}
    name = image("$n", type="m.room.name", state_key="") | {"content": {"name": "Cats"}}
    await push(ours.pool, image("$a"), edit("$e", "$a", "new"), vote, power, name)
    await push(ours.pool, image("$b", "dog", sender=BOB), image("$o", "cow", room_id=OTHER_ROOM))
    assert set((await contents(ours.pool)).values()) == {True}
    assert await delete(ours.pool, Target("event", "$a")) == Erased(2, 0, 2)
    gone = {event for event, words in (await contents(ours.pool)).items() if not words}
    assert gone == {"$a", "$e"}
    row = await ours.pool.fetchrow("SELECT * FROM reference WHERE event_id = '$a'")
    assert row is not None
    assert (row["filename"], row["caption"], row["words"]) == (None, None, None)
    assert await delete(ours.pool, OF_ALICE) == Erased(1, 0, 2)
    gone = {event for event, words in (await contents(ours.pool)).items() if not words}
    assert gone == {"$a", "$e", "$v", "$o"}
    assert await delete(ours.pool, OF_ROOM) == Erased(1, 0, 2)
    assert {event for event, words in (await contents(ours.pool)).items() if words} == {"$p"}
    assert await delete(ours.pool, OF_ROOM) == Erased()


async def test_what_others_posted_stays(ours: Parts, homeserver: Homeserver) -> None:
    """Until they are deleted too: an event without words names nothing any more."""
    await push(ours.pool, image("$a"), image("$b", sender=BOB, room_id=OTHER_ROOM))
    await archive(ours, homeserver, cat=SMALL)
    for target in (OF_ALICE, OF_ROOM, Target("event", "$a")):
        assert await weigh(ours.pool, target) == Weight(0, 0, 0, 0, 1, True)
    assert await delete(ours.pool, OF_ALICE) == Erased(0, 0, 1)
    assert await read(ours, "cat") == SMALL
    assert await delete(ours.pool, Target("user", BOB)) == Erased(1, len(SMALL), 1)
    assert await tables(ours.pool) == NOTHING


async def test_a_face_goes_with_its_user(ours: Parts) -> None:
    """Also where an invitation by somebody else shows it."""
    await push(ours.pool, member("$m", ALICE, ALICE, "face"), member("$i", BOB, ALICE, "face"))
    await push(ours.pool, member("$j", BOB, BOB, "bobs"))
    assert await delete(ours.pool, OF_ALICE) == Erased(1, 0, 2)
    assert await states(ours.pool) == {"face": "deleted", "bobs": "pending"}


async def test_a_shared_blob_stays_until_nobody_has_it(
    ours: Parts, homeserver: Homeserver
) -> None:
    """The bytes of two media are one blob, which the last one takes along."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog", sender=BOB))
    await archive(ours, homeserver, cat=LARGE, dog=LARGE)
    assert await weigh(ours.pool, media("cat")) == Weight(1, 0, 1, 0, 0, True)
    assert await delete(ours.pool, media("cat")) == Erased(1, 0, 0)
    assert await read(ours, "dog") == LARGE
    assert await delete(ours.pool, media("dog")) == Erased(1, len(LARGE), 0)
    assert await tables(ours.pool) == {**NOTHING, "garbage": 1}


async def test_two_media_of_one_blob_go_at_once(ours: Parts, homeserver: Homeserver) -> None:
    """In one commit, and the thumbnails made of it as well."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"), image("$t", "tiny"))
    await archive(ours, homeserver, cat=LARGE, dog=LARGE, tiny=SMALL)
    made, of = await blob_of(ours.pool, "tiny"), await blob_of(ours.pool, "cat")
    await ours.pool.execute("DELETE FROM reference WHERE media_id = 'tiny'")
    await ours.pool.execute("DELETE FROM media WHERE media_id = 'tiny'")
    await ours.pool.execute(
        "INSERT INTO variant VALUES ($1, 'recipe', $2, 1, 1)", of.sha256, made.sha256
    )
    both = len(LARGE) + len(SMALL)
    assert await weigh(ours.pool, OF_ROOM) == Weight(2, both, 1, 0, 0, True)
    assert await delete(ours.pool, OF_ROOM) == Erased(2, both, 3)
    assert await tables(ours.pool) == {**NOTHING, "garbage": 1}


@pytest.mark.parametrize("held", [str(mxc("cat")), "$a", ALICE, ROOM])
async def test_what_is_held_stays_with_its_words(
    ours: Parts, homeserver: Homeserver, held: str
) -> None:
    """Whatever names it, and an mxc too; released, a second run takes it."""
    await push(ours.pool, image("$a"))
    await archive(ours, homeserver, cat=SMALL)
    await hold(ours.pool, held)
    for target in (media("cat"), Target("event", "$a"), OF_ALICE, OF_ROOM):
        assert await weigh(ours.pool, target) == Weight(0, 0, 0, 1, 0, True)
        assert await delete(ours.pool, target) == Erased()
    assert await read(ours, "cat") == SMALL
    assert await contents(ours.pool) == {"$a": True}
    async with ours.pool.acquire() as conn:
        await holds.release(conn, held)
    assert await delete(ours.pool, OF_ROOM) == Erased(1, len(SMALL), 1)


async def test_quarantine_failure_and_exclusion_do_not_save_it(ours: Parts) -> None:
    """Of every state there is, a tombstone remains."""
    others = ["failed", "excluded", "quarantined"]
    await push(ours.pool, *(image(f"${state}", state) for state in others))
    await ours.pool.execute("UPDATE media SET state = media_id, reason = 'a', due_at = NULL")
    assert (await delete(ours.pool, OF_ROOM)).media == len(others)
    assert set((await states(ours.pool)).values()) == {"deleted"}


async def test_an_emptied_event_is_not_filled_again(ours: Parts) -> None:
    """Its original, which was still looked for, is not wanted any more."""
    await push(ours.pool, emptied(image("$a"), redaction("$r", "$a")))
    assert await ours.pool.fetchval("SELECT original FROM event WHERE event_id = '$a'") == "wanted"
    await delete(ours.pool, OF_ALICE)
    await push(ours.pool, image("$b"))
    async with ours.pool.acquire() as conn:
        await put(conn, image("$b"), source=Source.BACKFILL)
    row = await ours.pool.fetchrow("SELECT * FROM event WHERE event_id = '$a'")
    assert row is not None
    assert (row["original"], row["content"]) == (None, "{}")


async def test_a_late_push_does_not_bring_words_back(ours: Parts) -> None:
    """What a comparison found, and was deleted, may still be pushed: it counts as pushed then."""
    async with ours.pool.acquire() as conn:
        await put(conn, image("$a"), source=Source.RECONCILE)
    await delete(ours.pool, OF_ALICE)
    await push(ours.pool, image("$a"))
    row = await ours.pool.fetchrow("SELECT * FROM event WHERE event_id = '$a'")
    assert row is not None
    assert (row["source"], row["content"], row["raw"]) == ("push", "{}", None)


async def test_nothing_is_known_of_it(ours: Parts) -> None:
    """What the archive has not heard of is told apart from what has nothing left."""
    await push(ours.pool, image("$a"))
    for target in (media("dog"), Target("event", "$b"), Target("user", BOB), Target("room", "!b")):
        assert not (await weigh(ours.pool, target)).known
        assert await delete(ours.pool, target) == Erased()
    assert await custody(ours.pool) == []


async def test_more_than_a_page_and_a_crash_between(ours: Parts) -> None:
    """Whoever stops in the middle leaves the rest to the next run."""
    await push(ours.pool, *(image(f"${n}", f"m{n}") for n in range(AT_ONCE + 1)))
    run = Erasure(ours.pool, OF_ROOM, ADMIN).run()
    first = await anext(run)
    await run.aclose()
    assert first.media == AT_ONCE
    second = await delete(ours.pool, OF_ROOM)
    assert (second.media, second.events) == (1, AT_ONCE + 1)
    told = [detail for *_, detail in await custody(ours.pool)]
    assert sum(len(detail.get("media", ())) for detail in told) == AT_ONCE + 1


# Races


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "object"])
async def test_who_is_fetching_it_does_not_bring_it_back(
    ours: Parts, homeserver: Homeserver, data: bytes
) -> None:
    """The bytes that came in vain are garbage."""
    await push(ours.pool, image("$a"))
    homeserver.give(mxc("cat"), data)
    [job] = await claim(ours.pool)
    await delete(ours.pool, OF_ROOM)
    assert not (await archive_one(job, ours)).completed.held
    assert await states(ours.pool) == {"cat": "deleted"}
    assert await tables(ours.pool) == {**NOTHING, "garbage": int(data is LARGE)}


async def test_an_event_that_came_first_saves_it(ours: Parts) -> None:
    """A reference that is being recorded while its media is being deleted is waited for."""
    await push(ours.pool, image("$a"), image("$c", "dog"))
    async with ours.pool.acquire() as other:
        async with other.transaction():
            await put(other, image("$b", sender=BOB))
            deleting = asyncio.create_task(delete(ours.pool, OF_ALICE))
            await until(lambda: someone_waits(ours.pool), "the deletion waits")
            assert (await states(ours.pool))["dog"] == "deleted"
        assert (await deleting).media == 1
    assert await states(ours.pool) == {"cat": "pending", "dog": "deleted"}


async def test_an_event_that_came_later_does_not(ours: Parts) -> None:
    """It waits for the deletion, and finds a tombstone."""
    await push(ours.pool, image("$a"))
    async with ours.pool.acquire() as conn, conn.transaction():
        locked = await catalogue.lock_free(conn, [mxc("cat")])
        assert (await catalogue.delete_locked(conn, OF_ALICE, locked, "delete: by hand")).media
        pushing = asyncio.create_task(push(ours.pool, image("$b", sender=BOB)))
        await until(lambda: someone_waits(ours.pool), "the push waits")
    await pushing
    await pass_time(ours.pool, LOOK_AGAIN_AFTER)
    await Deletion(ours.pool, ours.store, timedelta()).work()
    assert await states(ours.pool) == {"cat": "deleted"}


async def test_a_hold_that_is_being_placed_is_waited_for(ours: Parts) -> None:
    """Whoever was first wins, for media and for words."""
    await push(ours.pool, image("$a"))
    async with ours.pool.acquire() as other:
        async with other.transaction():
            await holds.place(other, ROOM, "a case", "shell:root")
            deleting = asyncio.create_task(delete(ours.pool, OF_ALICE))
            await until(lambda: someone_waits(ours.pool), "the deletion waits")
        assert await deleting == Erased()
    assert await states(ours.pool) == {"cat": "pending"}


async def test_a_hold_waits_for_what_is_being_deleted(ours: Parts) -> None:
    """Nothing is deleted after its hold was acknowledged."""
    await push(ours.pool, image("$a"))
    async with ours.pool.acquire() as conn, conn.transaction():
        locked = await catalogue.lock_free(conn, [mxc("cat")])
        holding = asyncio.create_task(hold(ours.pool, ROOM))
        await until(lambda: someone_waits(ours.pool), "the hold waits")
        await catalogue.delete_locked(conn, OF_ROOM, locked, "delete: by hand")
    await holding
    assert await states(ours.pool) == {"cat": "deleted"}


async def test_several_may_delete_at_once(ours: Parts, homeserver: Homeserver) -> None:
    """Each media is deleted once, whoever does it, while people go on posting."""
    names = [f"m{n}" for n in range(20)]
    await push(ours.pool, *(image(f"${name}", name) for name in names))
    await archive(ours, homeserver, **dict.fromkeys(names, LARGE))
    deletions = [delete(ours.pool, target) for target in (OF_ALICE, OF_ROOM, OF_ALICE)]
    pushes = [push(ours.pool, image(f"$n{n}", *names[n : n + 2])) for n in range(18, 0, -1)]
    erased, _ = await asyncio.gather(asyncio.gather(*deletions), asyncio.gather(*pushes))
    await delete(ours.pool, OF_ROOM)
    assert set((await states(ours.pool)).values()) == {"deleted"}
    assert sum(done.media for done in erased) == len(names)
    assert await tables(ours.pool) == {**NOTHING, "garbage": 1}


@pytest.mark.parametrize(
    "statement", [*WALKS["event"], *WALKS["user"], *WALKS["room"], OTHERS_OF_ROOM]
)
async def test_a_walk_reads_no_table_whole(pool: Pool, statement: str) -> None:
    """Each page is found along an index."""
    await pool.execute(
        "INSERT INTO event (event_id, room_id, sender, type, content, source, has_media)"
        " SELECT '$' || n, '!' || n % 100, '@' || n % 100, 'm.room.message', '{}', 'push',"
        " n % 3 = 0 FROM generate_series(1, 20000) AS n"
    )
    await pool.execute("ANALYZE")
    text = await pool.fetchval(
        "EXPLAIN (FORMAT JSON) " + statement.replace("$4", "10"),
        "@7",
        await pool.fetchval("SELECT now() - interval '1 day'"),
        "",
    )
    assert "Seq Scan" not in orjson.dumps(orjson.loads(text)).decode()


# Any order


DATA = {f"m{number}": (SMALL, LARGE)[number % 2] for number in range(8)}


async def fetch_until(ours: Parts, done: asyncio.Event) -> None:
    """A worker, in short: what a deletion overtook starts over."""
    while not done.is_set() or "pending" in (await states(ours.pool)).values():
        for job in await claim(ours.pool, 2):
            try:
                await archive_one(job, ours)
            except asyncpg.ForeignKeyViolationError:
                async with ours.pool.acquire() as conn:
                    await queue.release(conn, [job])
        await asyncio.sleep(0)


async def meddle_until(pool: Pool, done: asyncio.Event, seed: int) -> None:
    """An administrator hides, shows and deletes whatever comes to mind."""
    chance = random.Random(seed)  # noqa: S311  # a repeatable choice, no secret
    while not done.is_set():
        target = chance.choice([media(f"m{chance.randrange(2, 8)}"), Target("user", BOB)])
        if chance.random() < 0.5:
            _ = [changed async for changed in quarantine(pool, target, "", ADMIN)]
        else:
            _ = [changed async for changed in release(pool, target, ADMIN)]
        if chance.random() < 0.3:
            await delete(pool, target)
        await asyncio.sleep(chance.random() / 100)


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_ever_half_gone(
    ours: Parts, homeserver: Homeserver, tmp_path: Path, seed: int
) -> None:
    """While the same few bytes are posted, fetched, hidden, shown and deleted all at once, what is
    held or only Alice's ends whole, what is deleted has no bytes, and no bytes are nobody's."""
    for name, data in DATA.items():
        homeserver.give(mxc(name), data)
    await hold(ours.pool, str(mxc("m2")))
    await push(ours.pool, *(image(f"$alices{n}", f"m{n}") for n in range(3)))
    done, chance = asyncio.Event(), random.Random(seed)  # noqa: S311  # no secret
    others = [asyncio.create_task(fetch_until(ours, done)) for _ in range(2)]
    others += [asyncio.create_task(meddle_until(ours.pool, done, seed + n)) for n in range(2)]
    for number in range(40):
        sender, name = chance.choice([ALICE, BOB]), chance.choice(list(DATA))
        await push(ours.pool, image(f"${number}", name, sender=sender))
        await asyncio.sleep(chance.random() / 100)
    done.set()
    await asyncio.gather(*others)
    for target in (OF_ALICE, Target("user", BOB)):
        _ = [changed async for changed in release(ours.pool, target, ADMIN)]
    await fetch_until(ours, done)
    await pass_time(ours.pool, BYTES_AFTER)
    await Deletion(ours.pool, ours.store, None).work()
    ended = await states(ours.pool)
    assert set(ended.values()) <= {"ready", "deleted"}
    assert [ended[name] for name in ("m0", "m1", "m2")] == ["ready"] * 3
    for name, state in ended.items():
        if state == "ready":
            assert await read(ours, name) == DATA[name]
    kept = {DATA[name] for name, state in ended.items() if state == "ready"}
    assert await tables(ours.pool) == {
        "blob": len(kept), "data": len(kept & {SMALL}), "garbage": 0,
    }  # fmt: skip
    assert len(list((tmp_path / "objects").glob("??/??/*"))) == len(kept & {LARGE})
