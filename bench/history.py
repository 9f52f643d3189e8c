"""How fast old messages are read, what that does to new ones, and what a comparison costs."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from bench import live, past
from bench.figures import Figures, Goal, Other, Row, Section, number
from bench.ground import Ground, client, picture, say, upload_all
from bench.installation import Archive
from bench.intake import p99
from tests.support.process import LOOPBACK
from tests.support.synapse import Synapse

ROUNDS = 3
PASSES = 2
ROOMS = 20
EVENTS = 1_000
GOAL_READ = 0.7
GOAL_P99 = 2
DEADLINE = 120
BOT = "@archiver:archive.test"

LIMITS, AT_ONCE = (250, 500, 1_000), (1, 2)
NOTHING_FETCHED = "INSERT INTO budget VALUES ('remote', now() + interval '1 year')"
EMPTY = "TRUNCATE event, media, reference, redaction_due, backfill, room"
RATE = """
SELECT (sum(events) / extract(epoch FROM max(settled_at) - min(requested_at)))::float8
FROM backfill HAVING bool_and(state = 'done')
"""

HOW = f"""\
A real Synapse (SQLite, one process) with {ROOMS} rooms of {EVENTS:,} messages each, one in ten an
image, from before the archive was there. The images are another server's, and wait for the budget
of such media, so that they are recorded and nothing is downloaded: the figure is that of reading.
`archiver backfill --all` into an empty database, from when the rooms are asked for until the last
one is read, against a client that asks the same endpoint for the same rooms, parses and throws
away, with the best page size of {", ".join(map(str, LIMITS))} and one or two rooms at a time,
found beforehand. {ROUNDS} rounds, both in turn in each, after a first one that does not count.

New messages: a client pushes {live.A_SECOND} transactions of {live.EVENTS} images a second, as
many as a Synapse was ever seen to send, to `archiver run` with all its parts but the bot. While
old messages are read `archiver backfill --all` runs beside it, and each takes its share of the
rooms; {PASSES} times a round, its start included, and as long without it; and as long while the
bare client reads instead, who writes nothing: what is left is the homeserver's own work on the
cores that all share.

A comparison: `archiver run` starts, doubts and compares every room with a history that has
nothing new; what it measured itself of the requests, the homeserver otherwise idle. The one that
lists the rooms is among them."""


def measure(ground: Ground) -> Section:
    """Reading, new messages meanwhile, and comparisons, one after the other."""
    archive = Archive(ground)
    synapse = ground.synapse(_without_pushes(archive, ground.folder))
    say(f"{ROOMS} rooms of {EVENTS} messages are made")
    rooms = past.talk(synapse, ROOMS, EVENTS)
    bench = _Bench(archive, synapse, rooms)
    return Section("History", HOW, [*bench.reading(), *bench.posting(), *bench.comparing()])


def _without_pushes(archive: Archive, folder: Path) -> Path:
    """A registration for Synapse by which it pushes nothing: that is the client's part."""
    registration = folder / "registration-without-pushes.yaml"
    registration.write_text(yaml.safe_dump({**archive.registration, "url": None}), "utf-8")
    return registration


class _Best(NamedTuple):
    """How the bare loop reads fastest."""

    limit: int
    at_once: int


BESIDE = _Best(500, 2)  # as `archiver backfill` reads


class _Bench:
    def __init__(self, archive: Archive, synapse: Synapse, rooms: Sequence[str]) -> None:
        self._archive = archive
        self._synapse = synapse
        self._rooms = rooms

    def reading(self) -> list[Row]:
        """Events a second, the archive's and the bare loop's."""
        found = {_Best(limit, n): self._bare(limit, n) for limit in LIMITS for n in AT_ONCE}
        best = max(found, key=lambda one: found[one])
        say(f"the bare loop is fastest with {best.limit} events a page, {best.at_once} at once")
        ours, bare = [], []
        for round_ in range(ROUNDS + 1):
            bare.append(self._bare(*best))
            ours.append(self._backfill())
            say(f"round {round_}: archive {number(ours[-1])}, bare {number(bare[-1])} events/s")
        name = f"bare aiohttp + orjson, {best.limit} a page, {best.at_once} at once"
        others = [Other(name, Figures(tuple(bare[1:])), Goal(GOAL_READ))]
        return [Row("old messages read, events/s", Figures(tuple(ours[1:])), others)]

    def _bare(self, limit: int, at_once: int) -> float:
        order = {
            "url": self._synapse.url,
            "token": self._archive.registration["as_token"],
            "bot": BOT,
            "rooms": self._rooms,
            "limit": limit,
            "at_once": at_once,
        }
        found = client("bench.bare_history", order=order)
        return float(found["events"] / found["seconds"])

    def _backfill(self) -> float:
        self._begin_anew()
        self._read()
        images = self._archive.sql("SELECT count(*) FROM media WHERE paced_at IS NOT NULL")
        assert images == ROOMS * len(range(0, EVENTS, 10)), f"{images} images were recorded"
        return float(self._archive.sql(RATE))

    def _begin_anew(self, reconcile_every: str | None = None) -> None:
        """A new database, in which media of other servers wait for long."""
        archive = self._archive
        archive.configure(self._synapse.url, {}, history={"reconcile_every": reconcile_every})
        archive.files.command("migrate", "-c", str(archive.files.config))
        archive.sql(NOTHING_FETCHED)

    def _read(self) -> None:
        self._archive.files.command("backfill", "--all", "-c", str(self._archive.files.config))

    def posting(self) -> list[Row]:
        """The 99th percentile of the acknowledgements, while old messages are read and idle."""
        bodies = (picture(10 * 1024) for _ in range(50))
        mxcs, _ = upload_all(self._synapse, "poster", bodies)
        self._begin_anew()
        busy, idle, bare = [], [], []
        with self._archive.running("intake", "worker", "serve"):
            for round_ in range(ROUNDS + 1):
                meanwhile, alone, beside = self._post(mxcs)
                busy.append(p99(meanwhile))
                idle.append(p99(alone))
                bare.append(p99(beside))
                say(f"round {round_}: p99 {number(busy[-1])} ms while old messages are read"
                    f" ({len(meanwhile)} pushes), by a bare loop {number(bare[-1])} ms,"
                    f" else {number(idle[-1])} ms")  # fmt: skip
        what = "p99 of the acknowledgement while old messages are read, ms"
        others = [
            Other("while nothing is read", Figures(tuple(idle[1:])), Goal(GOAL_P99, at_most=True)),
            Other("while a bare loop reads", Figures(tuple(bare[1:]))),
        ]
        return [Row(what, Figures(tuple(busy[1:])), others)]

    def _post(self, mxcs: Sequence[str]) -> tuple[list[float], list[float], list[float]]:
        port, token = self._archive.files.push_port, self._archive.registration["hs_token"]
        busy: list[float] = []
        idle: list[float] = []
        bare: list[float] = []
        for _ in range(PASSES):
            self._archive.sql(EMPTY)
            started = time.monotonic()
            with live.people_posting(port, token, mxcs) as seconds:
                self._read()
            busy += seconds
            took = time.monotonic() - started
            self._archive.sql(EMPTY)
            with live.people_posting(port, token, mxcs) as seconds:
                time.sleep(took)
            idle += seconds
            self._archive.sql(EMPTY)
            over = time.monotonic() + took
            with live.people_posting(port, token, mxcs) as seconds:
                while time.monotonic() < over:
                    self._bare(*BESIDE)
            bare += seconds
        return busy, idle, bare

    def comparing(self) -> list[Row]:
        """What a comparison costs the homeserver where nothing is missing."""
        self._begin_anew("1 h")
        self._read()
        milliseconds, requests = [], []
        for round_ in range(ROUNDS + 1):
            with self._archive.running("worker", "serve"):
                found = self._compared()
            milliseconds.append(1000 * found["sum"] / ROOMS)
            requests.append(found["count"] / ROOMS)
            say(f"round {round_}: {number(milliseconds[-1])} ms, {number(requests[-1])} requests")
        return [
            Row("a room compared, ms of the homeserver", Figures(tuple(milliseconds[1:]))),
            Row("a room compared, requests", Figures(tuple(requests[1:]))),
        ]

    def _compared(self) -> dict[str, float]:
        """The count and the sum of the requests, after every room was compared."""
        server = http.client.HTTPConnection(LOOPBACK, self._archive.files.serve_port)
        headers = {"Authorization": f"Bearer {self._archive.token()}"}
        deadline = time.monotonic() + DEADLINE
        while True:
            server.request("GET", "/metrics", headers=headers)
            text = server.getresponse().read().decode()
            visits = _values(text, r"archiver_room_visits_total\{.*\}")
            if sum(visits) >= ROOMS:
                return {
                    name: _values(text, f"archiver_room_seconds_{name}")[0]
                    for name in ("sum", "count")
                }
            assert time.monotonic() < deadline, f"{sum(visits)} rooms were compared"
            time.sleep(0.2)


def _values(text: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)]
