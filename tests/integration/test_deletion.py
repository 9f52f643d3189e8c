"""`capture.on_redaction: delete`: gone after a grace period unless held, and never half gone."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
import asyncpg
import orjson
import pytest

from archiver.catalogue import deletion, garbage, holds, queue
from archiver.catalogue.deletion import DUE, LOOK_AGAIN_AFTER, WORDY
from archiver.catalogue.garbage import BYTES_AFTER
from archiver.errors import ConfigError, OperationError, StoreUnavailable
from archiver.fetch.archive import Parts, archive_one
from archiver.keep.deletion import Deletion
from archiver.keep.originals import Originals
from archiver.keep.redaction_policy import followers
from archiver.matrix.history import History
from archiver.model import Blob, Place, Source
from archiver.store.filesystem import FilesystemStore
from tests.support.fetching import INLINE_LIMIT, claim, parts, someone_waits, until
from tests.support.homeserver import BOT, TOKEN, Homeserver
from tests.support.redacting import (
    ALICE,
    EVERYTHING,
    ROOM,
    edit,
    hinted,
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

GRACE = timedelta(days=7)
POLICIES: tuple[Literal["keep", "hide", "delete"], ...] = ("keep", "hide", "delete")
SMALL = os.urandom(INLINE_LIMIT)
LARGE = os.urandom(INLINE_LIMIT + 1)
A, R = image("$a"), redaction("$r", "$a")


class Unreliable(FilesystemStore):
    """Loses its disk for a while."""

    away = False

    async def delete(self, sha256: bytes) -> None:
        if self.away:
            raise StoreUnavailable("as the test wants it")
        await super().delete(sha256)


@pytest.fixture
def objects(tmp_path: Path) -> Unreliable:
    return Unreliable(tmp_path / "objects")


@pytest.fixture
async def ours(
    pool: Pool, tmp_path: Path, homeserver: Homeserver, objects: Unreliable
) -> AsyncIterator[Parts]:
    async with parts(pool, tmp_path, homeserver.url, objects=objects) as built:
        yield built


@pytest.fixture
def deleting(ours: Parts) -> Deletion:
    """What runs under `delete`."""
    return Deletion(ours.pool, ours.store, GRACE)


async def archive(ours: Parts, homeserver: Homeserver, **media: bytes) -> None:
    """Lets a worker fetch the media that events named."""
    for name, data in media.items():
        homeserver.give(mxc(name), data)
    for _ in media:
        [job] = await claim(ours.pool)
        await archive_one(job, ours)


async def redact_for_long(pool: Pool) -> None:
    """Works out the redactions, and lets the grace period go by."""
    await redact(pool)
    await pass_time(pool, GRACE)


async def tables(pool: Pool) -> dict[str, int]:
    """How many rows there are of what has to do with bytes."""
    row = await pool.fetchrow(
        "SELECT (SELECT count(*) FROM blob) AS blob, (SELECT count(*) FROM blob_data) AS data,"
        " (SELECT count(*) FROM garbage) AS garbage"
    )
    assert row is not None
    return dict(row)


def files(tmp_path: Path) -> int:
    return len([path for path in (tmp_path / "objects").glob("??/??/*") if path.is_file()])


async def assert_whole(ours: Parts, name: str, data: bytes) -> None:
    """A media is ready, and its bytes are to be had."""
    row = await ours.pool.fetchrow(
        "SELECT b.* FROM media AS m JOIN blob AS b ON b.sha256 = m.blob_sha256"
        " WHERE m.media_id = $1 AND m.state = 'ready'",
        name,
    )
    assert row is not None
    blob = Blob(row["sha256"], row["size"], Place(row["place"]))
    assert b"".join([chunk async for chunk in ours.store.read(blob)]) == data


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "object"])
async def test_what_was_redacted_is_gone_after_the_grace(
    ours: Parts, homeserver: Homeserver, deleting: Deletion, tmp_path: Path, data: bytes
) -> None:
    """Bytes, words and names go; that somebody posted it, and who redacted it, stays."""
    await push(ours.pool, A)
    await archive(ours, homeserver, cat=data)
    await push(ours.pool, R)
    await redact(ours.pool)
    await pass_time(ours.pool, GRACE - timedelta(hours=1))
    await deleting.work()
    await assert_whole(ours, "cat", data)
    await pass_time(ours.pool, timedelta(hours=2))
    await deleting.work()
    row = await media_row(ours.pool, "cat")
    assert (row["state"], row["reason"]) == ("deleted", deletion.REASON)
    assert (row["blob_sha256"], row["declared_type"], row["due_at"]) == (None, None, None)
    is_object = data is LARGE
    assert await tables(ours.pool) == {"blob": 0, "data": 0, "garbage": int(is_object)}
    assert files(tmp_path) == int(is_object)
    await pass_time(ours.pool, BYTES_AFTER)
    await deleting.work()
    assert await tables(ours.pool) == {"blob": 0, "data": 0, "garbage": 0}
    assert files(tmp_path) == 0
    event = await ours.pool.fetchrow("SELECT * FROM event WHERE event_id = '$a'")
    reference = await ours.pool.fetchrow("SELECT * FROM reference")
    assert event
    assert reference
    assert (event["content"], event["redacted_by"], event["sender"]) == ("{}", "$r", ALICE)
    words = ("filename", "caption", "declared_type", "declared_size", "encryption")
    assert [reference[word] for word in words] == [None] * 5
    assert (reference["role"], reference["media_id"]) == ("content", "cat")
    reason = await ours.pool.fetchval("SELECT content FROM event WHERE event_id = '$r'")
    assert orjson.loads(reason)["reason"] == "spam"


async def test_other_policies_delete_nothing(ours: Parts, homeserver: Homeserver) -> None:
    """Whoever turns to `delete` later deletes what was redacted before, too."""
    await push(ours.pool, A)
    await archive(ours, homeserver, cat=SMALL)
    await push(ours.pool, R)
    await redact_for_long(ours.pool)
    await Deletion(ours.pool, ours.store, None).work()
    await assert_whole(ours, "cat", SMALL)
    await Deletion(ours.pool, ours.store, GRACE).work()
    assert (await media_row(ours.pool, "cat"))["state"] == "deleted"


async def test_each_policy_has_its_followers(
    ours: Parts, homeserver: Homeserver, http: aiohttp.ClientSession
) -> None:
    """Only `keep` asks for originals, and only `delete` deletes."""
    history = History(http, homeserver.url, TOKEN, BOT)
    kinds = {
        policy: list(
            map(type, followers(ours.pool, ours.store, history, EVERYTHING, policy, GRACE))
        )
        for policy in POLICIES
    }
    assert kinds == {"keep": [Deletion, Originals], "hide": [Deletion], "delete": [Deletion]}


async def test_media_and_blobs_that_others_have_stay(
    ours: Parts, homeserver: Homeserver, deleting: Deletion, tmp_path: Path
) -> None:
    """The media with its last event, the blob with its last media."""
    await push(ours.pool, A, image("$b", "dog"), image("$c", "bird"), image("$d", "bird"))
    await archive(ours, homeserver, cat=LARGE, dog=LARGE, bird=SMALL)
    await push(ours.pool, R, redaction("$r2", "$c"))
    await redact_for_long(ours.pool)
    await deleting.work()
    assert (await media_row(ours.pool, "cat"))["state"] == "deleted"
    await assert_whole(ours, "dog", LARGE)
    await assert_whole(ours, "bird", SMALL)
    assert await tables(ours.pool) == {"blob": 2, "data": 1, "garbage": 0}
    await push(ours.pool, redaction("$r3", "$b"))
    await redact_for_long(ours.pool)
    await deleting.work()
    assert await tables(ours.pool) == {"blob": 1, "data": 1, "garbage": 1}


async def test_what_was_never_fetched_is_deleted_as_well(ours: Parts, deleting: Deletion) -> None:
    """Nobody fetches it any more."""
    await push(ours.pool, A, R)
    await redact_for_long(ours.pool)
    await deleting.work()
    assert (await media_row(ours.pool, "cat"))["state"] == "deleted"
    assert await claim(ours.pool) == []


async def test_it_is_kept_again_when_it_is_posted_again(
    ours: Parts, homeserver: Homeserver, deleting: Deletion
) -> None:
    """After a deletion the media is a job like any new one, and may be deleted again."""
    await push(ours.pool, A)
    await archive(ours, homeserver, cat=SMALL)
    for number in range(2):
        await push(ours.pool, redaction(f"$r{number}", "$a" if not number else "$again"))
        await redact_for_long(ours.pool)
        await deleting.work()
        assert (await media_row(ours.pool, "cat"))["state"] == "deleted"
        if number == 0:
            await push(ours.pool, image("$again"))
            await archive(ours, homeserver, cat=SMALL)
            await pass_time(ours.pool, GRACE)
            await deleting.work()
            await assert_whole(ours, "cat", SMALL)
    assert await hinted(ours.pool) == {"cat"}
    await pass_time(ours.pool, LOOK_AGAIN_AFTER)
    await deleting.work()
    assert await hinted(ours.pool) == set()


async def test_what_was_redacted_stays_gone_when_it_comes_again(
    ours: Parts, homeserver: Homeserver, deleting: Deletion
) -> None:
    """An old copy of the event posts nothing: its media is not fetched again, by either door."""
    await push(ours.pool, A)
    await archive(ours, homeserver, cat=SMALL)
    await push(ours.pool, R)
    await redact_for_long(ours.pool)
    await deleting.work()
    for _ in range(2):
        for source in (Source.PUSH, Source.BACKFILL):
            async with ours.pool.acquire() as conn:
                await put(conn, A, source=source)
            await redact(ours.pool)
            assert (await media_row(ours.pool, "cat"))["state"] == "deleted"
        await pass_time(ours.pool, LOOK_AGAIN_AFTER)
        await deleting.work()  # and now nothing hints at the redaction any more
    await push(ours.pool, A, image("$b"))
    assert (await media_row(ours.pool, "cat"))["state"] == "pending"


async def test_media_found_later_in_what_was_redacted_is_redacted(ours: Parts) -> None:
    """Though the event is known for long, and its redaction was worked out."""
    await push(ours.pool, A, R)
    await redact(ours.pool)
    assert await hinted(ours.pool) == {"cat"}
    await push(ours.pool, image("$a", "cat", "tiny"))
    await redact(ours.pool)
    assert await hinted(ours.pool) == {"cat", "tiny"}


async def test_power_outlives_a_redaction(ours: Parts, deleting: Deletion) -> None:
    """Who may end a poll is read from power levels, which a redaction leaves as they are."""
    levels = {**A, "event_id": "$p", "type": "m.room.power_levels", "state_key": ""}
    levels["content"] = {"users": {ALICE: 100}}
    named = {**A, "event_id": "$n", "type": "m.room.name", "state_key": ""}
    named["content"] = {"name": "rude"}
    await push(ours.pool, levels, named, redaction("$r", "$p"), redaction("$r2", "$n"))
    await redact_for_long(ours.pool)
    await deleting.work()
    rows = await ours.pool.fetch("SELECT event_id, content FROM event WHERE state_key = ''")
    found = {row["event_id"]: orjson.loads(row["content"]) for row in rows}
    assert found == {"$p": {"users": {ALICE: 100}}, "$n": {}}


# Holds


@pytest.mark.parametrize(
    "target",
    [str(mxc("dog")), "$edit", "$a", ALICE, ROOM],
    ids=["mxc", "edit", "event", "user", "room"],
)
async def test_what_is_held_stays(
    ours: Parts, homeserver: Homeserver, deleting: Deletion, target: str
) -> None:
    """By its own name, by its event, by the message that it edits, by its sender, by its room;
    words as well as bytes; until it is released."""
    await push(ours.pool, A, edit("$edit", "$a", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    async with ours.pool.acquire() as conn:
        await holds.place(conn, target, "evidence", "shell:root")
    await push(ours.pool, R)
    await redact_for_long(ours.pool)
    await deleting.work()
    await assert_whole(ours, "dog", LARGE)
    caption = "SELECT caption FROM reference WHERE media_id = 'dog'"
    assert await ours.pool.fetchval(caption) == "look"
    async with ours.pool.acquire() as conn:
        await holds.release(conn, target)
    await deleting.work()
    assert (await media_row(ours.pool, "dog"))["state"] == "deleted"
    assert await ours.pool.fetchval(caption) is None


async def test_a_hold_on_others_holds_nothing_here(ours: Parts, deleting: Deletion) -> None:
    """Nor does one of another kind with the same name."""
    async with ours.pool.acquire() as conn:
        for target in ("mxc://remote.example/catx", "$b", "@bob:remote.example", "!other"):
            await holds.place(conn, target, "evidence", "shell:root")
    await push(ours.pool, A, R)
    await redact_for_long(ours.pool)
    await deleting.work()
    assert (await media_row(ours.pool, "cat"))["state"] == "deleted"


async def test_a_hold_that_comes_at_the_last_moment(ours: Parts) -> None:
    """It counts although the media is on the list of what is to be deleted."""
    await push(ours.pool, A, R)
    await redact_for_long(ours.pool)
    async with ours.pool.acquire() as conn:
        [listed] = await deletion.due(conn, GRACE, 10)
        await holds.place(conn, str(listed), "evidence", "shell:root")
        assert not await deletion.delete_media(conn, listed, GRACE)
        assert await deletion.due(conn, GRACE, 10) == []


@pytest.mark.parametrize("target", [ROOM, str(mxc("cat"))])
async def test_a_hold_that_is_being_placed_is_waited_for(ours: Parts, target: str) -> None:
    """Neither the media nor the words go once it is there."""
    await push(ours.pool, A, R)
    await redact_for_long(ours.pool)
    async with ours.pool.acquire() as conn, ours.pool.acquire() as other:
        for letting_go in (
            partial(deletion.delete_media, conn, mxc("cat"), GRACE),
            partial(deletion.empty_words, conn, GRACE, 10),
        ):
            async with other.transaction():
                await holds.place(other, target, "evidence", "shell:root")
                deleting = asyncio.create_task(letting_go())
                await until(lambda: someone_waits(ours.pool), "the deletion waits")
            assert not await deleting
            await holds.release(other, target)
    assert (await media_row(ours.pool, "cat"))["state"] == "pending"


async def test_a_deletion_that_is_under_way_is_waited_for(ours: Parts) -> None:
    """Whoever places a hold meanwhile hears of it when it is in force."""
    await push(ours.pool, A, R)
    await redact_for_long(ours.pool)
    async with ours.pool.acquire() as conn, ours.pool.acquire() as other:
        async with conn.transaction():
            assert await deletion.delete_media(conn, mxc("cat"), GRACE)
            placing = asyncio.create_task(holds.place(other, ROOM, "evidence", "shell:root"))
            await until(lambda: someone_waits(ours.pool), "the hold waits")
        await placing
    assert (await media_row(ours.pool, "cat"))["state"] == "deleted"


async def test_a_target_is_held_once(pool: Pool) -> None:
    """A second hold, and a release of nothing, are told."""
    async with pool.acquire() as conn:
        await holds.place(conn, "!room", "evidence", "shell:root")
        with pytest.raises(OperationError, match="held already"):
            await holds.place(conn, "!room", "again", "shell:root")
        [row] = await holds.live(conn)
        assert (row["kind"], row["target"], row["reason"]) == ("room", "!room", "evidence")
        await holds.release(conn, "!room")
        with pytest.raises(OperationError, match="no hold"):
            await holds.release(conn, "!room")
        assert await holds.live(conn) == []
        await holds.place(conn, "!room", "again", "shell:root")


@pytest.mark.parametrize(
    "target", ["", "cat", "mxc://x", "mxc://../x", "mxc://s/i/j", "@alice", "$", "#room:s", "$a b"]
)
def test_what_is_no_target_is_refused(target: str) -> None:
    """With a sentence that says what a target looks like."""
    with pytest.raises(ConfigError, match="mxc://server/id"):
        holds.kind_of(target)


# Races and crashes


async def test_a_new_reference_wins(ours: Parts) -> None:
    """An event that is being recorded while its media is being deleted keeps it."""
    await push(ours.pool, A, R)
    await redact_for_long(ours.pool)
    async with ours.pool.acquire() as conn, ours.pool.acquire() as other:
        async with other.transaction():
            await other.execute(
                "INSERT INTO event (event_id, content, source) VALUES ('$b', '{}', 'push')"
            )
            await other.execute(
                "INSERT INTO reference (event_id, server_name, media_id, role)"
                " VALUES ('$b', $1, $2, 'content')",
                *mxc("cat"),
            )
            deleting = asyncio.create_task(deletion.delete_media(conn, mxc("cat"), GRACE))
            await until(lambda: someone_waits(ours.pool), "the deletion waits")
        assert not await deleting
    assert (await media_row(ours.pool, "cat"))["state"] == "pending"
    assert await hinted(ours.pool) == set()


async def test_who_named_it_meanwhile_gets_it_back(
    ours: Parts, homeserver: Homeserver, deleting: Deletion
) -> None:
    """An event that found the media ready, and had to wait for its deletion, queues it again."""
    await push(ours.pool, A)
    await archive(ours, homeserver, cat=SMALL)
    await push(ours.pool, R)
    await redact_for_long(ours.pool)
    async with ours.pool.acquire() as conn, conn.transaction():
        assert await deletion.delete_media(conn, mxc("cat"), GRACE)
        pushing = asyncio.create_task(push(ours.pool, image("$b")))
        await until(lambda: someone_waits(ours.pool), "the push waits")
    await pushing
    assert (await media_row(ours.pool, "cat"))["state"] == "deleted"
    await pass_time(ours.pool, LOOK_AGAIN_AFTER)
    await deleting.work()
    row = await media_row(ours.pool, "cat")
    assert (row["state"], row["reason"]) == ("pending", None)
    await archive(ours, homeserver, cat=SMALL)
    await assert_whole(ours, "cat", SMALL)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "object"])
@pytest.mark.parametrize("moment", ["locked", "deleted"])
async def test_the_same_bytes_come_while_they_are_deleted(
    ours: Parts, homeserver: Homeserver, data: bytes, moment: str
) -> None:
    """Whoever records them waits, and ends with the bytes: at once, or when it starts over."""
    await push(ours.pool, A)
    await archive(ours, homeserver, cat=data)
    await push(ours.pool, R, image("$b", "dog"))
    await redact_for_long(ours.pool)
    homeserver.give(mxc("dog"), data)
    [job] = await claim(ours.pool)
    sha256 = (await media_row(ours.pool, "cat"))["blob_sha256"]
    async with ours.pool.acquire() as conn:
        async with conn.transaction():
            if moment == "deleted":
                assert await deletion.delete_media(conn, mxc("cat"), GRACE)
            else:
                await conn.execute(deletion.DELETE_MEDIA, *mxc("cat"), deletion.REASON)
                await conn.execute(deletion.LOCK_BLOBS, [sha256])
            recording = asyncio.create_task(archive_one(job, ours))
            await until(lambda: someone_waits(ours.pool), "the recording waits")
            if moment == "locked":
                await deletion.drop_blobs(conn, [sha256])
        try:
            await recording
        except asyncpg.ForeignKeyViolationError:
            async with ours.pool.acquire() as other:
                await queue.release(other, [job])
            await archive(ours, homeserver, dog=data)
    await assert_whole(ours, "dog", data)


async def test_bytes_recorded_before_stay(ours: Parts, homeserver: Homeserver) -> None:
    """A deletion that comes to the blob while another media takes it waits, and leaves it."""
    await push(ours.pool, A)
    await archive(ours, homeserver, cat=SMALL)
    await push(ours.pool, R, image("$b", "dog"))
    await redact_for_long(ours.pool)
    sha256 = (await media_row(ours.pool, "cat"))["blob_sha256"]
    async with ours.pool.acquire() as conn, ours.pool.acquire() as other:
        async with other.transaction():
            await other.execute(
                "UPDATE media SET state = 'ready', blob_sha256 = $1, due_at = NULL"
                " WHERE media_id = 'dog'",
                sha256,
            )
            deleting = asyncio.create_task(deletion.delete_media(conn, mxc("cat"), GRACE))
            await until(lambda: someone_waits(ours.pool), "the deletion waits")
        assert await deleting
    await assert_whole(ours, "dog", SMALL)


async def thrown_away(ours: Parts, homeserver: Homeserver, deleting: Deletion) -> bytes:
    """An object whose rows are gone and whose bytes are due; returns its SHA-256."""
    await push(ours.pool, A)
    await archive(ours, homeserver, cat=LARGE)
    sha256: bytes = (await media_row(ours.pool, "cat"))["blob_sha256"]
    await push(ours.pool, R)
    await redact_for_long(ours.pool)
    await deleting.work()
    await pass_time(ours.pool, BYTES_AFTER)
    return sha256


async def test_an_outage_of_the_store_loses_no_garbage(
    ours: Parts, homeserver: Homeserver, deleting: Deletion, objects: Unreliable, tmp_path: Path
) -> None:
    """What could not be removed is removed later; so it is after a crash before the bytes."""
    await thrown_away(ours, homeserver, deleting)
    objects.away = True
    with pytest.raises(StoreUnavailable):
        await deleting.work()
    assert (await tables(ours.pool))["garbage"] == files(tmp_path) == 1
    objects.away = False
    await deleting.work()
    assert (await tables(ours.pool))["garbage"] == files(tmp_path) == 0


async def test_an_upload_waits_for_the_collector(
    ours: Parts, homeserver: Homeserver, deleting: Deletion, objects: Unreliable
) -> None:
    """Bytes that come again while they are removed are put anew."""
    sha256 = await thrown_away(ours, homeserver, deleting)
    await push(ours.pool, image("$b"))
    [job] = await claim(ours.pool)
    async with ours.pool.acquire() as conn:
        async with conn.transaction():
            assert await garbage.take(conn) == sha256
            uploading = asyncio.create_task(archive_one(job, ours))
            await until(lambda: someone_waits(ours.pool), "the upload waits")
            await objects.delete(sha256)
        await uploading
    await assert_whole(ours, "cat", LARGE)
    await deleting.work()
    await assert_whole(ours, "cat", LARGE)


async def test_an_upload_takes_bytes_out_of_the_garbage(
    ours: Parts, homeserver: Homeserver, deleting: Deletion
) -> None:
    """One that comes before the collector keeps them."""
    await thrown_away(ours, homeserver, deleting)
    await push(ours.pool, image("$b"))
    await archive(ours, homeserver, cat=LARGE)
    assert (await tables(ours.pool))["garbage"] == 0
    await deleting.work()
    await assert_whole(ours, "cat", LARGE)


async def test_what_was_fetched_in_vain_is_collected(
    ours: Parts, homeserver: Homeserver, deleting: Deletion, tmp_path: Path
) -> None:
    """An object whose media was deleted while it was on its way does not stay."""
    await push(ours.pool, A, R)
    await redact_for_long(ours.pool)
    homeserver.give(mxc("cat"), LARGE)
    [job] = await claim(ours.pool)
    await deleting.work()
    assert not (await archive_one(job, ours)).completed.held
    assert (await tables(ours.pool))["garbage"] == files(tmp_path) == 1
    await pass_time(ours.pool, BYTES_AFTER)
    await deleting.work()
    assert (await tables(ours.pool))["garbage"] == files(tmp_path) == 0


async def test_garbage_that_is_needed_again_is_left(
    ours: Parts, homeserver: Homeserver, deleting: Deletion
) -> None:
    """A blob that was recorded by an upload from before the deletion keeps its bytes."""
    sha256 = await thrown_away(ours, homeserver, deleting)
    await push(ours.pool, image("$b"))
    await archive(ours, homeserver, cat=LARGE)
    await ours.pool.execute("INSERT INTO garbage VALUES ($1, now())", sha256)
    await deleting.work()
    assert (await tables(ours.pool))["garbage"] == 0
    await assert_whole(ours, "cat", LARGE)


async def test_several_may_delete_at_once(
    ours: Parts, homeserver: Homeserver, tmp_path: Path
) -> None:
    """Each media is deleted once, whoever does it, and its blob when the last one goes."""
    names = [f"m{number}" for number in range(12)]
    await push(ours.pool, *(image(f"${name}", name) for name in names))
    await archive(ours, homeserver, **dict.fromkeys(names, LARGE))
    await push(ours.pool, *(redaction(f"$r{name}", f"${name}") for name in names))
    await redact_for_long(ours.pool)
    await asyncio.gather(*(Deletion(ours.pool, ours.store, GRACE).work() for _ in range(3)))
    states = await ours.pool.fetch("SELECT DISTINCT state FROM media")
    assert [row["state"] for row in states] == ["deleted"]
    assert await tables(ours.pool) == {"blob": 0, "data": 0, "garbage": 1}
    await pass_time(ours.pool, BYTES_AFTER)
    await asyncio.gather(*(Deletion(ours.pool, ours.store, GRACE).work() for _ in range(3)))
    assert (await tables(ours.pool))["garbage"] == files(tmp_path) == 0


@pytest.mark.parametrize("statement", [DUE, WORDY], ids=["media", "words"])
async def test_the_lists_read_no_table_whole(pool: Pool, statement: str) -> None:
    """What was never redacted is not looked at."""
    await pool.execute(
        "INSERT INTO event (event_id, type, content, source) SELECT '$' || n, 'm.room.message',"
        " '{\"a\": 1}', 'push' FROM generate_series(1, 20000) AS n"
    )
    await pool.execute(
        "INSERT INTO media (server_name, media_id, state, due_at) SELECT 's', n::text, 'pending',"
        " now() FROM generate_series(1, 20000) AS n"
    )
    await pool.execute("ANALYZE")
    text = await pool.fetchval("EXPLAIN (FORMAT JSON) " + statement, GRACE, 10)
    plan = orjson.loads(text)
    whole = {
        node["Relation Name"] for node in nodes(plan[0]["Plan"]) if node["Node Type"] == "Seq Scan"
    }
    assert whole <= {"hold", "reference"}  # which are empty here


def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(found for child in node.get("Plans", ()) for found in nodes(child))]


# Any order


DATA = {f"m{number}": (SMALL, LARGE)[number % 2] for number in range(6)}


async def work_until(parts: Parts, done: asyncio.Event) -> None:
    """A worker, in short: what a deletion overtook starts over."""
    while not done.is_set() or await claimable(parts.pool):
        for job in await claim(parts.pool, 2):
            try:
                await archive_one(job, parts)
            except asyncpg.ForeignKeyViolationError:
                async with parts.pool.acquire() as conn:
                    await queue.release(conn, [job])
        await asyncio.sleep(0)


async def claimable(pool: Pool) -> bool:
    return bool(await pool.fetchval("SELECT count(*) FROM media WHERE state = 'pending'"))


async def delete_until(parts: Parts, done: asyncio.Event) -> None:
    """Redactions take effect, and what was redacted is deleted without any grace."""
    while not done.is_set():
        await redact(parts.pool)
        await Deletion(parts.pool, parts.store, timedelta()).work()
        await asyncio.sleep(0)


async def post_and_redact(pool: Pool, seed: int) -> None:
    """People post a few media over and over, and take most of it back."""
    chance = random.Random(seed)  # noqa: S311  # a repeatable choice, no secret
    for number in range(30):
        event_id = f"${seed}-{number}"
        await push(pool, image(event_id, chance.choice(list(DATA))))
        if chance.random() < 0.8:
            await push(pool, redaction(f"{event_id}-r", event_id))
        await asyncio.sleep(chance.random() / 100)


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_ever_half_gone(
    ours: Parts, homeserver: Homeserver, tmp_path: Path, seed: int
) -> None:
    """While the same few bytes are posted, fetched, redacted and deleted all at once, what is
    still shown ends whole, and of the rest nothing stays."""
    for name, data in DATA.items():
        homeserver.give(mxc(name), data)
    done = asyncio.Event()
    people = [post_and_redact(ours.pool, 10 * seed + number) for number in range(2)]
    others = [work(ours, done) for work in (work_until, delete_until) for _ in range(2)]
    running = [asyncio.create_task(other) for other in others]
    await asyncio.gather(*people)
    done.set()
    await asyncio.gather(*running)
    await pass_time(ours.pool, GRACE)
    await redact(ours.pool)
    await Deletion(ours.pool, ours.store, timedelta()).work()
    await work_until(ours, done)
    await pass_time(ours.pool, GRACE)
    await Deletion(ours.pool, ours.store, timedelta()).work()
    live = await ours.pool.fetch(
        "SELECT DISTINCT media_id FROM reference JOIN event USING (event_id)"
        " WHERE redacted_by IS NULL"
    )
    shown = {row["media_id"] for row in live}
    for name in shown:
        await assert_whole(ours, name, DATA[name])
    states = await ours.pool.fetch("SELECT media_id, state FROM media")
    assert {row["media_id"] for row in states if row["state"] == "ready"} == shown
    kept = {DATA[name] for name in shown}
    rows = {"blob": len(kept), "data": len(kept & {SMALL}), "garbage": 0}
    assert await tables(ours.pool) == rows
    assert files(tmp_path) == len(kept & {LARGE})
