"""What the bot says by itself: what happened, and what to do about it."""

from __future__ import annotations

from datetime import UTC, timedelta

from archiver.catalogue.infections import Infected
from archiver.catalogue.notices import Damaged, Failed, Head, Spell
from archiver.control.reply import Reply, Table, said
from archiver.control.watching.disks import Space
from archiver.control.words import moment, plural
from archiver.units import format_size


def homeserver_back(spell: Spell) -> Reply:
    """It did not answer, and could not be told so meanwhile."""
    return said(
        f"✅ The homeserver answers again. It did not {_while(spell)}.",
        "What was posted meanwhile is pushed now, or found by comparing: nothing is to be done.",
    )


def store_away(spell: Spell, reason: str) -> Reply:
    """The object store does not answer; `reason` says what to do."""
    return said(
        f"⚠️ The object store has not answered since {moment(spell.begun_at)} (UTC): {reason}.",
        "Large media wait, and nothing is lost.",
    )


def store_back(spell: Spell) -> Reply:
    """It answers again."""
    return said(
        f"✅ The object store answers again. It did not {_while(spell)}.",
        "What waited is archived now: nothing is to be done.",
    )


def database_back(spell: Spell) -> Reply:
    """It was away, and with it what is to be told."""
    return said(
        f"✅ The database answers again. It did not {_while(spell)}.",
        "The homeserver pushes now what it held back. If nobody stopped PostgreSQL, its log"
        " tells why.",
    )


def disk_low(space: Space) -> Reply:
    """A disk is nearly full."""
    return said(
        f"⚠️ The disk of {_paths(space)} is nearly full: {format_size(space.free)} of"
        f" {format_size(space.size)} are free.",
        "Make room, or give it a larger one: when it is full, nothing new can be archived.",
    )


def disk_roomy(space: Space) -> Reply:
    """There is room again."""
    return said(
        f"✅ The disk of {_paths(space)} has room again: {format_size(space.free)} of"
        f" {format_size(space.size)} are free."
    )


def failures(spell: Spell, failed: Failed, prefix: str) -> Reply:
    """The day's digest of what failed for good."""
    # The first digest counts from the beginning of time.
    since = f"since {moment(spell.begun_at)} (UTC)" if spell.begun_at.year > 1970 else "so far"
    rows = [(reason, f"{number:,}") for reason, number in failed.reasons]
    rest = failed.total - sum(number for _, number in failed.reasons)
    if rest:
        rows.append(("other reasons", f"{rest:,}"))
    return said(
        f"⚠️ {plural(failed.total, 'media', 'media')} failed for good {since}:",
        Table(("reason", ""), tuple(rows)),
        f"`{prefix} retry failed` tries all of them once more.",
    )


def gaps(events: int, rooms: int) -> Reply:
    """Events were found in history that nobody had pushed."""
    return said(
        f"⚠️ {plural(events, 'event')} in {plural(rooms, 'room')} had never been pushed. Comparing"
        " with the homeserver found them, and they are archived now.",
        "If it goes on, see that the homeserver reaches the archive: `archiver doctor` tells.",
    )


def damage(damaged: Damaged, prefix: str) -> Reply:
    """Blobs are not what they were any more."""
    return said(
        f"⚠️ {plural(damaged.grown, 'file')} in the archive turned out to be damaged or gone;"
        f" {damaged.every:,} in all.",
        *([Table(("media",), tuple((str(mxc),) for mxc in damaged.first))] * bool(damaged.first)),
        f"See that the disk is well, bring the files back from a backup, and `{prefix} verify`"
        " looks at them again.",
    )


def custody(spell: Spell, head: Head, prefix: str) -> Reply:
    """The day's head of the chain of custody, to be compared with whenever somebody doubts it."""
    day = (spell.last_at - timedelta(days=1)).astimezone(UTC)
    return said(
        f"🔏 Custody up to {day:%Y-%m-%d} (UTC): {plural(head.lines, 'line')} in"
        f" {plural(head.seal, 'seal')}, whose head is {head.hash.hex()}",
        f"`{prefix} custody verify --head {head.hash.hex()}` tells whether it still stands.",
    )


def infected(found: Infected, prefix: str) -> Reply:
    """The scanner found something, and it is hidden."""
    rows = tuple((str(mxc), signature) for signature, mxc in found.first)
    are = "is" if found.total == 1 else "are"
    return said(
        f"☣️ The scanner found {plural(found.total, 'infected file')} in the archive, which {are}"
        " in quarantine now, from whomever it comes again.",
        *([Table(("media", "has"), rows)] * bool(rows)),
        f"`{prefix} show` tells who posted it, `{prefix} scan` all that was found.",
    )


def scanner_away(spell: Spell, reason: str) -> Reply:
    """Nothing is scanned; `reason` says what to do."""
    return said(
        f"⚠️ Nothing has been scanned since {moment(spell.begun_at)} (UTC): {reason}.",
        "Media is archived and served as ever, and scanned once the scanner is back.",
    )


def scanner_back(spell: Spell) -> Reply:
    """It answers again."""
    return said(
        f"✅ The scanner answers again. It did not {_while(spell)}.",
        "What waited is scanned now: nothing is to be done.",
    )


def _while(spell: Spell) -> str:
    return f"from {moment(spell.begun_at)} to {moment(spell.last_at)} (UTC)"


def _paths(space: Space) -> str:
    return " and ".join(map(str, space.paths))
