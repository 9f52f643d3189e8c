"""Every rule with every hold, redaction, quarantine and further reference: what goes or stays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest

from archiver.catalogue import holds, quarantine, refused
from archiver.config.retention import Rule
from archiver.keep.deletion import Deletion
from archiver.keep.quarantine import OURSELVES
from archiver.keep.retention import Retention
from archiver.model import Source
from tests.support.redacting import ALICE, SERVER, image, mxc, put, redact, redaction
from tests.support.serving import Archive, Reader, serving

if TYPE_CHECKING:
    from archiver.db.pool import Pool

NOW = datetime.now(UTC)
GRACE, A_WHILE = timedelta(days=7), timedelta(days=8)
SUSPECT = f"@suspect:{SERVER}"
BOB = f"@bob:{SERVER}"

# What is done in a room with what was posted 100 days ago, or 200, and what becomes of it.
RULES: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "no rule": (None, False),
    "for ever": ({}, False),
    "posted long ago": ({"keep": "90 d"}, True),
    "unread": ({"keep_unread": "30 d"}, True),
    "over its quota": ({"quota": 0}, True),
}
READ_DAYS_AGO = 40
HOLDS = ["none", "released", "mxc", "event", "user", "room", "hash", "span"]
REDACTIONS = ["none", "hidden", "due"]
QUARANTINES = ["none", "mxc", "hash"]
FURTHER = ["alone", "same bytes", "sticker", "avatar"]

OUTCOMES = """
SELECT m.media_id, m.state, split_part(m.reason, ':', 1), e.content <> '{}'
FROM media AS m JOIN event AS e ON e.event_id = '$' || m.media_id WHERE m.media_id = ANY($1)
"""
THERE = "SELECT sha256 FROM blob JOIN blob_data USING (sha256)"


class Case(NamedTuple):
    """One picture, and what was said of it."""

    rule: str
    hold: str
    redaction: str
    quarantine: str
    further: str


class Outcome(NamedTuple):
    """What became of it. `words`: the event still says something; `shown`: a reader gets it."""

    state: str
    reason: str | None
    bytes_kept: bool
    words: bool
    shown: bool


Cases = dict[str, Case]
ALL = {
    f"m{number:04}": Case(*case)
    for number, case in enumerate(product(RULES, HOLDS, REDACTIONS, QUARANTINES, FURTHER))
}
FEW_HOLDS = {
    name: case
    for name, case in ALL.items()
    if case.redaction == "due" and case.hold in ("none", "released", "mxc")
}


def expected(case: Case, *, redaction_first: bool) -> Outcome:
    """In the words of the manual, which knows nothing of how it is done."""
    held = case.hold not in ("none", "released")
    named_by_others = case.further in ("sticker", "avatar")
    redaction_says = case.redaction == "due" and not named_by_others
    rule_says = RULES[case.rule][1] and case.quarantine == "none" and not named_by_others
    wish = ["capture.on_redaction"] * redaction_says + ["retention"] * rule_says
    reason = wish[0 if redaction_first else -1] if wish and not held else None
    shown_or_not = "ready" if case.quarantine == "none" else "quarantined"
    state = "deleted" if reason else shown_or_not
    hidden = case.redaction != "none" and not named_by_others
    return Outcome(
        state,
        reason,
        bytes_kept=reason is None or case.further == "same bytes",
        words=held or case.redaction != "due",
        shown=state == "ready" and not hidden,
    )


def room_of(case: Case) -> str:
    return f"!{case.rule.replace(' ', '-')}{'-held' if case.hold == 'room' else ''}"


def body_of(name: str) -> bytes:
    return f"the bytes of {name}".encode()


def digest_of(name: str) -> bytes:
    return hashlib.sha256(body_of(name)).digest()


def at(days: float) -> int:
    return int((NOW - timedelta(days=days)).timestamp() * 1000)


def events(cases: Cases) -> Iterator[dict[str, Any]]:
    """Each picture, and whatever else names it or has its bytes."""
    for name, case in cases.items():
        room = room_of(case)
        sender = SUSPECT if case.hold == "user" else ALICE
        sent = at(200 if case.hold == "span" else 100)
        yield image(f"${name}", name, room_id=room, sender=sender, origin_server_ts=sent)
        again = image(f"$again-{name}", name, sender=BOB, room_id=room, origin_server_ts=at(100))
        if case.further == "same bytes":
            yield image(f"$same-{name}", f"same-{name}", sender=BOB, room_id="!elsewhere")
        elif case.further == "sticker":
            yield again | {"type": "m.sticker"}
        elif case.further == "avatar":
            face = f"@face-{name}:{SERVER}"
            content = {"membership": "join", "avatar_url": str(mxc(name))}
            fields = {"type": "m.room.member", "state_key": face, "sender": face}
            yield again | fields | {"content": content}


def only(cases: Cases, **wanted: str) -> list[str]:
    """The names of such cases."""
    return [
        name
        for name, case in cases.items()
        if all(getattr(case, key) == value for key, value in wanted.items())
    ]


async def take_in(pool: Pool, said: list[dict[str, Any]], source: Source) -> None:
    async with pool.acquire() as conn:
        for start in range(0, len(said), 500):
            await put(conn, *said[start : start + 500], source=source)


async def archive_all(pool: Pool, cases: Cases) -> None:
    """As if workers had fetched everything, and somebody had read it some time ago."""
    await take_in(pool, list(events(cases)), Source.BACKFILL)
    rows = [(digest_of(name), len(body_of(name)), body_of(name)) for name in cases]
    await pool.executemany(
        "WITH one AS (INSERT INTO blob (sha256, size, place) VALUES ($1, $2, 'inline'))"
        " INSERT INTO blob_data VALUES ($1, $3)",
        rows,
    )
    await pool.execute(
        "UPDATE media SET state = 'ready', due_at = NULL, settled_at = now() - interval '99 d',"
        " last_accessed = now() - $3::interval, blob_sha256 = named.sha256"
        " FROM unnest($1::text[], $2::bytea[]) AS named(name, sha256)"
        " WHERE media_id IN (name, 'same-' || name)",
        list(cases), [digest_of(name) for name in cases], timedelta(days=READ_DAYS_AGO),
    )  # fmt: skip


async def set_aside(pool: Pool, cases: Cases) -> None:
    """By mxc, and by their bytes."""
    async with pool.acquire() as conn, conn.transaction():
        hashed = only(cases, quarantine="hash")
        for name in hashed:
            await refused.refuse(conn, digest_of(name), "as an administrator said")
        named = [*only(cases, quarantine="mxc"), *hashed, *(f"same-{name}" for name in hashed)]
        await quarantine.set_aside(conn, [mxc(name) for name in named], "quarantined")


async def hold(pool: Pool, cases: Cases) -> None:
    """Each in its own way; some of it was ended."""
    first, last = (NOW - timedelta(days=days) for days in (201, 199))
    targets = [str(mxc(name)) for name in only(cases, hold="mxc")]
    targets += [f"${name}" for name in only(cases, hold="event")]
    targets += [f"sha256:{digest_of(name).hex()}" for name in only(cases, hold="hash")]
    targets += sorted({room_of(cases[name]) for name in only(cases, hold="room")})
    targets += [SUSPECT, f"{first.isoformat()}..{last.isoformat()}"]
    released = [str(mxc(name)) for name in only(cases, hold="released")]
    async with pool.acquire() as conn, conn.transaction():
        for target in targets + released:
            await holds.place(conn, target, "a case", "shell:root")
        for target in released:
            await holds.release(conn, target)


async def take_back(pool: Pool, cases: Cases) -> None:
    """The event of each picture is redacted, of some so long ago that the grace is over."""
    due = only(cases, redaction="due")
    names = due + only(cases, redaction="hidden")
    said = [redaction(f"$r-{n}", f"${n}", room_id=room_of(cases[n])) for n in names]
    await take_in(pool, said, Source.PUSH)
    await redact(pool)
    await pool.execute(
        "UPDATE event SET received_at = received_at - $2::interval WHERE event_id = ANY($1)",
        [f"$r-{name}" for name in due],
        A_WHILE,
    )
    await pool.execute(
        "UPDATE media SET redacted_at = redacted_at - $2::interval WHERE media_id = ANY($1)",
        due,
        A_WHILE,
    )


async def let_go(pool: Pool, archive: Archive, *, redaction_first: bool) -> None:
    """What rules say, and what redactions say."""
    rules = [
        Rule.model_validate({"room": f"!{name.replace(' ', '-')}{suffix}", **rule})
        for name, (rule, _) in RULES.items()
        for suffix in ("", "-held")
        if rule is not None
    ]
    deletion = Deletion(pool, archive.store, GRACE)
    if redaction_first:
        await deletion.work()
    async for _ in Retention(pool, rules, SERVER).run(OURSELVES):
        pass
    await deletion.work()


async def outcomes(pool: Pool, cases: Cases, reader: Reader) -> dict[str, Outcome]:
    """What became of each."""
    rows = await pool.fetch(OUTCOMES, list(cases))
    there = {row[0] for row in await pool.fetch(THERE)}
    found = {}
    for name, state, reason, words in rows:
        async with reader.get(mxc(name)) as answer:
            body = await answer.read()
            assert (answer.status, body) == (200, body_of(name)) or answer.status == 404
            shown = answer.status == 200
        kept = digest_of(name) in there
        found[name] = Outcome(state, reason if state == "deleted" else None, kept, words, shown)
    return found


@pytest.mark.parametrize(
    ("redaction_first", "cases"), [(True, ALL), (False, FEW_HOLDS)], ids=["redaction", "rules"]
)
async def test_what_goes_and_what_stays(
    pool: Pool,
    archive: Archive,
    database_url: str,
    http: aiohttp.ClientSession,
    redaction_first: bool,
    cases: Cases,
) -> None:
    """Whether redactions are looked at first, or the rules of retention."""
    await archive_all(pool, cases)
    await set_aside(pool, cases)
    await hold(pool, cases)
    await take_back(pool, cases)
    await let_go(pool, archive, redaction_first=redaction_first)
    async with serving(archive, database_url, hides_redacted=True) as server:
        found = await outcomes(pool, cases, Reader(http, server, await archive.token()))
    wrong = [
        f"{case}\n    became {found.get(name)}\n  expected {wanted}"
        for name, case in cases.items()
        if found.get(name) != (wanted := expected(case, redaction_first=redaction_first))
    ]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(cases)} cases:", *wrong[:20]])
