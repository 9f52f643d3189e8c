"""Whether what is archived is infected, as far as a scanner can tell."""

from __future__ import annotations

import click

from archiver.catalogue import custody, infections, scans
from archiver.catalogue.infections import Standing
from archiver.catalogue.targets import Target as Of
from archiver.catalogue.targets import media_of
from archiver.control.arguments import HIDEABLE, Target, settled
from archiver.control.asked import Asked
from archiver.control.commands.verifying import Notice
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import plural
from archiver.errors import ConfigError, OperationError
from archiver.scan.base import ScannerAway
from archiver.scan.opening import scanner

SHOWN = 20  # reasons in a reply
_OFF = "Nothing is scanned: `scan.with` in the configuration names no scanner."


@command("scan", changes=True, long=True)
@click.argument("target", type=HIDEABLE, required=False)
@click.option("--all", "everything", is_flag=True, help="Everything, the newest first.")
async def scan(asked: Asked, target: Target | None, everything: bool) -> Reply:
    """Tell what the scanner found, or have it look again.

    Without a target, how much is clean, infected and not scanned, and why. With TARGET, its media
    are looked at again: a media (mxc://...), an event ($...), a user (@...), a room (!..., or its
    alias), or bytes (sha256:...). With --all everything is, as after new signatures.
    """
    if target is not None and everything:
        raise ConfigError("give a target, or --all, but not both")
    if target is None and not everything:
        return await _standing(asked)
    if asked.means.config.scan.with_ is None:
        raise OperationError(_OFF)
    return await (_all_again(asked) if target is None else _again(asked, target))


async def _all_again(asked: Asked) -> Reply:
    async with asked.means.pool.acquire() as conn, conn.transaction():
        if not await scans.all_again(conn):
            raise OperationError("no scanner is at work: start `archiver run`, and try again")
        await custody.note(conn, asked.actor, asked.place, "scan again", "all")
    return said("Everything is scanned again, beside what is new.", data={"all": True})


async def _again(asked: Asked, target: Target) -> Reply:
    of, notice, files = Of(*await settled(target, asked.means.history)), Notice(asked), 0
    async for media in media_of(asked.means.pool, of):
        async with asked.means.pool.acquire() as conn, conn.transaction():
            due = await scans.again(conn, media)
            if due:
                where = asked.actor, asked.place
                await custody.note(conn, *where, "scan again", of.value, files=due)
        files += due
        await notice.show(f"To be scanned again so far: {plural(files, 'file')}.")
    if not files:
        raise OperationError(f"the archive has no bytes of {of.value}")
    told = f"{plural(files, 'file')} of {of.value} {'is' if files == 1 else 'are'} scanned again."
    return said(told, data={"files": files})


async def _standing(asked: Asked) -> Reply:
    async with asked.means.pool.acquire() as conn:
        now = await infections.standing(conn)
        reasons = await infections.reasons(conn, SHOWN)
    parts: list[str | Table] = [await _scanner(asked), _figures(now)]
    rows = tuple((one.reason, one.scan, f"{one.blobs:,}") for one in reasons)
    if rows:
        parts.append(Table(("reason", "", "files"), rows))
    data = now._asdict() | {"reasons": [one._asdict() for one in reasons]}
    return said(*parts, data=data)


async def _scanner(asked: Asked) -> str:
    looks = scanner(asked.means.config.scan)
    if looks is None:
        return _OFF
    try:
        return f"The scanner answers: {await looks.version()}."
    except ScannerAway as error:
        return f"The scanner is away, and nothing is called infected for that: {error}."


def _figures(now: Standing) -> str:
    told = f"{plural(now.clean, 'file')} clean, {now.infected:,} infected"
    told += f", {now.unscanned:,} not scanned, {now.never:,} never looked at."
    if now.waiting:
        told += f" {now.waiting:,} of them wait for their turn."
    if now.infected:
        told += " What is infected is in quarantine; `release sha256:...` shows it all the same."
    return told


COMMANDS = (scan,)
