"""The commands, by name."""

from __future__ import annotations

from contextlib import nullcontext

import click

from archiver import __version__
from archiver.app import Part, run
from archiver.base import open_database
from archiver.cli.backfill import backfill
from archiver.cli.common import sentences, with_config
from archiver.cli.database import database
from archiver.cli.doctor import doctor
from archiver.cli.export import export, import_
from archiver.cli.init import init
from archiver.cli.key import key
from archiver.cli.reconcile import reconcile
from archiver.cli.shell import JSON, install, shell
from archiver.cli.showing import show
from archiver.config import Config
from archiver.control.commands.helping import describe
from archiver.control.registry import COMMANDS
from archiver.db.migrate import migrate
from archiver.db.pool import open_pool
from archiver.processes import counting_together


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="archiver")
def main() -> None:
    """Archives the media of Matrix rooms as events arrive, and serves it ever after."""


class _Parts(click.ParamType[tuple[Part, ...]]):
    """A list of parts with commas, as `--only intake,worker`."""

    name = "parts"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Part, ...]:
        """Refuses what is no part, and says which there are."""
        try:
            return tuple(Part(name.strip()) for name in str(value).split(","))
        except ValueError as error:
            self.fail(f"{error}; choose from {', '.join(Part)}", param, ctx)


@main.command("run")
@click.option("--only", type=_Parts(), help="Run some parts alone: intake,worker,serve,bot.")
@with_config
async def run_command(config: Config, only: tuple[Part, ...] | None) -> None:
    """Run the archive until Ctrl-C or SIGTERM."""
    parts = only or tuple(Part)
    several = Part.SERVE in parts and config.serve.processes > 1
    with counting_together(config) if several else nullcontext():
        await run(config, parts)


@main.command("migrate")
@with_config
async def migrate_command(config: Config) -> None:
    """Bring the database to this program's schema."""
    async with open_database(config) as dsn, open_pool(dsn, 1) as pool, pool.acquire() as conn:
        applied = await migrate(conn)
    for name in applied:
        click.echo(f"applied {name}")
    click.echo("The database is up to date.")


@click.command("help", params=[*COMMANDS[0].params, JSON], help=COMMANDS[0].help)
def help_command(words: tuple[str, ...], as_json: bool) -> None:
    """It needs neither configuration nor database."""
    with sentences():
        show(describe(COMMANDS, words), as_json=as_json)


@main.group("token")
def token_group() -> None:
    """Make, list and revoke the tokens that readers use."""


# What a terminal does in its own way comes last, and wins.
given = {command.name: shell(command) for command in COMMANDS}
install(main, {**given, "help": help_command, "backfill": backfill, "reconcile": reconcile})
for command in (init, doctor, key, export, import_, database):
    main.add_command(command)
