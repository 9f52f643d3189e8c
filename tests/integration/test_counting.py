"""Figures of whole tables: counted by one at a time, kept, and exact where that is cheap."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest

from archiver.catalogue import counting, present, verification
from archiver.catalogue.counting import Count, Counted, anew, at_hand, recent
from archiver.catalogue.stats import FIGURES, statistics
from archiver.catalogue.tallies import GROUPS, groups
from archiver.control.reply import plain
from archiver.serve import figures
from archiver.serve.figures import Figures
from tests.support.custody import Desk
from tests.support.fetching import until
from tests.support.samples import png
from tests.support.serving import Archive, Reader, state

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool

WAITS = """
SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database AS d ON d.oid = database
               WHERE d.datname = current_database() AND relation = 'tally'::regclass
                 AND NOT granted)
"""
PUT = """
UPDATE blob AS b SET created_at = new.created_at, verified_at = new.verified_at,
    damaged_at = new.damaged_at, repair_reason = new.repair_reason, repaired_at = new.repaired_at
FROM jsonb_populate_record((SELECT old FROM blob AS old WHERE sha256 = sha256($1)), $2) AS new
WHERE b.sha256 = new.sha256
"""
PNG = png(40, 30, (90, 170, 60))
AGED = "UPDATE tally SET counted_at = counted_at - $1::interval, took = $2::interval"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tables were too large to be read for whoever asks."""
    monkeypatch.setattr(counting, "SMALL", -1)
    monkeypatch.setattr(figures, "EVERY_SECONDS", 3600.0)


async def until_counted(pool: Pool) -> None:
    """Whoever serves counts at once, and then not again while a test lasts."""
    counted = "SELECT EXISTS (SELECT FROM tally WHERE key = $1)"
    last = groups(GROUPS[-1]).key
    await until(lambda: pool.fetchval(counted, last), "the server has counted")


async def count_media(conn: Connection) -> dict[str, Any]:
    return {"media": await conn.fetchval("SELECT count(*) FROM media")}


MEDIA = Count("media", count_media)


async def put(archive: Archive, data: bytes, **columns: str) -> None:
    """A media whose blob has such columns."""
    await archive.put(data)
    await archive.pool.execute(PUT, data, orjson.dumps(columns).decode())


async def ask(pool: Pool, how: Any, count: Count = MEDIA, *times: int) -> Counted:
    async with pool.acquire() as conn:
        counted: Counted = await how(conn, count, *times)
    return counted


async def age(pool: Pool, by: timedelta, took: timedelta = timedelta(seconds=1)) -> None:
    await pool.execute(AGED, by, took)


async def test_a_small_archive_is_counted_for_whoever_asks(archive: Archive) -> None:
    """Exact at once, and nothing is kept."""
    for number in range(2):
        for how in (at_hand, recent, anew):
            assert (await ask(archive.pool, how)).value == {"media": number}
        await archive.put(b"text")
    assert await archive.pool.fetchval("SELECT count(*) FROM tally") == 0


@pytest.mark.usefixtures("large")
async def test_a_large_one_is_counted_once_and_kept(archive: Archive) -> None:
    """Others are told what was counted, and when, until it is asked to be counted anew; who must
    not wait is told nothing until then."""
    async with archive.pool.acquire() as conn:
        assert await at_hand(conn, MEDIA) is None
    first = await ask(archive.pool, recent)
    await archive.put(b"text")
    for how in (at_hand, recent):
        kept = await ask(archive.pool, how)
        assert (kept.value, kept.counted_at) == ({"media": 0}, first.counted_at)
    new = await ask(archive.pool, anew)
    assert (new.value, new.counted_at > first.counted_at) == ({"media": 1}, True)
    assert (await ask(archive.pool, at_hand)).counted_at == new.counted_at


@pytest.mark.usefixtures("large")
async def test_it_is_counted_anew_in_time(archive: Archive) -> None:
    """After minutes; more rarely where it takes long; and not for readers, who never wait."""
    await ask(archive.pool, recent)
    await archive.put(b"text")
    await age(archive.pool, timedelta(minutes=6), took=timedelta(minutes=1))
    assert (await ask(archive.pool, recent)).value == {"media": 0}
    await age(archive.pool, timedelta(0))
    assert (await ask(archive.pool, at_hand)).value == {"media": 0}
    assert (await ask(archive.pool, recent, MEDIA, 2)).value == {"media": 0}
    assert (await ask(archive.pool, recent)).value == {"media": 1}


@pytest.mark.usefixtures("large")
async def test_one_counts_at_a_time(archive: Archive) -> None:
    """Who waited takes what the other one counted; readers wait for neither."""
    counts = 0

    async def of(conn: Connection) -> dict[str, Any]:
        nonlocal counts
        counts += 1
        return await count_media(conn)

    count = Count("media", of)
    await ask(archive.pool, recent, count)
    await age(archive.pool, timedelta(hours=1))
    async with archive.pool.acquire() as other:
        async with other.transaction():
            await other.execute(counting.ALONE)
            late = [asyncio.create_task(ask(archive.pool, recent, count)) for _ in range(2)]
            await until(lambda: archive.pool.fetchval(WAITS), "somebody waits")
            assert (await ask(archive.pool, at_hand, count)).value == {"media": 0}
            await other.execute(
                "UPDATE tally SET value = '{\"media\": 7}', counted_at = clock_timestamp()"
            )
        told = await asyncio.gather(*late)
    assert [one.value for one in told] == [{"media": 7}] * 2
    assert counts == 1


@pytest.mark.usefixtures("large")
async def test_figures_are_of_one_moment(archive: Archive) -> None:
    """Whatever is archived meanwhile; and nothing of how it counts stays with the connection."""
    seen = []

    async def of(conn: Connection) -> list[int]:
        for _ in range(2):
            seen.append(await conn.fetchval("SELECT count(*) FROM media"))
            await archive.put(b"text")
        seen.append(await conn.fetchval("SHOW statement_timeout"))
        return []

    async with archive.pool.acquire() as conn:
        before = await conn.fetchval("SHOW statement_timeout")
        await anew(conn, Count("seen", of))
        assert await conn.fetchval("SHOW statement_timeout") == before
    assert seen == [0, 0, "10min"]


@pytest.mark.usefixtures("large")
async def test_the_order_is_kept(archive: Archive) -> None:
    """What was counted as the commonest comes first."""

    async def of(_conn: Connection) -> dict[str, int]:
        return {"zebra": 3, "a": 2, "middle": 1}

    for _ in range(2):
        assert list((await ask(archive.pool, recent, Count("x", of))).value) == [
            "zebra", "a", "middle",
        ]  # fmt: skip


@pytest.mark.usefixtures("large")
async def test_readers_are_told_what_was_counted_and_what_is_so_now(
    archive: Archive, reader: Reader
) -> None:
    """The figures are as old as they say; what waits and what is damaged is of this moment."""
    await until_counted(archive.pool)
    await ask(archive.pool, anew, FIGURES)
    await age(archive.pool, timedelta(hours=1))
    await archive.put(b"text")
    await archive.put_state("pending", None)
    await archive.pool.execute(
        "UPDATE blob SET damaged_at = '2026-01-01Z', repair_reason = 'nobody has it'"
    )
    found = await reader.json("/api/v1/stats")
    assert found["media"] == {}
    assert datetime.now(UTC) - datetime.fromisoformat(found["counted_at"]) > timedelta(minutes=59)
    assert found["now"].pop("oldest_due_at")
    at = "2026-01-01T00:00:00+00:00"
    damaged = {"blobs": 1, "since": at, "unrepaired": 1, "unrepaired_since": at}
    assert found["now"] == {"pending": 1, "damaged": damaged}


@pytest.mark.usefixtures("large")
async def test_nobody_waits_for_the_first_count(archive: Archive, reader: Reader) -> None:
    """A reader is told when to ask again, though somebody counts; and what was counted once that
    is done."""
    await until_counted(archive.pool)
    async with archive.pool.acquire() as other, other.transaction():
        await other.execute(counting.ALONE)
        await archive.pool.execute("DELETE FROM tally")
        counted = asyncio.create_task(Figures(archive.pool).count())
        await until(lambda: archive.pool.fetchval(WAITS), "somebody counts")
        async with reader.ask("/api/v1/stats") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "30")
            assert "is being counted for the first time" in (await answer.json())["error"]
    await counted
    assert (await reader.json("/api/v1/stats"))["media"] == {}


@pytest.mark.usefixtures("large")
async def test_status_waits_for_no_count(archive: Archive, http: aiohttp.ClientSession) -> None:
    """It says that there is none so far, and what counts."""
    desk = Desk(archive.pool, http)
    assert "not counted yet; `stats` tells" in plain(await desk.give("status"))
    await ask(archive.pool, anew, FIGURES)
    assert "not counted yet" not in plain(await desk.give("status"))


@pytest.mark.usefixtures("large")
async def test_a_count_that_fails_is_tried_again(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody counts ever again, if who does it gives up for what nobody foresaw."""
    calls = 0

    async def of(conn: Connection) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        await conn.fetchval("SELECT 1 / $1::integer", calls - 1)
        return await statistics(conn)

    monkeypatch.setattr(figures, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(figures, "FIGURES", Count("flawed", of))
    counts = asyncio.create_task(Figures(archive.pool).run())
    try:
        kept = "SELECT count(*) FROM tally"
        await until(lambda: archive.pool.fetchval(kept), "it is counted")
    finally:
        counts.cancel()
        await asyncio.wait([counts])
    assert calls == 2


@pytest.mark.usefixtures("large")
async def test_verified_blobs_are_counted_now_and_then(archive: Archive) -> None:
    """What is damaged is of this moment."""
    async with archive.pool.acquire() as conn:
        first = await verification.standing(conn)
        await put(archive, b"one", damaged_at="2026-01-01Z")
        second = await verification.standing(conn)
        assert (first.blobs, second.blobs, second.damaged) == (0, 0, 1)
        assert second.seconds_old > 0
        await age(archive.pool, timedelta(hours=1))
        third = await verification.standing(conn)
        assert (third.blobs, third.never, third.oldest, third.seconds_old) == (1, 1, None, 0)


async def test_when_everything_was_verified(archive: Archive, reader: Reader) -> None:
    """Since when every blob was hashed, be it as it came; and a dashboard is told how long that
    is."""
    verified = (await reader.json("/api/v1/stats"))["verified"]
    assert verified == {"never": 0, "since": None}
    await put(archive, b"one", created_at="2025-01-01Z", verified_at="2026-02-01Z")
    await put(archive, b"two", created_at="2026-01-01Z")
    verified = (await reader.json("/api/v1/stats"))["verified"]
    assert verified == {"never": 1, "since": "2026-01-01T00:00:00+00:00"}
    since = datetime(2026, 1, 1, tzinfo=UTC)

    async def told() -> bool:  # the server may just be telling what it counted before
        await Figures(archive.pool).count()
        found = await metrics_of(reader)
        days = timedelta(seconds=found["archiver_oldest_verified_seconds"])
        counted = found["archiver_counted_timestamp_seconds"] > since.timestamp()
        return counted and abs(datetime.now(UTC) - since - days) < timedelta(hours=1)

    await until(told, "the metrics tell since when everything was verified")


async def metrics_of(reader: Reader) -> dict[str, float]:
    async with reader.ask("/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return {name: float(value) for name, value in (x.split(" ") for x in lines if x[0] != "#")}


async def until_told(archive: Archive, reader: Reader, expected: Mapping[str, float]) -> None:
    """The server may just be telling what it counted before."""

    async def told() -> bool:
        await Figures(archive.pool).count()
        found = await metrics_of(reader)
        return {name: found[name] for name in expected} == expected

    await until(told, f"the metrics tell {expected}")


def posted(mxc: object, event_id: str, sender: str = "@alice:a") -> dict[str, Any]:
    content = {"msgtype": "m.file", "body": "file", "url": str(mxc)}
    event = {"event_id": event_id, "sender": sender, "room_id": "!room:a"}
    return {**event, "type": "m.room.message", "content": content}


async def test_readers_are_told_who_and_what_fills_the_archive(
    archive: Archive, reader: Reader
) -> None:
    """By room with its name, by user, by type of the bytes and by month, as `stats` tells it."""
    text, picture = await archive.put(b"text" * 100, "text/plain"), await archive.put(PNG)
    await archive.record(
        state("m.room.name", {"name": "The garden"}),
        posted(text, "$1"), posted(text, "$2"), posted(picture, "$3", "@bob:a"),
    )  # fmt: skip
    size = 400 + len(PNG)
    told = {group: (await reader.json(f"/api/v1/stats/{group}"))["groups"] for group in GROUPS}
    assert told["room"] == [{"key": "!room:a", "name": "The garden", "media": 2, "bytes": size}]
    assert [(one["key"], one["media"], one["bytes"]) for one in told["user"]] == [
        ("@alice:a", 1, 400), ("@bob:a", 1, len(PNG)),
    ]  # fmt: skip
    assert [(one["key"], one["bytes"]) for one in told["type"]] == [
        ("", 400), ("image/png", len(PNG)),
    ]  # fmt: skip
    assert [one["bytes"] for one in told["month"]] == [size]


@pytest.mark.usefixtures("large")
async def test_groups_of_a_large_archive_are_counted_before_anybody_asks(
    archive: Archive, reader: Reader
) -> None:
    """And never for a reader, who is told when they were."""
    await until_counted(archive.pool)
    await archive.put(PNG)
    found = await reader.json("/api/v1/stats/type")
    assert found["groups"] == []
    assert datetime.fromisoformat(found["counted_at"]) < datetime.now(UTC)
    await archive.pool.execute("DELETE FROM tally")
    async with reader.ask("/api/v1/stats/type") as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "30")


async def test_a_dashboard_is_told_how_much_there_is(archive: Archive, reader: Reader) -> None:
    """Files, bytes, what sharing saves, the largest, reads, kinds, growth and forecast; and
    nothing old of what went."""
    for data in (PNG, PNG, b"text" * 100):
        await archive.put(data)
    await archive.pool.execute("UPDATE media SET access_count = 2")
    size = 400 + len(PNG)
    expected = {
        "archiver_kept_files": 2,
        "archiver_kept_bytes": size,
        "archiver_deduplicated_bytes": len(PNG),
        "archiver_largest_bytes": max(400, len(PNG)),
        "archiver_accesses": 6,
        'archiver_kind_media{kind="image"}': 2,
        'archiver_kind_bytes{kind="image"}': len(PNG),
        'archiver_kind_bytes{kind="other"}': 400,
        'archiver_kind_bytes{kind="video"}': 0,
        'archiver_stored_bytes{place="inline"}': size,
        'archiver_stored_bytes{place="object"}': 0,
        "archiver_growth_bytes_per_day": size,
        'archiver_forecast_bytes{days="30"}': size * 31,
        'archiver_forecast_bytes{days="90"}': size * 91,
    }
    await until_told(archive, reader, expected)
    await archive.pool.execute("DELETE FROM media")
    await archive.pool.execute("DELETE FROM blob")
    await until_told(archive, reader, dict.fromkeys(expected, 0))


async def test_damage_makes_nobody_unready(archive: Archive, reader: Reader) -> None:
    """A load balancer goes on sending readers; who looks is told how much, and since when."""
    await put(archive, b"one", damaged_at="2026-01-01Z")
    await put(archive, b"two", damaged_at="2026-02-01Z", repair_reason="nobody has it")
    await put(archive, b"three", repaired_at="2026-03-01Z")
    assert await reader.json("/readyz") == {
        "status": "ready",
        "damaged": {
            "blobs": 2,
            "since": "2026-01-01T00:00:00+00:00",
            "unrepaired": 1,
            "unrepaired_since": "2026-02-01T00:00:00+00:00",
        },
    }


async def test_much_damage_is_not_counted_to_its_end(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a disk is gone, a look costs no more than when a file is."""
    monkeypatch.setattr(present, "MOST", 3)
    await pool.execute(
        "INSERT INTO blob (sha256, size, place, damaged_at)"
        " SELECT sha256(n::text::bytea), 0, 'inline', now() FROM generate_series(1, 9) AS n"
    )
    async with pool.acquire() as conn:
        assert (await present.damage(conn)).blobs == 3


@pytest.mark.parametrize(
    ("statement", "indexes"),
    [(present.WAITING, {"media_due"}), (present.DAMAGE, {"blob_damaged"})],
)
async def test_what_is_so_now_is_found_by_an_index(
    pool: Pool, statement: str, indexes: set[str]
) -> None:
    """However much is ready and well."""
    await pool.execute(
        "INSERT INTO blob (sha256, size, place, damaged_at) SELECT sha256(n::text::bytea), 0,"
        " 'inline', CASE n % 500 WHEN 0 THEN now() END FROM generate_series(1, 20000) AS n"
    )
    await pool.execute(
        "INSERT INTO media (server_name, media_id, state, due_at, blob_sha256)"
        " SELECT 'a', n, CASE n % 500 WHEN 0 THEN 'pending' ELSE 'ready' END, now(),"
        " sha256(n::text::bytea) FROM generate_series(1, 20000) AS n"
    )
    await pool.execute("ANALYZE media, blob")
    text = await pool.fetchval("EXPLAIN (FORMAT JSON) " + statement, present.MOST)
    found = list(_nodes(orjson.loads(text)[0]["Plan"]))
    assert {node["Index Name"] for node in found if "Index Name" in node} == indexes
    assert not [node for node in found if node["Node Type"] == "Seq Scan"]


def _nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(found for child in node.get("Plans", ()) for found in _nodes(child))]
