"""What ten million media cost a reader who asks for one of them, or for a page of a list."""

from __future__ import annotations

import asyncio
import os
import random
import time
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlencode

import asyncpg

from archiver.serve.paging import cursor
from bench import filling
from bench.figures import Figures, Goal, Other, Row, Section, number
from bench.ground import Ground, client, download_path, say
from bench.installation import Archive
from bench.intake import p99

ROUNDS = 5
MANY = int(os.environ.get("BENCH_ROWS", "10000000"))
FEW = min(10_000, MANY)
LOOKUPS = 4_000
PAGES = 100
PAGE = 100
FAR = 1_000  # the page far down a list
GOAL_RATIO = 1.5
GOAL_MS = 50
DEADLINE = 300
IDLE = """
SELECT count(*) = 0 FROM pg_stat_activity
WHERE application_name = 'matrix-media-archiver' AND state <> 'idle'
"""
LARGEST = "!room0:archive.test"
PARTS = filling.WORDS.values()

HOW = f"""\
Two archives, one with {MANY:,} made-up media and one with {FEW:,}: each has a blob of 128 bytes
in PostgreSQL, an event and a reference, in {filling.ROOMS:,} rooms of which the largest has four
media in ten, over three years. PostgreSQL has its default settings, and no hot cache is used.
A client asks for {LOOKUPS:,} media chosen at random, one after the other over one connection, and
the figure is what 99 of 100 answers did not exceed. {ROUNDS} rounds for the same media, both
archives in turn, after one that does not count: it has brought what is needed into the machine's
memory, which need not hold the whole database, so that the disk's speed is not in the figures. Of
a list it is the same of {PAGES} requests for one page of {PAGE}, after a few that do not count.
The words {", ".join(filling.WORDS)} are in one file name of {", ".join(map(str, PARTS))}."""


class List(NamedTuple):
    """A list, and the same in SQL: its references from the newest on."""

    name: str
    query: dict[str, str]
    where: str = "true"


LISTS = (
    List("all", {}),
    List("the largest room", {"room_id": LARGEST}, f"e.room_id = '{LARGEST}'"),
    *(
        List(f"the word {word}", {"text": word}, f"r.words @@ '''{word}'':*'::tsquery")
        for word in filling.WORDS
    ),
)
# The last reference before the page asked for; or before the last page there is.
SPOT = """
SELECT place, e.sent_at, r.event_id, r.item, r.role, r.server_name, r.media_id
FROM (SELECT *, max(place) OVER () AS last
      FROM (SELECT e.event_id, e.sent_at,
                   row_number() OVER (ORDER BY e.sent_at DESC, e.event_id DESC) AS place
            FROM event AS e JOIN reference AS r USING (event_id)
            WHERE e.has_media AND WHERE_
            ORDER BY e.sent_at DESC, e.event_id DESC LIMIT $1 + 1) AS e) AS e
JOIN reference AS r USING (event_id)
WHERE place % 100 = 0 AND place < last ORDER BY place DESC LIMIT 1
"""


def measure(ground: Ground) -> Section:
    """Fills both, then asks them in turn."""
    many, few = (_archive(ground, name) for name in ("many", "few"))
    took = _fill(ground, {many: MANY, few: FEW})
    with many.running("serve"), few.running("serve"):
        _until_idle(many)
        rows = [*_lookups(many, few), *_lists(many)]
    size = many.sql("SELECT pg_database_size(current_database())")
    how = f"{HOW}\nThe large database has {size / 1e9:.1f} GB; it was filled in {took:.0f} s."
    return Section("Many rows", how, rows)


def _archive(ground: Ground, name: str) -> Archive:
    archive = Archive(ground, name)
    archive.configure("http://127.0.0.1:1", {}, serve={"hot_cache": 0})
    return archive


def _fill(ground: Ground, archives: dict[Archive, int]) -> float:
    """Seconds; the server runs with its usual settings again afterwards."""
    started = time.monotonic()
    _restart(ground, relaxed=True)
    for archive, count in archives.items():
        asyncio.run(filling.fill(archive.database, count))
        say(f"{count:,} media after {time.monotonic() - started:.0f} s")
    _restart(ground, relaxed=False)
    return time.monotonic() - started


def _restart(ground: Ground, *, relaxed: bool) -> None:
    asyncio.run(filling.relax(ground.postgres.url, relaxed=relaxed))
    ground.postgres.stop()
    os.sync()
    ground.postgres.start()


def _until_idle(archive: Archive) -> None:
    """What it counts for its own figures at the start is over."""
    deadline = time.monotonic() + DEADLINE
    while not archive.sql(IDLE):
        assert time.monotonic() < deadline, "the archive does not come to rest"
        time.sleep(0.5)


def _lookups(many: Archive, few: Archive) -> list[Row]:
    kinds = {
        "GET /api/v1/media/{server}/{id}, p99 in ms": "/api/v1/media/{}",
        "download of 128 bytes, p99 in ms": download_path("mxc://{}"),
    }
    tokens = {archive: archive.token() for archive in (many, few)}
    names = {many: _names(many, MANY), few: _names(few, FEW)}
    rows = []
    for what, path in kinds.items():
        found: dict[Archive, list[float]] = {many: [], few: []}
        for _ in range(ROUNDS + 1):
            for archive, figures in found.items():
                paths = [path.format(name) for name in names[archive]]
                figures.append(_ask(archive, tokens[archive], paths))
        say(f"{what}:", ", ".join(number(value) for value in found[many]))
        ours, others = (Figures(tuple(found[archive][1:])) for archive in (many, few))
        other = Other(f"with {FEW:,}", others, Goal(GOAL_RATIO, at_most=True))
        rows.append(Row(f"{what}, of {MANY:,}", ours, [other]))
    return rows


def _names(archive: Archive, rows: int) -> list[str]:
    numbers = random.choices(range(1, rows + 1), k=LOOKUPS)  # noqa: S311  # no secret
    return asyncio.run(filling.names(archive.database, numbers))


def _ask(archive: Archive, token: str, paths: list[str]) -> float:
    """The p99 in ms, when a few have shown the way."""
    order = {"port": archive.files.serve_port, "token": token}
    client("bench.latency", order={**order, "paths": paths[:10]})
    return p99(client("bench.latency", order={**order, "paths": paths}))


def _lists(archive: Archive) -> list[Row]:
    token = archive.token()
    rows = []
    for one in LISTS:
        for place, more in _pages(archive, one):
            path = f"/api/v1/media?{urlencode({'limit': PAGE, **one.query, **more})}"
            values = [_ask(archive, token, [path] * PAGES) for _ in range(ROUNDS)]
            what = f"page {place:,} of {one.name}, p99 in ms"
            say(f"{what}:", ", ".join(number(value) for value in values))
            rows.append(Row(what, Figures(tuple(values)), goal=Goal(GOAL_MS, at_most=True)))
    return rows


def _pages(archive: Archive, one: List) -> list[tuple[int, dict[str, str]]]:
    """The first page, and one far down: its number, and what asks for it."""
    found = asyncio.run(_spot(archive.database, one.where))
    if found is None:
        return [(1, {})]
    place, at, *names = found
    return [(1, {}), (place // PAGE + 1, {"from": cursor([at, *names])})]


async def _spot(dsn: str, where: str) -> tuple[int, datetime, str, int, str, str, str] | None:
    conn = await asyncpg.connect(dsn)
    try:
        row = await conn.fetchrow(SPOT.replace("WHERE_", where), (FAR - 1) * PAGE)
        return tuple(row) if row else None
    finally:
        await conn.close()
