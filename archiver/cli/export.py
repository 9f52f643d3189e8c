"""`archiver export` and `archiver import`: the archive, or a part of it, as a BagIt bag."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click
import uvloop

from archiver.app import capture_policy, means
from archiver.base import Base, open_base
from archiver.catalogue.export import Selection
from archiver.cli.common import DEFAULT_CONFIG, sentences, with_config
from archiver.cli.shell import login_name
from archiver.cli.showing import Terminal
from archiver.config import Config, load_config
from archiver.control.arguments import ROOM, USER, Target, settled
from archiver.control.asked import SHELL
from archiver.control.dates import DATE
from archiver.control.reply import said
from archiver.control.words import plural
from archiver.errors import ConfigError, OperationError
from archiver.export import check
from archiver.export.exporter import Exported, Exporter
from archiver.export.importer import Imported, Importer
from archiver.export.zipping import zip_bag
from archiver.fetch.inspect import inspect
from archiver.log import set_up_logging
from archiver.matrix.registration import load_registration
from archiver.serve.polls import polled
from archiver.store.opening import open_store
from archiver.store.spool import Spool
from archiver.units import format_size

OUT = click.argument("out", type=click.Path(path_type=Path))


@click.command()
@OUT
@click.option("--room", type=ROOM, help="What was posted in this room alone.")
@click.option("--user", type=USER, help="What this user posted alone.")
@click.option("--since", type=DATE, help="From this day or time on, or 30d for how long ago.")
@click.option("--until", type=DATE, help="Before this day or time.")
@click.option("--zip", "as_zip", is_flag=True, help="One file. Takes the space twice meanwhile.")
@click.option("--check", "checks", is_flag=True, help="Verify the bag OUT, and write nothing.")
@click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_CONFIG,
    show_default=True,
    help="The configuration file.",
)
def export(
    out: Path,
    room: Target | None,
    user: Target | None,
    since: datetime | None,
    until: datetime | None,
    as_zip: bool,
    checks: bool,
    config_path: Path,
) -> None:
    """Write media, events and polls to the folder OUT as a BagIt bag, with pages to look at.

    The same once more goes on where it ended, and takes what was deleted since out of the bag.
    --check needs neither configuration nor database; nor does `python3 check.py` in the bag.
    """
    with sentences():
        if checks:
            _check(out)
            return
        config = load_config(config_path)
        set_up_logging(config.log.format, "warning")
        told = Selection(None, user and user.value, since, until)
        uvloop.run(_export(config, out, room, told, as_zip=as_zip))


@click.command("import")
@OUT
@click.option("--all-rooms", is_flag=True, help="Also of rooms that capture.rooms leaves out.")
@click.option("--deleted-too", is_flag=True, help="Also what was deleted in this archive.")
@with_config
async def import_(config: Config, out: Path, all_rooms: bool, deleted_too: bool) -> None:
    """Bring the bag OUT, a folder or a ZIP, into this archive. What is known stays as it is.

    The same once more goes on where it ended. Whoever made the bag says who posted what: import
    none that you do not trust.
    """
    set_up_logging(config.log.format, "warning")
    registration = load_registration(config.appservice.registration, config.homeserver.server_name)
    policy, who = capture_policy(config, registration), (f"shell:{login_name()}", SHELL)
    if all_rooms:
        policy = replace(policy, only=(), excluded=())
    with Terminal() as terminal:
        async with open_base(config) as base:
            await open_store(base.store)
            spool = Spool(config.storage.spool, config.storage.inline_limit)
            importer = Importer(
                base.pool, base.store, spool, policy, inspect, who,
                lambda words: terminal.tell(said(words)),
                lambda done: terminal.progress(said(_imported(done))),
                deleted_too=deleted_too,
            )  # fmt: skip
            done = await importer.import_(out)
        terminal.tell(said(f"Imported {_imported(done)}"))


def _imported(done: Imported) -> str:
    new = f"{plural(done.events, 'event')} and {plural(done.media, 'media', 'media')}"
    told = f"{new}; {done.known:,} media were known or have no bytes in the bag"
    if done.left_out:
        told += f"; {done.left_out:,} are left out, for capture.rooms leaves out their rooms"
    return f"{told}."


async def _export(
    config: Config, out: Path, room: Target | None, wanted: Selection, *, as_zip: bool
) -> None:
    folder = out.with_name(f"{out.name}.bag") if as_zip else out
    if as_zip and out.exists():
        left = f"; {folder} is left over from it, and may go" if folder.exists() else ""
        raise ConfigError(f"{out} is there already: with --zip name a file that is new{left}")
    with Terminal() as terminal:
        async with open_base(config) as base:
            if room is not None:
                wanted = wanted._replace(room_id=await _room_id(base, room))
            who = (f"shell:{login_name()}", SHELL)
            exporter = Exporter(base.pool, base.store, config.homeserver.server_name, polled, who)
            done = await exporter.export(
                wanted, folder, lambda *so_far: terminal.progress(said(_so_far(*so_far)))
            )
    if as_zip:
        try:
            await asyncio.to_thread(zip_bag, folder, out)
        except OSError as error:
            raise OperationError(
                f"cannot write {out}: {error.strerror}; {folder} stays"
            ) from error
    click.echo(_told(out, done))


async def _room_id(base: Base, room: Target) -> str:
    if room.kind == "room":
        return room.value
    config = base.config
    registration = load_registration(config.appservice.registration, config.homeserver.server_name)
    return (await settled(room, means(base, registration).history)).value


def _so_far(events: int, media: int, missing: int) -> str:
    told = f"{plural(media, 'media', 'media')} of {plural(events, 'event')}"
    return f"Exported {told}; {missing:,} are not in it."


def _told(out: Path, done: Exported) -> str:
    media = plural(done.media, "media", "media")
    lines = [
        f"{out} holds {media} of {plural(done.events, 'event')}: {format_size(done.size)} in"
        f" {plural(done.files, 'file')}."
    ]
    if done.missing:
        lines.append(f"{done.missing:,} media are not in it: data/missing.jsonl tells why.")
    return "\n".join(lines)


def _check(out: Path) -> None:
    try:
        count, faults = check.report(out)
    except OSError as error:
        raise OperationError(f"{out} cannot be read: {error.strerror}") from error
    if faults:
        raise OperationError("\n".join(faults))
    click.echo(f"The bag is whole: {plural(count, 'file')} are what its manifest says.")
