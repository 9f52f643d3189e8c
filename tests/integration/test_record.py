"""Events become rows: all of what is to be kept, once, whatever the events are."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archiver.capture.batch import Batch
from archiver.capture.policy import REMOTE_EXCLUDED, ROOM_EXCLUDED, CapturePolicy
from archiver.capture.record import Recorded, record
from archiver.capture.references import find_references
from archiver.capture.rows import keep
from archiver.model import Source

if TYPE_CHECKING:
    from archiver.db.pool import Pool, Row

ALL = CapturePolicy("example.com")
CAT = "mxc://example.com/cat"
GOOD = {
    "event_id": "$good",
    "room_id": "!room",
    "sender": "@alice:example.com",
    "type": "m.room.message",
    "origin_server_ts": 1_700_000_000_000,
    "content": {"msgtype": "m.image", "body": "good.jpg", "url": "mxc://example.com/good"},
}


def image(event_id: str, url: str = CAT, **fields: Any) -> dict[str, Any]:
    content = {"msgtype": "m.image", "body": "cat.jpg", "url": url}
    return {**GOOD, "event_id": event_id, "content": content, **fields}


def batch(*events: Any) -> Batch:
    return Batch(orjson.dumps({"events": events}))


async def put(
    pool: Pool, *events: Any, policy: CapturePolicy = ALL, source: Source = Source.PUSH
) -> Recorded:
    return await put_raw(pool, batch(*events), policy, source)


async def put_raw(
    pool: Pool, events: Batch, policy: CapturePolicy = ALL, source: Source = Source.PUSH
) -> Recorded:
    async with pool.acquire() as conn:
        return await record(conn, keep(events, policy), source, policy)


async def only(pool: Pool, query: str) -> Row:
    [row] = await pool.fetch(query)
    return row


async def named(pool: Pool) -> set[tuple[str, str]]:
    rows = await pool.fetch("SELECT server_name, media_id FROM reference")
    return {(row[0], row[1]) for row in rows}


async def test_an_image_is_recorded(pool: Pool) -> None:
    """One event, its media as a job that is due, and the reference between them."""
    encrypted = {"url": CAT, "key": {"k": "a"}, "hashes": {"sha256": "b"}}
    content = {
        "msgtype": "m.image",
        "body": "look",
        "filename": "cat.jpg",
        "info": {"mimetype": "image/jpeg", "size": 5},
        "file": encrypted,
    }
    assert await put(pool, {**GOOD, "content": content}) == Recorded(1, 1, 1)
    event = await only(pool, "SELECT * FROM event")
    assert orjson.loads(event["content"]) == content
    assert (event["event_id"], event["room_id"], event["sender"], event["type"]) == (
        "$good",
        "!room",
        "@alice:example.com",
        "m.room.message",
    )
    assert (event["source"], event["raw"], event["state_key"]) == ("push", None, None)
    media = await only(pool, "SELECT * FROM media")
    assert (media["server_name"], media["media_id"], media["state"], media["attempts"]) == (
        "example.com",
        "cat",
        "pending",
        0,
    )
    found = dict(await only(pool, "SELECT * FROM reference"))
    assert orjson.loads(found.pop("encryption")) == {"key": {"k": "a"}, "hashes": {"sha256": "b"}}
    assert found == {
        "event_id": "$good",
        "server_name": "example.com",
        "media_id": "cat",
        "role": "content",
        "item": 0,
        "filename": "cat.jpg",
        "caption": "look",
        "declared_type": "image/jpeg",
        "declared_size": 5,
        "words": "'cat' 'jpg' 'look'",
    }


async def test_what_comes_again_is_not_new(pool: Pool) -> None:
    """A repeated push counts nothing, and the first word stays, a redacted copy included."""
    assert await put(pool, GOOD, image("$b")) == Recorded(2, 2, 2)
    before = await pool.fetch("SELECT * FROM event ORDER BY event_id")
    assert await put(pool, image("$b"), GOOD) == Recorded()
    assert await put(pool, {**GOOD, "content": {}}) == Recorded()
    assert await pool.fetch("SELECT * FROM event ORDER BY event_id") == before


async def test_an_event_twice_in_a_batch_is_one(pool: Pool) -> None:
    """The first of them counts; what only the second names is not lost."""
    events = image("$a"), image("$a"), image("$a", "mxc://example.com/other")
    assert await put(pool, *events) == Recorded(1, 2, 2)


EMPTIED = {"content": {}, "unsigned": {"redacted_because": {"event_id": "$r"}}}


async def test_an_emptied_event_gives_way_to_itself_with_content(pool: Pool) -> None:
    """What came without its content is completed when it comes with it, and never the other way
    round; in one batch the same."""
    assert await put(pool, {**GOOD, **EMPTIED}) == Recorded(1, 0, 0)
    assert await pool.fetchval("SELECT original FROM event") == "wanted"
    assert await put(pool, GOOD) == Recorded(0, 1, 1)
    assert await put(pool, {**GOOD, **EMPTIED}) == Recorded()
    whole = await only(pool, "SELECT original, content FROM event")
    assert (whole["original"], json.loads(whole["content"])) == (None, GOOD["content"])
    both = [image("$b"), {**image("$b"), **EMPTIED}]
    for order in (both, both[::-1]):
        await pool.execute("DELETE FROM reference")
        await pool.execute("DELETE FROM event")
        await put(pool, *order)
        assert await pool.fetchval("SELECT original FROM event") is None


async def test_a_push_that_was_merely_late_is_no_gap(pool: Pool) -> None:
    """What a comparison found and is pushed after all counts as pushed; what backfill found
    was there before us, and stays so."""
    await put(pool, GOOD, source=Source.RECONCILE)
    await put(pool, image("$old"), source=Source.BACKFILL)
    assert await put(pool, GOOD, image("$old")) == Recorded()
    await put(pool, GOOD, image("$old"), source=Source.RECONCILE)
    rows = await pool.fetch("SELECT event_id, source FROM event")
    assert {row[0]: row[1] for row in rows} == {"$good": "push", "$old": "backfill"}


@pytest.mark.parametrize("redaction_first", [True, False])
async def test_a_redaction_and_its_event_meet(pool: Pool, redaction_first: bool) -> None:
    """Whichever comes last, the redaction is put on the list of what is to be worked out."""
    redaction = {"event_id": "$r", "type": "m.room.redaction", "redacts": "$good", "content": {}}
    first, second = (redaction, GOOD) if redaction_first else (GOOD, redaction)
    await put(pool, first)
    await pool.execute("DELETE FROM redaction_due")
    await put(pool, second)
    assert await pool.fetchval("SELECT redaction FROM redaction_due") == "$r"


async def test_the_time_of_an_event_is_never_ahead_of_ours(pool: Pool) -> None:
    """A sender's clock can be anywhere; what it says counts as far as it can be true."""
    await put(pool, GOOD, image("$future", origin_server_ts=32_503_680_000_000))
    await put(pool, image("$none", origin_server_ts="soon"))
    rows = await pool.fetch("SELECT event_id, sent_at = received_at FROM event ORDER BY 1")
    assert [tuple(row) for row in rows] == [("$future", True), ("$good", False), ("$none", True)]


THEIRS = "mxc://elsewhere.example/cat"
WAITS = (
    "SELECT due_at = 'infinity' AND paced_at IS NOT NULL AND reason LIKE 'history.%' FROM media"
)


async def test_old_media_of_other_servers_waits_for_the_budget(pool: Pool) -> None:
    """The homeserver has to fetch it and limits us; what it has itself does not wait."""
    await put(pool, image("$a", THEIRS), source=Source.BACKFILL)
    assert await pool.fetchval(WAITS)
    await put(pool, image("$b"), source=Source.BACKFILL)
    assert await pool.fetchval(f"{WAITS} WHERE server_name = 'example.com'") is False


async def test_old_media_that_is_posted_today_waits_no_longer(pool: Pool) -> None:
    """A push makes it a job like any other; an old event never puts it back."""
    for source in (Source.BACKFILL, Source.PUSH, Source.BACKFILL):
        await put(pool, image(f"${source}", THEIRS), source=source)
    media = await only(pool, "SELECT due_at <= now(), paced_at, reason FROM media")
    assert tuple(media) == (True, None, None)


async def test_what_went_with_its_redacted_event_comes_back_with_a_new_one(pool: Pool) -> None:
    """Media deleted by the redaction policy is fetched again when somebody posts it again; what
    was deleted for another reason is not."""
    await put(pool, GOOD, image("$b"))
    update = "UPDATE media SET state = 'deleted', due_at = NULL, reason = $2 WHERE media_id = $1"
    await pool.execute(update, "good", "capture.on_redaction: it was redacted")
    await pool.execute(update, "cat", "delete: by an administrator")
    assert await put(pool, {**GOOD, "event_id": "$again"}, image("$c")) == Recorded(2, 2, 1)
    rows = await pool.fetch("SELECT media_id, state FROM media")
    assert {row[0]: row[1] for row in rows} == {"good": "pending", "cat": "deleted"}


async def test_a_media_in_many_events_is_one_job(pool: Pool) -> None:
    """In one batch or in several, the media is queued once and referenced by each."""
    assert await put(pool, image("$a"), image("$b")) == Recorded(2, 2, 1)
    assert await put(pool, image("$c")) == Recorded(1, 1, 0)


async def test_what_is_no_concern_of_ours_is_not_written(pool: Pool) -> None:
    """Text is not kept, what cannot be opened is, and polls are under both their names."""
    kinds = ["m.room.encrypted", "m.poll.start", "org.matrix.msc3381.poll.response"]
    kept = [{"event_id": f"${kind}", "type": kind, "content": {"a": 1}} for kind in kinds]
    text = {**GOOD, "content": {"msgtype": "m.text", "body": "hello"}}
    assert await put(pool, text) == Recorded()
    assert await put(pool, text, *kept) == Recorded(3, 0, 0)
    assert await pool.fetchval("SELECT count(*) FROM event WHERE content = '{\"a\": 1}'") == 3


async def test_relations_have_columns(pool: Pool) -> None:
    """What an edit replaces and a redaction is about can be asked for."""
    relation = {"m.relates_to": {"rel_type": "m.replace", "event_id": "$good"}}
    edit = image("$edit")
    edit["content"] |= relation
    redactions = [
        {"event_id": "$r10", "type": "m.room.redaction", "redacts": "$good", "content": {}},
        {"event_id": "$r11", "type": "m.room.redaction", "content": {"redacts": "$good"}},
    ]
    await put(pool, edit, *redactions)
    rows = await pool.fetch("SELECT event_id, replaces, redacts FROM event ORDER BY event_id")
    assert [tuple(row) for row in rows] == [
        ("$edit", "$good", None),
        ("$r10", None, "$good"),
        ("$r11", None, "$good"),
    ]


@pytest.mark.parametrize("ts", [1_700_000_000_123, 0])
async def test_a_job_is_due_since_its_event(pool: Pool, ts: int) -> None:
    """So an old room's backlog lies behind what people post today."""
    await put(pool, image("$a", origin_server_ts=ts))
    row = await only(pool, "SELECT extract(epoch FROM due_at) * 1000 AS ms FROM media")
    assert int(row["ms"]) == ts


@pytest.mark.parametrize("ts", [253_402_300_799_000, 2**63, -1, "soon", None, 1.5, True])
async def test_a_hostile_time_is_now(pool: Pool, ts: Any) -> None:
    """A future time does not hide the media from the workers, and no time is no obstacle."""
    await put(pool, image("$a", origin_server_ts=ts))
    assert await pool.fetchval(
        "SELECT due_at <= now() AND due_at > now() - '1 min'::interval FROM media"
    )


@pytest.mark.parametrize(
    "policy", [CapturePolicy("x", excluded=["!room"]), CapturePolicy("x", only=["!other"])],
    ids=["except", "only"],
)  # fmt: skip
async def test_media_of_an_excluded_room_is_told(pool: Pool, policy: CapturePolicy) -> None:
    """It is there as excluded with the reason and not queued; no words of the event are kept."""
    assert await put(pool, image("$a"), policy=policy) == Recorded(1, 1, 0)
    media = await only(pool, "SELECT state, reason FROM media")
    assert tuple(media) == ("excluded", ROOM_EXCLUDED)
    event = await only(pool, "SELECT content, raw FROM event")
    assert tuple(event) == ("{}", None)
    assert await pool.fetchval("SELECT filename FROM reference") is None


async def test_media_of_other_servers_can_be_left_out(pool: Pool) -> None:
    """With remote_media false ours is queued, theirs is excluded, and the event is kept."""
    policy = CapturePolicy("example.com", remote_media=False)
    events = image("$a"), image("$b", "mxc://remote.test/x")
    assert await put(pool, *events, policy=policy) == Recorded(2, 2, 1)
    rows = await pool.fetch("SELECT server_name, state, reason FROM media ORDER BY 1")
    assert [tuple(row) for row in rows] == [
        ("example.com", "pending", None),
        ("remote.test", "excluded", REMOTE_EXCLUDED),
    ]
    assert await pool.fetchval("SELECT count(*) FROM event WHERE content <> '{}'") == 2


async def test_what_another_room_may_show_is_fetched(pool: Pool) -> None:
    """Excluded media becomes pending by an event of an allowed room, and never the other way."""
    policy = CapturePolicy("example.com", excluded=["!secret"])
    hidden, shown = image("$a", room_id="!secret"), image("$b")
    assert (await put(pool, hidden, policy=policy)).media == 0
    assert (await put(pool, shown, policy=policy)).media == 1
    media = "SELECT state, reason, due_at IS NOT NULL FROM media"
    assert tuple(await only(pool, media)) == ("pending", None, True)
    again = image("$c", room_id="!secret")
    assert (await put(pool, again, policy=policy)).media == 0
    assert tuple(await only(pool, media)) == ("pending", None, True)


@pytest.mark.parametrize("hidden_first", [True, False])
async def test_within_a_batch_the_allowed_room_wins(pool: Pool, hidden_first: bool) -> None:
    """Whichever of the two events comes first."""
    policy = CapturePolicy("example.com", excluded=["!secret"])
    events = [image("$b", room_id="!secret"), image("$a")]
    await put(pool, *(events if hidden_first else events[::-1]), policy=policy)
    assert await pool.fetchval("SELECT state FROM media") == "pending"


@pytest.mark.parametrize("state", ["excluded", "failed", "ready", "deleted", "quarantined"])
async def test_a_settled_media_stays_settled(pool: Pool, state: str) -> None:
    """What was too large, failed, or is there already is not queued by another event."""
    await put(pool, image("$a"))
    await pool.execute(
        "INSERT INTO blob (sha256, size, place) VALUES ($1, 1, 'inline')", b"x" * 32
    )
    await pool.execute(
        "UPDATE media SET state = $1, due_at = NULL, reason = 'capture.max_size: too large',"
        " blob_sha256 = $2",
        state,
        b"x" * 32,
    )
    assert await put(pool, image("$b")) == Recorded(1, 1, 0)
    assert await pool.fetchval("SELECT state FROM media") == state


async def test_a_push_waits_for_no_worker(pool: Pool) -> None:
    """A worker that holds the media's row in an open transaction does not delay the push."""
    await put(pool, image("$a"))
    async with pool.acquire() as worker, worker.transaction():
        await worker.execute("UPDATE media SET due_at = now() + '30 s'::interval")
        assert await asyncio.wait_for(put(pool, image("$b")), 20) == Recorded(1, 1, 0)


async def test_a_push_wakes_the_workers(pool: Pool, database_url: str) -> None:
    """New jobs are notified, once a batch; a batch without any says nothing."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await asyncpg.connect(database_url)
    await listener.add_listener("media_pending", lambda *args: heard.put_nowait(args[2]))
    await listener.add_listener("end", lambda *args: heard.put_nowait(args[2]))
    await put(pool, GOOD, image("$b"))
    await put(pool, GOOD, image("$c"))
    await pool.execute('NOTIFY "end"')
    said = [await asyncio.wait_for(heard.get(), 20) for _ in range(2)]
    await listener.close()
    assert said == ["media_pending", "end"]


HOSTILE = [
    rb'{"event_id": "$n", "content": {"url": "%s", "body": "a\u0000b", "\u0000": "\u0000"}}',
    rb'{"event_id": "$n\u0000", "content": {"msgtype": "m.image", "url": "%s", "body": "\u0000"}}',
    rb'{"event_id": "$n", "type": "m.room.message", "content": {"msgtype": "m.image",'
    rb' "filename": "a\ud800\u0000b", "url": "%s", "info": {"size": 99999999999999999999999}}}',
    rb'{"event_id": "$n", "content": {"file": {"url": "%s", "hashes": {"sha256": "\u0000"}},'
    rb' "msgtype": "m.image"}, "type": "m.room.message"}',
    b'{"event_id": "$' + b"x" * 5_000 + b'", "content": {"url": "%s"}}',
    b'{"event_id": 5, "room_id": [], "sender": {}, "type": null, "content": "%s"}',
    b'{"content": {"url": "%s", "n": ' + b"9" * 5_000 + b"}}",
    b'{"event_id": "$n", "origin_server_ts": 1e999, "content": {"url": "%s", "n": 1e308}}',
    b'{"event_id": "$n", "content": ' + b"[" * 100_000 + b'"%s"' + b"]" * 100_000 + b"}",
    b'["%s"]',
    b'"%s"',
]  # fmt: skip


@pytest.mark.parametrize("event", HOSTILE, ids=range(len(HOSTILE)))
async def test_a_hostile_event_is_kept_with_its_neighbours(pool: Pool, event: bytes) -> None:
    """Whatever one event holds, its media is queued and so is its neighbours'."""
    hostile = event.replace(b"%s", CAT.encode())
    good = orjson.dumps(GOOD)
    body = b'{"events": [%s, %s, %s]}' % (good, hostile, orjson.dumps(image("$z")))
    assert (await put_raw(pool, Batch(body))).events == 3
    assert await named(pool) == {("example.com", "good"), ("example.com", "cat")}
    assert await pool.fetchval("SELECT count(*) FROM event WHERE event_id IN ('$good', '$z')") == 2
    assert (await put_raw(pool, Batch(body))) == Recorded()


@pytest.fixture
async def refusing(pool: Pool) -> Pool:
    """A database that takes no event and no reference with "refused" in it."""
    await pool.execute(
        "ALTER TABLE event ADD CHECK (content::text NOT LIKE '%refused%');"
        "ALTER TABLE reference ADD CHECK (filename NOT LIKE '%refused%')"
    )
    return pool


async def test_what_the_database_refuses_is_its_own_affair(refusing: Pool) -> None:
    """Its neighbours are kept as they are; of itself its bytes and its media are."""
    pool = refusing
    bad = image("$bad", "mxc://example.com/bad")
    bad["content"]["body"] = "refused"
    assert await put(pool, GOOD, bad, image("$z")) == Recorded(3, 3, 3)
    assert await named(pool) == {("example.com", name) for name in ("good", "bad", "cat")}
    ids = [row[0] for row in await pool.fetch("SELECT event_id FROM event ORDER BY 1")]
    assert ids[:2] == ["$good", "$z"]
    assert ids[2].startswith("sha256:")
    kept = await only(pool, "SELECT raw FROM event WHERE raw IS NOT NULL")
    assert b"refused" in kept["raw"]
    assert await put(pool, GOOD, bad, image("$z")) == Recorded()


async def test_what_is_refused_does_not_spoil_the_callers_transaction(refusing: Pool) -> None:
    """A page of history is recorded together with the room's cursor, whatever is in the page."""
    bad = image("$bad")
    bad["content"]["body"] = "refused"
    async with refusing.acquire() as conn, conn.transaction():
        kept = keep(batch(GOOD, bad), ALL)
        assert await record(conn, kept, Source.BACKFILL, ALL) == Recorded(2, 2, 2)
        await conn.execute("INSERT INTO room (room_id) VALUES ('!room')")
    assert await refusing.fetchval("SELECT count(*) FROM event") == 2
    assert await refusing.fetchval("SELECT count(*) FROM room") == 1


@pytest.mark.parametrize("seed", range(3))
async def test_many_at_once_do_not_hinder_each_other(pool: Pool, seed: int) -> None:
    """Eight batches with the same events in any order: no deadlock, and each row once."""
    chance = random.Random(seed)  # noqa: S311 -- a shuffle
    policy = CapturePolicy("example.com", excluded=["!secret"])
    events = [
        image(f"${n}", f"mxc://example.com/m{n % 40}", room_id=("!room", "!secret")[n % 3 == 0])
        for n in range(60)
    ]

    async def worker() -> Recorded:
        total = Recorded()
        for _ in range(6):
            some = chance.sample(events, 45)
            one = await put(pool, *some, policy=policy)
            total = Recorded(*(a + b for a, b in zip(total, one, strict=True)))
        return total

    totals = await asyncio.gather(*(worker() for _ in range(8)))
    counted = await only(
        pool,
        "SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM reference),"
        " (SELECT count(*) FROM media WHERE state = 'pending')",
    )
    assert tuple(map(sum, zip(*totals, strict=True))) == tuple(counted)
    everything = await put(pool, *events, policy=policy)
    shown = {event["content"]["url"] for event in events if event["room_id"] == "!room"}
    states = await pool.fetch("SELECT media_id, state FROM media")
    assert everything.events + counted[0] == len(events)
    assert {f"mxc://example.com/{r[0]}" for r in states if r[1] == "pending"} == shown


TEXTS = st.text(st.characters(exclude_categories=[]), max_size=8) | st.sampled_from(
    ["\0", "\ud800", CAT, "mxc://a/" + "b" * 300, '[]{}\\"', "x" * 300, "$id", "m.image"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXTS
    | st.integers(0, 9).map(lambda n: f"see mxc://example.com/{n}!"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def optional(*keys: str) -> dict[str, st.SearchStrategy[Any]]:
    return dict.fromkeys(keys, JSON)


FILE = st.fixed_dictionaries({"url": st.just(CAT), "hashes": JSON}, optional=optional("key"))
INFO = st.fixed_dictionaries({}, optional=optional("mimetype", "size", "thumbnail_url"))
CONTENT = st.fixed_dictionaries(
    {"msgtype": st.just("m.image") | JSON, "url": st.just(CAT) | JSON},
    optional={
        **optional("body", "filename", "m.relates_to", "redacts"),
        "info": INFO | JSON,
        "file": FILE | JSON,
    },
)
KINDS = st.sampled_from(["m.room.message", "m.sticker", "m.room.encrypted", "m.poll.start"])
IDS = ("event_id", "room_id", "sender", "state_key", "origin_server_ts", "redacts", "unsigned")
EVENTS = JSON | st.fixed_dictionaries(
    {"type": KINDS | JSON, "content": CONTENT | JSON}, optional=optional(*IDS)
)


async def test_any_events_are_kept_and_no_media_is_lost(database_url: str) -> None:
    """Whatever JSON is pushed, nothing raises, the neighbour is kept and every mxc is queued."""
    conn = await asyncpg.connect(database_url)
    loop = asyncio.get_running_loop()

    async def push(events: list[Any]) -> None:
        body = json.dumps({"events": [*events, GOOD]}).encode()
        pushed = Batch(body)
        expected = {
            tuple(reference.mxc)
            for event in pushed.events
            for reference in find_references(event).references
        }
        async with conn.transaction():
            await conn.execute("TRUNCATE reference, media, event")
            await record(conn, keep(pushed, ALL), Source.PUSH, ALL)
            rows = await conn.fetch("SELECT server_name, media_id FROM reference")
            assert {tuple(row) for row in rows} == expected
            assert await conn.fetchval("SELECT true FROM event WHERE event_id = '$good'")
            assert await record(conn, keep(pushed, ALL), Source.PUSH, ALL) == Recorded()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(EVENTS, max_size=4))
    def check(events: list[Any]) -> None:
        asyncio.run_coroutine_threadsafe(push(events), loop).result()

    await asyncio.to_thread(check)
    await conn.close()
