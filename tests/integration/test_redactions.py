"""Redactions take effect in whatever order they and their events come, and policies are views."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import timedelta
from typing import TYPE_CHECKING

import orjson
import pytest

from archiver.catalogue.redactions import CLAIM, HINT, LOCK_MEDIA, MARK, UNSEEN, WANTED
from archiver.keep.redactions import Redactor
from archiver.model import Scope
from tests.support.fetching import someone_waits, until
from tests.support.redacting import (
    MODERATOR,
    ROOM,
    Event,
    edit,
    emptied,
    hinted,
    image,
    media_row,
    mxc,
    pass_time,
    push,
    put,
    redact,
    redacted_by,
    redaction,
)
from tests.support.serving import MATRIX, Reader, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import aiohttp

    from archiver.db.pool import Pool
    from tests.support.serving import Archive

A, R = image("$a"), redaction("$r", "$a")


@pytest.mark.parametrize(
    "batches",
    [[[A], [R]], [[R], [A]], [[A, R]], [[R, A]], [[emptied(A, R)], [R], [A]], [[R, A], [A, R]]],
    ids=["event first", "redaction first", "together", "the other way", "emptied", "twice"],
)
@pytest.mark.parametrize("at_once", [True, False], ids=["at the end", "after each"])
async def test_every_order_of_arrival(
    pool: Pool, batches: list[list[Event]], at_once: bool
) -> None:
    """However they come, the event ends redacted, and so does the media that it alone names."""
    for batch in batches:
        await push(pool, *batch)
        if not at_once:
            await redact(pool)
    await redact(pool)
    assert await redacted_by(pool) == {"$a": "$r"}
    assert await hinted(pool) == {"cat"}


async def test_who_when_and_why_is_kept(pool: Pool) -> None:
    """The redacted event says which redaction it was and when that was sent."""
    await push(pool, A, R)
    await redact(pool)
    row = await pool.fetchrow("SELECT redacted_by, redacted_at FROM event WHERE event_id = '$a'")
    told = await pool.fetchrow("SELECT * FROM event WHERE event_id = '$r'")
    assert row
    assert told
    assert (row["redacted_by"], row["redacted_at"]) == ("$r", told["sent_at"])
    assert (told["sender"], orjson.loads(told["content"])["reason"]) == (MODERATOR, "spam")


async def test_of_several_redactions_the_earliest_counts(pool: Pool) -> None:
    """Whichever is worked out first."""
    late = redaction("$late", "$a", origin_server_ts=1_700_000_500_000)
    await push(pool, A, late)
    await redact(pool)
    assert await redacted_by(pool) == {"$a": "$late"}
    await push(pool, redaction("$early", "$a", origin_server_ts=1_700_000_100_000))
    await redact(pool)
    assert await redacted_by(pool) == {"$a": "$early"}
    await push(pool, redaction("$later", "$a", origin_server_ts=1_700_000_900_000))
    await redact(pool)
    assert await redacted_by(pool) == {"$a": "$early"}


async def test_a_redaction_in_another_room_has_no_effect(pool: Pool) -> None:
    """Nor has one without a room."""
    elsewhere = redaction("$r", "$a", room_id="!elsewhere")
    nowhere = redaction("$r2", "$a", room_id=None)
    await push(pool, A, edit("$e", "$a", "dog"), elsewhere, nowhere)
    await redact(pool)
    assert await redacted_by(pool) == {"$a": None, "$e": None}
    assert await hinted(pool) == set()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
async def test_an_edit_is_redacted_with_its_message(pool: Pool, order: tuple[int, ...]) -> None:
    """In each order of arrival of the message, its edit and the redaction."""
    events = [A, edit("$e", "$a", "dog"), R]
    for index in order:
        await push(pool, events[index])
        await redact(pool)
    assert await redacted_by(pool) == {"$a": "$r", "$e": "$r"}
    assert await hinted(pool) == {"cat", "dog"}


@pytest.mark.parametrize("first", [True, False])
async def test_an_edit_of_a_text_is_redacted_with_it(pool: Pool, first: bool) -> None:
    """The text itself is not in the archive."""
    events = [edit("$e", "$text", "dog"), redaction("$r", "$text")]
    for event in events if first else reversed(events):
        await push(pool, event)
        await redact(pool)
    assert await redacted_by(pool) == {"$e": "$r"}


async def test_an_edit_by_somebody_else_is_none(pool: Pool) -> None:
    """What another sender calls an edit stays when the message goes; so does one elsewhere."""
    forged = edit("$forged", "$a", "dog", sender="@mallory:remote.example")
    elsewhere = edit("$elsewhere", "$a", "bird", room_id="!elsewhere")
    await push(pool, A, forged, elsewhere, R)
    await redact(pool)
    assert await redacted_by(pool) == {"$a": "$r", "$forged": None, "$elsewhere": None}
    assert await hinted(pool) == {"cat"}


async def test_a_redacted_edit_leaves_its_message(pool: Pool) -> None:
    """Only the edit's own media goes."""
    await push(pool, A, edit("$e", "$a", "dog"), redaction("$r", "$e"))
    await redact(pool)
    assert await redacted_by(pool) == {"$a": None, "$e": "$r"}
    assert await hinted(pool) == {"dog"}


async def test_shared_media_stays_while_one_event_names_it(pool: Pool) -> None:
    """It goes with the last event, and comes back with the next."""
    await push(pool, A, image("$b"), R)
    await redact(pool)
    assert await hinted(pool) == set()
    await push(pool, redaction("$r2", "$b"))
    await redact(pool)
    assert await hinted(pool) == {"cat"}
    await push(pool, image("$c"), image("$d"), redaction("$r3", "$d"))
    await redact(pool)
    assert await hinted(pool) == set()


async def test_the_grace_begins_anew_when_it_is_redacted_again(pool: Pool) -> None:
    """Media that was posted again meanwhile has been redacted since the last redaction only."""
    await push(pool, A, R)
    await redact(pool)
    await pass_time(pool, timedelta(days=3))
    before = (await media_row(pool, "cat"))["redacted_at"]
    await redact(pool)
    assert (await media_row(pool, "cat"))["redacted_at"] == before
    await push(pool, image("$b"), redaction("$r2", "$b"))
    await redact(pool)
    assert (await media_row(pool, "cat"))["redacted_at"] > before + timedelta(days=2)


async def test_neither_transaction_sees_the_other(pool: Pool) -> None:
    """A redaction whose event is still being recorded is looked at once more, then no more."""
    async with pool.acquire() as slow, pool.acquire() as conn:
        async with slow.transaction():
            await put(slow, A)
            await put(conn, R)
            await redact(pool)
        assert await redacted_by(pool) == {"$a": None}
        await redact(pool)
        assert await redacted_by(pool) == {"$a": None}
        await pass_time(pool, UNSEEN)
        await redact(pool)
        assert await redacted_by(pool) == {"$a": "$r"}
        assert await pool.fetchval("SELECT count(*) FROM redaction_due") == 0


async def test_two_redactions_at_once_see_each_other(pool: Pool) -> None:
    """Of two that take the last references of a media at once, the second notices."""
    await push(pool, A, image("$b"), R, redaction("$r2", "$b"))
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT FROM media FOR UPDATE")
        both = [asyncio.create_task(Redactor(pool).work()) for _ in range(2)]
        await until(lambda: someone_waits(pool), "a redaction waits for the media")
    await asyncio.gather(*both)
    await redact(pool)
    assert await hinted(pool) == {"cat"}


async def test_what_is_queued_meanwhile_is_not_lost(pool: Pool) -> None:
    """An event that comes while its redaction is being worked out is worked out next."""
    await push(pool, R)
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT FROM redaction_due FOR UPDATE")
        assert await Redactor(pool).work() == 0
    await push(pool, image("$other"), redaction("$r2", "$other"))
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT FROM event WHERE event_id = '$other' FOR UPDATE")
        working = asyncio.create_task(Redactor(pool).work())
        await until(lambda: someone_waits(pool), "the redaction waits for its event")
        await push(pool, edit("$edit", "$other", "dog"))
    await working
    await redact(pool)
    assert await redacted_by(pool) == {"$other": "$r2", "$edit": "$r2"}


async def test_a_running_redactor_is_woken(pool: Pool) -> None:
    """And it works until it is ended."""
    redactor = Redactor(pool)
    running = asyncio.create_task(redactor.run())
    await push(pool, A, R)
    redactor.wake()

    async def is_redacted() -> bool:
        return await hinted(pool) == {"cat"}

    await until(is_redacted, "the media is redacted")
    running.cancel()
    await asyncio.wait([running])


def _shuffled(seed: int) -> Iterator[list[Event]]:
    """Batches of a few events, edits and redactions in any order, some more than once."""
    chance = random.Random(seed)  # noqa: S311  # a repeatable choice, no secret
    posted = [image(f"$a{n}", f"m{n % 3}") for n in range(6)]
    edits = [edit(f"$e{n}", f"$a{n}", f"m{3 + n % 2}") for n in range(4)]
    redactions = [redaction(f"$r{n}", f"$a{n}") for n in chance.sample(range(6), 4)]
    events = posted + edits + redactions + chance.sample(posted + redactions, 4)
    chance.shuffle(events)
    while events:
        size = chance.randint(1, 4)
        yield events[:size]
        del events[:size]


@pytest.mark.parametrize("seed", range(8))
async def test_any_order_ends_the_same(pool: Pool, seed: int) -> None:
    """Events, edits and redactions in disorder, with several at work, end as in good order."""
    tasks = [asyncio.create_task(push(pool, *batch)) for batch in _shuffled(seed)]
    workers = [asyncio.create_task(redact(pool)) for _ in range(3)]
    await asyncio.gather(*tasks, *workers)
    await pass_time(pool, UNSEEN)
    await redact(pool)
    rows = await pool.fetch(
        "SELECT e.event_id, e.redacted_by, r.event_id AS expected FROM event AS e"
        " LEFT JOIN event AS r ON r.redacts IN (e.event_id, e.replaces)"
        " WHERE e.type = 'm.room.message'"
    )
    assert [row["event_id"] for row in rows if row["redacted_by"] != row["expected"]] == []
    live = await pool.fetch(
        "SELECT DISTINCT media_id FROM reference JOIN event USING (event_id)"
        " WHERE redacted_by IS NULL"
    )
    everything = {row["media_id"] for row in await pool.fetch("SELECT media_id FROM media")}
    assert await hinted(pool) == everything - {row["media_id"] for row in live}


@pytest.mark.parametrize(
    ("statement", "arguments"),
    [
        (CLAIM, (20, timedelta(minutes=1))),
        (MARK, ("$r",)),
        (LOCK_MEDIA, (["$a", "$b"],)),
        (HINT, (["a"], ["b"], True)),
        (WANTED, ("",)),
    ],
    ids=["claim", "mark", "lock", "hint", "wanted"],
)
async def test_no_table_is_read_whole(
    pool: Pool, statement: str, arguments: tuple[object, ...]
) -> None:
    """A redaction costs the same in a large archive."""
    await pool.execute(
        "INSERT INTO event (event_id, room_id, type, content, source, replaces, redacts) SELECT"
        " '$' || n, '!room', 'm.room.message', '{}', 'push', CASE WHEN n % 10 = 0 THEN '$x' || n"
        " END, CASE WHEN n % 10 = 1 THEN '$y' || n END FROM generate_series(1, 20000) AS n"
    )
    await pool.execute(
        "INSERT INTO media (server_name, media_id, state, due_at) SELECT 's', n::text, 'pending',"
        " now() FROM generate_series(1, 20000) AS n"
    )
    await pool.execute(
        "INSERT INTO reference (event_id, server_name, media_id, role) SELECT '$' || n, 's',"
        " n::text, 'content' FROM generate_series(1, 20000) AS n"
    )
    await pool.execute("INSERT INTO redaction_due SELECT '$' || n FROM generate_series(1, 9000) n")
    await pool.execute("ANALYZE")
    text = await pool.fetchval("EXPLAIN (FORMAT JSON) " + statement, *arguments)
    assert "Seq Scan" not in text


# Policies


@pytest.fixture
async def hiding(
    archive: Archive, database_url: str, http: aiohttp.ClientSession
) -> AsyncIterator[dict[str, Reader]]:
    """A reader and an admin of an archive that hides, and a reader of one that keeps."""
    read, admin = await archive.token(), await archive.token("admin", Scope.ADMIN)
    async with (
        serving(archive, database_url, hides_redacted=True) as hides,
        serving(archive, database_url) as keeps,
    ):
        yield {
            "reader": Reader(http, hides, read),
            "admin": Reader(http, hides, admin),
            "kept": Reader(http, keeps, read),
        }


async def make_ready(archive: Archive, media_id: str, data: bytes) -> None:
    """Gives a recorded media its bytes, those of a media put in by hand."""
    twin = await archive.put(data)
    await archive.pool.execute(
        "UPDATE media AS m SET state = 'ready', due_at = NULL, blob_sha256 = twin.blob_sha256"
        " FROM media AS twin WHERE (m.server_name, m.media_id) = ($1, $2)"
        " AND (twin.server_name, twin.media_id) = ($3, $4)",
        *mxc(media_id),
        *twin,
    )


async def test_hidden_media_is_for_admins(archive: Archive, hiding: dict[str, Reader]) -> None:
    """Under `hide` a reader gets 404, an admin the bytes, which nobody may keep; under `keep`
    nothing changes; and a media that is posted again is served again."""
    await push(archive.pool, A, R)
    await make_ready(archive, "cat", b"meow")
    await redact(archive.pool)
    async with hiding["reader"].get(mxc("cat")) as answer:
        assert (answer.status, (await answer.json())["errcode"]) == (404, "M_NOT_FOUND")
    async with hiding["admin"].get(mxc("cat")) as answer:
        assert answer.status == 404
        assert "?hidden=true" in (await answer.json())["error"]
    path = f"{MATRIX}/{mxc('cat').server_name}/cat?hidden=true"
    assert await hiding["reader"].status(path) == 404
    async with hiding["admin"].ask(path) as answer:
        assert (answer.status, await answer.read()) == (200, b"meow")
        assert answer.headers["Cache-Control"] == "private, no-store"
    async with hiding["kept"].get(mxc("cat")) as answer:
        assert (answer.status, await answer.read()) == (200, b"meow")
        assert "immutable" in answer.headers["Cache-Control"]
    etag = answer.headers["ETag"]
    async with hiding["reader"].get(mxc("cat"), If_None_Match=etag) as answer:
        assert answer.status == 404
    await push(archive.pool, image("$again"))
    async with hiding["reader"].get(mxc("cat")) as answer:
        assert (answer.status, await answer.read()) == (200, b"meow")
        assert answer.headers["Cache-Control"] == "private, no-cache"
    async with hiding["reader"].get(mxc("cat"), If_None_Match=etag) as answer:
        assert answer.status == 304


async def test_media_in_quarantine_is_for_admins(
    archive: Archive, hiding: dict[str, Reader]
) -> None:
    """Whatever the policy of redactions: 404 for readers, and for admins who do not ask for it."""
    await push(archive.pool, A)
    await make_ready(archive, "cat", b"meow")
    await archive.pool.execute("UPDATE media SET state = 'quarantined' WHERE media_id = 'cat'")
    path = f"{MATRIX}/{mxc('cat').server_name}/cat"
    assert await hiding["kept"].status(f"{path}?hidden=true") == 404
    assert await hiding["admin"].status(path) == 404
    async with hiding["admin"].ask(f"{path}?hidden=true") as answer:
        assert (answer.status, await answer.read()) == (200, b"meow")
        assert answer.headers["Cache-Control"] == "private, no-store"


async def test_the_name_of_a_redacted_upload_is_hidden(
    archive: Archive, hiding: dict[str, Reader]
) -> None:
    """Media that a redacted and another event name is served under the other's name."""
    other = image("$b")
    other["content"]["filename"] = "tiger.jpg"
    await push(archive.pool, A, R, other)
    await make_ready(archive, "cat", b"meow")
    await redact(archive.pool)
    async with hiding["reader"].get(mxc("cat")) as answer:
        assert "tiger.jpg" in answer.headers["Content-Disposition"]


async def test_what_is_told_of_redacted_media(archive: Archive, hiding: dict[str, Reader]) -> None:
    """A reader learns nothing of redacted events, an admin all: who, when, why."""
    path = f"/api/v1/media/{mxc('cat').server_name}/cat"
    await push(archive.pool, A, image("$b"), R)
    await redact(archive.pool)
    async with hiding["reader"].ask(path) as answer:
        told = await answer.json()
        assert [reference["event_id"] for reference in told["references"]] == ["$b"]
        assert (told["reference_count"], told["redacted"]) == (1, False)
    for who in ("admin", "kept"):
        async with hiding[who].ask(path) as answer:
            told = await answer.json()
        assert told["reference_count"] == 2
        found = {one["event_id"]: one["redacted"] for one in told["references"]}
        assert found.pop("$b") is None
        at = found["$a"].pop("at")
        assert at.startswith("2023-11-14T22:13:20")
        assert found["$a"] == {"event_id": "$r", "by": MODERATOR, "reason": "spam"}
    await push(archive.pool, redaction("$r2", "$b"))
    await redact(archive.pool)
    assert await hiding["reader"].status(path) == 404
    async with hiding["admin"].ask(path) as answer:
        assert (await answer.json())["redacted"] is True


async def test_an_edit_says_what_it_replaces(archive: Archive, reader: Reader) -> None:
    """Both versions of a message are kept, and told apart."""
    await push(archive.pool, A, edit("$e", "$a", "dog"))
    for name, replaces in (("cat", None), ("dog", "$a")):
        async with reader.ask(f"/api/v1/media/{mxc(name).server_name}/{name}") as answer:
            [reference] = (await answer.json())["references"]
            assert (reference["replaces"], reference["room_id"]) == (replaces, ROOM)
