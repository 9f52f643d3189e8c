"""How fast pushes are acknowledged, durably, against a handler that only parses them."""

from __future__ import annotations

from bench import push
from bench.figures import Figures, Goal, Other, Row, Section, number
from bench.ground import Ground, client, say
from bench.installation import Archive

ROUNDS = 5
TRANSACTIONS = 300
GOAL_EVENTS = 18_000
GOAL_P99_MS = 15

HOW = f"""\
Transactions of {push.EVENTS} m.image events, each event and each media new, pushed one at a time
over one connection by a client process of its own. `archiver run --only intake` answers when they
are committed, with fsync on; the bare handler parses them (orjson) and answers. {ROUNDS} rounds
of {TRANSACTIONS} transactions, one after the other against each, after {push.WARM_UP} that do not
count, and after a first round that does not. Before each round a CHECKPOINT lets PostgreSQL use
the files of its log again, as it does where it has run for a while; where it is new it has to make
them, 16 MiB at a time, and one acknowledgement in a hundred waits for that."""


def measure(ground: Ground) -> Section:
    """Rounds against the archive and the bare handler in turn."""
    archive = Archive(ground)
    archive.configure("http://127.0.0.1:1", {})
    ports = {
        "archive": archive.files.push_port,
        "bare": ground.module("bench.bare", "intake"),
    }
    token = archive.registration["hs_token"]
    found: dict[str, list[list[float]]] = {name: [] for name in ports}
    with archive.running("intake"):
        for round_ in range(ROUNDS + 1):
            archive.sql("CHECKPOINT")
            for name, port in ports.items():
                pushed = client("bench.push", str(port), token, f"r{round_}", str(TRANSACTIONS))
                say(f"round {round_}, {name}: {number(rate(pushed))} events/s, p99"
                    f" {number(p99(pushed))} ms")  # fmt: skip
                found[name].append(pushed)
        kept = archive.sql("SELECT count(*) FROM event")
    sent = (ROUNDS + 1) * (push.WARM_UP + TRANSACTIONS) * push.EVENTS
    assert kept == sent, f"{kept} of {sent} events were kept"
    return Section("Intake", HOW, _rows(found["archive"][1:], found["bare"][1:]))


def rate(seconds: list[float]) -> float:
    """Events a second."""
    return len(seconds) * push.EVENTS / sum(seconds)


def p99(seconds: list[float]) -> float:
    """Milliseconds, which 99 of 100 acknowledgements did not exceed."""
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1000


def _rows(ours: list[list[float]], bare: list[list[float]]) -> list[Row]:
    return [
        Row(
            "events/s",
            Figures(tuple(map(rate, ours))),
            [Other("bare aiohttp + orjson", Figures(tuple(map(rate, bare))))],
            Goal(GOAL_EVENTS),
        ),
        Row(
            "p99 of the acknowledgement, ms",
            Figures(tuple(map(p99, ours))),
            [Other("bare aiohttp + orjson", Figures(tuple(map(p99, bare))))],
            Goal(GOAL_P99_MS, at_most=True),
        ),
    ]
