"""`archiver database`: all that PostgreSQL holds, as one file for the backup, and back."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from archiver.base import open_database
from archiver.catalogue import custody
from archiver.cli.common import with_config
from archiver.cli.shell import login_name
from archiver.config import Config
from archiver.control.asked import SHELL
from archiver.db import dump as dumps
from archiver.db.migrate import pending
from archiver.db.pool import open_pool
from archiver.errors import ConfigError
from archiver.log import set_up_logging
from archiver.units import format_size

FILE = click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
STANDARD = Path("-")


@click.group()
def database() -> None:
    """Dump the database to a file for the backup, and restore it from there."""


@database.command()
@FILE
@with_config
async def dump(config: Config, file: Path) -> None:
    """Write the database to FILE while the archive runs; - is standard output.

    FILE has its name once it is whole and on the disk, and replaces an older one only then. It
    holds every word and token hash of the archive: treat it as a secret. Objects are not in it.
    """
    set_up_logging(config.log.format, "warning")
    if file == STANDARD and sys.stdout.isatty():
        raise ConfigError("a dump is nothing to read: name a file, or send it through a pipe")
    async with open_database(config) as dsn:
        await _note(dsn, "database dump", file)
        await dumps.dump(dsn, None if file == STANDARD else file)
    if file != STANDARD:
        click.echo(f"Wrote {file}, {format_size(file.stat().st_size)}.")


@database.command()
@FILE
@with_config
async def restore(config: Config, file: Path) -> None:
    """Bring the dump FILE into the configured database, which must be empty; - is standard input.

    All of it is there in the end, or nothing.
    """
    set_up_logging(config.log.format, "warning")
    async with open_database(config) as dsn:
        await dumps.restore(dsn, None if file == STANDARD else file)
        await _note(dsn, "database restore", file)
    click.echo("Restored the database.")


async def _note(dsn: str, action: str, file: Path) -> None:
    """Where the schema is not this program's, as before an upgrade, nobody can say it."""
    async with open_pool(dsn, 1) as pool, pool.acquire() as conn:
        if not await pending(conn):
            await custody.note(conn, f"shell:{login_name()}", SHELL, action, file=str(file))
