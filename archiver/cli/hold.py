"""`archiver hold`, `unhold`, `holds`: what must stay, whatever rule says that it goes."""

from __future__ import annotations

import getpass
import os

import click
import orjson
from rich.console import Console
from rich.table import Table

from archiver.app import open_base
from archiver.catalogue import holds as catalogue
from archiver.cli.common import with_config
from archiver.config import Config


@click.command()
@click.argument("target")
@click.option("--reason", required=True, help="Why it must stay; shown in lists.")
@with_config
async def hold(config: Config, target: str, reason: str) -> None:
    """Keep TARGET from being deleted: mxc://..., an event $..., a user @... or a room !..."""
    catalogue.kind_of(target)
    async with open_base(config) as base, base.pool.acquire() as conn:
        await catalogue.place(conn, target, reason, f"shell:{_login_name()}")
    click.echo(f"Held {target}.")


@click.command()
@click.argument("target")
@with_config
async def unhold(config: Config, target: str) -> None:
    """End the hold on TARGET: the rules apply to it again."""
    catalogue.kind_of(target)
    async with open_base(config) as base, base.pool.acquire() as conn:
        await catalogue.release(conn, target)
    click.echo(f"Released {target}.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@with_config
async def holds(config: Config, as_json: bool) -> None:
    """List what is held, by whom and why."""
    async with open_base(config) as base, base.pool.acquire() as conn:
        rows = [dict(row) for row in await catalogue.live(conn)]
    if as_json:
        click.echo(orjson.dumps(rows))
        return
    table = Table("target", "reason", "by", "since", box=None)
    for row in rows:
        since = row["created_at"].strftime("%Y-%m-%d %H:%M")
        table.add_row(row["target"], row["reason"], row["holder"], since)
    Console().print(table)


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
