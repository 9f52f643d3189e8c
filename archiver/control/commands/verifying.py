"""Whether everything is still what it was."""

from __future__ import annotations

import time

import click

from archiver.catalogue import custody, verification
from archiver.catalogue.present import MOST
from archiver.control.arguments import MXC, Target, mxc_of
from archiver.control.asked import Asked
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import moment, plural, span
from archiver.errors import Cancelled, ConfigError, OperationError, StoreUnavailable
from archiver.keep.quarantine import Who
from archiver.keep.verify import Checked, Finding, Verdict, Verifier
from archiver.model import Mxc
from archiver.units import format_size

QUIET_SECONDS = 2.0  # what is over sooner shows no progress
SHOWN = 20  # damaged files in a reply

_SAID = {
    Verdict.DIFFERENT: "different bytes",
    Verdict.MISSING: "missing",
    Verdict.UNREADABLE: "cannot be read",
}


@command("verify", changes=True, long=True)
@click.argument("mxc", type=MXC, required=False)
@click.option("--all", "everything", is_flag=True, help="Everything, the longest ago first.")
async def verify(asked: Asked, mxc: Target | None, everything: bool) -> Reply:
    """Hash archived bytes anew, and tell which are not what they were.

    Of one media, or of everything with --all: first what never was verified, then what was longest
    ago. Without either, tells when everything was verified last, and what is damaged.
    """
    if mxc is not None and everything:
        raise ConfigError("give a media, or --all, but not both")
    if mxc is None and not everything:
        return await _standing(asked)
    verifier = Verifier(asked.means.pool, asked.means.store, Who(asked.actor, asked.place))
    return await (_verify_one(asked, verifier, mxc) if mxc else _verify_all(asked, verifier))


async def _verify_one(asked: Asked, verifier: Verifier, mxc: Target) -> Reply:
    async with asked.means.pool.acquire() as conn:
        state, blob = await verification.blob_of(conn, mxc_of(mxc))
    if state is None:
        raise OperationError(f"{mxc} is not in the archive")
    if blob is None:
        raise OperationError(f"{mxc} has no bytes to verify: it is {state}")
    tally = _Tally(asked)
    try:
        tally.add(await verifier.check([blob]))
    except StoreUnavailable as error:
        raise OperationError(f"{mxc} could not be read: {error}") from error
    await tally.note(mxc.value)
    if tally.bad:
        return tally.reply(f"{mxc} is damaged.")
    return tally.reply(f"{mxc} is what it was: {format_size(blob.size)}, {blob.sha256.hex()}.")


async def _verify_all(asked: Asked, verifier: Verifier) -> Reply:
    tally, notice = _Tally(asked), Notice(asked)
    blobs, size = await verification.total(asked.means.pool)
    of_all = f" of {plural(blobs, 'file')}, {format_size(size)}"
    try:
        async for checked in verifier.everything():
            tally.add(checked)
            await notice.show(f"Verified {tally}{of_all}.")
    except Cancelled as error:
        raise Cancelled(f"Cancelled after {tally}{of_all}. {tally.damage}") from error
    except StoreUnavailable as error:
        raise OperationError(f"stopped after {tally}{of_all}: {error}") from error
    finally:
        await tally.note(None)
    return tally.reply(f"Verified {tally}. {tally.damage}")


async def _standing(asked: Asked) -> Reply:
    async with asked.means.pool.acquire() as conn:
        now = await verification.standing(conn)
        damaged = await verification.known_damaged(conn, SHOWN) if now.damaged else []
        media = [await verification.sharers(conn, one.sha256) for one in damaged]
    told = f"{plural(now.blobs, 'file')}: {now.never:,} never verified"
    told += f", all others since {moment(now.oldest)}" if now.oldest else ""
    told += f", counted {span(now.seconds_old)} ago." if now.seconds_old else "."
    if now.last_repair:
        told += f" {now.repaired:,} were damaged and repaired, the last {moment(now.last_repair)}."
    if not damaged:
        return said(told, "Nothing is damaged.", data=now._asdict())
    rows = tuple(
        (one.sha256.hex(), _names(names), one.reason or "not tried yet")
        for one, names in zip(damaged, media, strict=True)
    )
    least = "At least " if now.damaged == MOST else ""
    told += f" {least}{_damaged(now.damaged)}; what somebody still has is fetched again by itself:"
    return said(told, Table(("sha256", "media", "repair"), rows), data=now._asdict())


class Notice:
    """Tells how far something is, and lets who asked cancel it. Quiet about what is soon over."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._next = time.monotonic() + QUIET_SECONDS

    async def show(self, told: str) -> None:
        """Shows it, if it is time. Raises Cancelled."""
        await self._asked.pause(0)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + QUIET_SECONDS
            await self._asked.progress(said(told))


class _Tally:
    """What verifying came to so far; of what is damaged, as many as a reply can show."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._began = time.monotonic()
        self._blobs = self._size = self._mended = self.bad = 0
        self._findings: list[Finding] = []

    def __str__(self) -> str:
        rate = self._size / max(time.monotonic() - self._began, 0.001)
        size = format_size(self._size)
        return f"{plural(self._blobs, 'file')}, {size} ({format_size(rate)}/s)"

    @property
    def damage(self) -> str:
        """How many are not what they were."""
        mended = (
            f" {self._mended:,} that had been damaged are right again." if self._mended else ""
        )
        bad = _damaged(self.bad) if self.bad else "Nothing is damaged"
        return f"{bad}.{mended}"

    def add(self, checked: Checked) -> None:
        """Counts what was checked."""
        self._blobs += checked.blobs
        self._size += checked.size
        self._mended += checked.mended
        self.bad += len(checked.findings)
        self._findings += checked.findings[: SHOWN - len(self._findings)]

    async def note(self, target: str | None) -> None:
        """Writes for custody how much was verified."""
        told = {"files": self._blobs, "bytes": self._size, "damaged": self.bad}
        actor, place = self._asked.actor, self._asked.place
        async with self._asked.means.pool.acquire() as conn:
            await custody.note(conn, actor, place, "verify", target, found=told)

    def reply(self, told: str) -> Reply:
        """The sentence, and what is damaged below it."""
        rows = tuple(
            (found.sha256.hex(), _SAID[found.verdict], _names(found.media))
            for found in self._findings
        )
        parts: list[str | Table] = [told]
        if rows:
            parts.append(Table(("sha256", "found", "media"), rows))
        if self.bad > len(rows):
            parts.append(f"And {self.bad - len(rows):,} more.")
        data = {
            "files": self._blobs,
            "bytes": self._size,
            "damaged": self.bad,
            "findings": [
                {
                    "sha256": row[0],
                    "found": str(found.verdict),
                    "media": list(map(str, found.media)),
                }
                for row, found in zip(rows, self._findings, strict=True)
            ],
        }
        return Reply(tuple(parts), data, failed=bool(self.bad))


def _damaged(count: int) -> str:
    return f"{count:,} {'is' if count == 1 else 'are'} damaged"


def _names(media: list[Mxc]) -> str:
    return ", ".join(map(str, media)) or "no media"
