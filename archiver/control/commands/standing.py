"""`status`: is everything well, and if not, what to do about it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from archiver.catalogue import health, moments, present
from archiver.catalogue.counting import at_hand
from archiver.catalogue.moments import Moment
from archiver.catalogue.stats import FIGURES
from archiver.control.asked import Asked, Means
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import ago, plural, span
from archiver.db.pool import DATABASE_AWAY
from archiver.errors import ArchiverError
from archiver.units import format_size

if TYPE_CHECKING:
    from archiver.config import Config
    from archiver.db.pool import Connection

ANSWER_SECONDS = 10.0
COUNT_SECONDS = 60.0
LONG_WAIT = 600.0  # seconds for which a media was due and nobody took it
SILENCE = timedelta(days=1)
LITTLE_DISK = 5 * 1024**3
NO_DISK = 1024**3


class Level(StrEnum):
    """How something stands."""

    OK = "✅"
    WARNING = "⚠️"
    BAD = "❌"


@dataclass(frozen=True)
class Finding:
    """How one thing stands; `advice` says what to do where it is not well."""

    check: str
    level: Level
    said: str
    advice: str = ""


@command("status")
async def status(asked: Asked) -> Reply:
    """Is everything well? One line for each thing, and what to do where it is not.

    Looks at the database, the queue of media, the stores, the homeserver, pushes, the comparison
    with history, backfill, the budget for old media, when files were verified, damaged files and
    disk space.
    """
    found = await examine(asked.means)
    wrong = sum(finding.level is not Level.OK for finding in found)
    summary = f"{plural(wrong, 'thing')} to look at." if wrong else "All is well."
    rows = tuple((f"{f.level} {f.check}", f.said, f.advice and f"→ {f.advice}") for f in found)
    data = [{**asdict(f), "level": f.level.name.lower()} for f in found]
    return said(summary, Table(("", "", ""), rows), data=data)


async def examine(means: Means) -> list[Finding]:
    """How everything stands. What hangs is given up on."""
    known, stores, homeserver, disks = await asyncio.gather(
        _database(means), _store(means), _homeserver(means), _disks(means.config)
    )
    return [*known, stores, homeserver, *disks]


async def _database(means: Means) -> list[Finding]:
    try:
        async with asyncio.timeout(COUNT_SECONDS), means.pool.acquire() as conn:
            return [await look(conn, means.config) for look in _LOOKS]
    except DATABASE_AWAY as error:
        reason = f"does not answer ({str(error) or type(error).__name__})"
        return [
            Finding("database", Level.BAD, reason, "check database.url and that PostgreSQL runs")
        ]


async def _size(conn: Connection, _config: Config) -> Finding:
    return Finding("database", Level.OK, f"answers, {format_size(await health.size(conn))}")


async def _queue(conn: Connection, _config: Config) -> Finding:
    queue = await health.queue(conn)
    waiting = f"{queue.due:,} due now"
    if queue.due:
        waiting += f", the oldest for {span(queue.waited)}"
    reason = f"{waiting}; {queue.later:,} later; {queue.failed:,} failed in the last day"
    if queue.due and queue.waited > LONG_WAIT:
        advice = "nobody fetches them in time: see that the worker runs, and its log"
        return Finding("queue", Level.WARNING, reason, advice)
    if queue.failed:
        advice = "`stats` tells why; `retry failed` tries again"
        return Finding("queue", Level.WARNING, reason, advice)
    return Finding("queue", Level.OK, reason)


async def _files(conn: Connection, _config: Config) -> Finding:
    counted = await at_hand(conn, FIGURES)
    if counted is None:
        return Finding("files", Level.OK, "not counted yet; `stats` tells when they are")
    figures = counted.value
    places = [
        f"{row['blobs']:,} {place} ({format_size(row['bytes'])})"
        for place, row in figures["blobs"].items()
    ]
    if not places:
        return Finding("files", Level.OK, "none yet")
    since = ago(datetime.fromisoformat(figures["verified"]["since"]))
    return Finding("files", Level.OK, f"{', '.join(places)}; the longest not hashed: {since}")


async def _push(conn: Connection, _config: Config) -> Finding:
    at = await moments.at(conn, Moment.PUSH)
    if at is not None and datetime.now(UTC) - at < SILENCE:
        return Finding("last push", Level.OK, ago(at))
    advice = "where people did write, run `archiver doctor`: it tells if the homeserver reaches us"
    return Finding("last push", Level.WARNING, ago(at), advice)


async def _reconcile(conn: Connection, config: Config) -> Finding:
    at, doubt = await moments.at(conn, Moment.RECONCILE), await moments.at(conn, Moment.DOUBT)
    rooms = await health.rooms(conn)
    words = [ago(at), f"{plural(rooms.open, 'room')} still to be compared"]
    if rooms.unreadable:
        words.append(f"{rooms.unreadable:,} cannot be read")
    reason = "; ".join(words)
    if config.history.reconcile_every is None:
        reason += "; switched off (history.reconcile_every)"
    elif rooms.open and doubt is not None and datetime.now(UTC) - doubt > SILENCE:
        advice = "see that the worker runs and the homeserver answers; `reconcile` does it now"
        return Finding("last reconcile", Level.WARNING, reason, advice)
    return Finding("last reconcile", Level.OK, reason)


async def _backfill(conn: Connection, _config: Config) -> Finding:
    rooms = await health.backfill(conn)
    reason = f"{plural(rooms.pending, 'room')} under way" if rooms.pending else "none under way"
    if not rooms.failed:
        return Finding("backfill", Level.OK, reason)
    advice = "`room ROOM` tells why; `backfill ROOM` tries again"
    return Finding("backfill", Level.WARNING, f"{reason}, {rooms.failed:,} failed", advice)


async def _budget(conn: Connection, config: Config) -> Finding:
    rate, paced = config.history.remote_rate, await health.paced(conn)
    reason = f"{paced.paced:,} old media of other servers wait"
    if rate is None:
        return Finding("budget", Level.OK, f"{reason}; there is no limit")
    reason += f"; they get {format_size(rate)} a second"
    ahead = (paced.spent_until - datetime.now(UTC)).total_seconds() if paced.spent_until else 0.0
    if ahead > 0:
        reason += f", which is spent for {span(ahead)} ahead"
    return Finding("budget", Level.OK, reason)


async def _damaged(conn: Connection, _config: Config) -> Finding:
    damaged = await present.damage(conn)
    if not damaged.blobs:
        return Finding("damaged files", Level.OK, "none known")
    reason = f"{_as_many(damaged.blobs)}, the first {ago(damaged.since)}"
    if damaged.unrepaired:
        reason += f"; {_as_many(damaged.unrepaired)} could not be repaired so far"
    advice = "put them back from a backup of the store, then `verify` looks again"
    return Finding("damaged files", Level.BAD, reason, advice)


def _as_many(number: int) -> str:
    return f"{number:,}" + " or more" * (number >= present.MOST)


_LOOKS: tuple[Callable[[Connection, Config], Awaitable[Finding]], ...] = (
    _size, _queue, _files, _push, _reconcile, _backfill, _budget, _damaged,
)  # fmt: skip


async def _store(means: Means) -> Finding:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await means.store.check_objects()
    except ArchiverError as error:
        return Finding("object store", Level.BAD, str(error), "large media waits until it is back")
    except TimeoutError:
        advice = "see that it runs and can be reached"
        return Finding("object store", Level.BAD, "does not answer", advice)
    return Finding("object store", Level.OK, f"{means.config.storage.objects} answers")


async def _homeserver(means: Means) -> Finding:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            version = await means.history.server_version()
            admin = await means.history.is_admin()
    except ArchiverError as error:
        return Finding("homeserver", Level.BAD, str(error), "run `archiver doctor`")
    except TimeoutError:
        return Finding("homeserver", Level.BAD, "does not answer", "see that it runs")
    known = f" ({version})" if version else ""
    who = "an administrator" if admin else "no administrator, and reads only rooms that it is in"
    return Finding("homeserver", Level.OK, f"answers{known}; the bot is {who}")


async def _disks(config: Config) -> list[Finding]:
    return await asyncio.to_thread(lambda: list(_free(config)))


def _free(config: Config) -> Iterator[Finding]:
    """Once a disk, whatever lies on it."""
    disks: dict[int, list[str]] = {}
    free: dict[int, tuple[int, int]] = {}
    for name, path in _folders(config):
        try:
            there = next(p for p in (path, *path.parents) if p.exists())
            device, usage = there.stat().st_dev, shutil.disk_usage(there)
        except OSError as error:
            reason = f"{path} cannot be looked at ({error.strerror})"
            yield Finding(f"disk of {name}", Level.BAD, reason, "see who may read this folder")
            continue
        disks.setdefault(device, []).append(name)
        free[device] = usage.free, usage.total
    for device, names in disks.items():
        yield _disk(", ".join(names), *free[device])


def _disk(names: str, free: int, total: int) -> Finding:
    check, reason = f"disk of {names}", f"{format_size(free)} of {format_size(total)} free"
    if free >= LITTLE_DISK:
        return Finding(check, Level.OK, reason)
    level = Level.BAD if free < NO_DISK else Level.WARNING
    return Finding(check, level, reason, "free disk space, or move it to a larger disk")


def _folders(config: Config) -> Iterator[tuple[str, Path]]:
    if config.database.url == "embedded":
        yield "database", config.database.data_dir
    if config.storage.objects == "filesystem":
        yield "objects", config.storage.filesystem.path
    yield "spool", config.storage.spool
