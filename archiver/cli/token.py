"""`archiver token`: who may read the archive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import orjson
from rich.console import Console
from rich.table import Table

from archiver.app import open_base
from archiver.catalogue import tokens
from archiver.cli.common import DURATION, day, with_config
from archiver.config import Config
from archiver.errors import OperationError
from archiver.model import Scope


@click.group()
def token() -> None:
    """Make, list and revoke the tokens that readers use."""


@token.command()
@click.argument("name")
@click.option("--scope", type=click.Choice([str(scope) for scope in Scope]), required=True)
@click.option("--expires", type=DURATION, help="A span of time, like 30d; never by default.")
@with_config
async def create(config: Config, name: str, scope: str, expires: timedelta | None) -> None:
    """Make a token called NAME and print it: it is shown this once."""
    expires_at = datetime.now(UTC) + expires if expires else None
    async with open_base(config) as base, base.pool.acquire() as conn:
        click.echo(await tokens.create(conn, name, Scope(scope), expires_at))


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@with_config
async def list_(config: Config, as_json: bool) -> None:
    """List the tokens, without their secrets."""
    async with open_base(config) as base, base.pool.acquire() as conn:
        rows = [dict(row) for row in await tokens.list_tokens(conn)]
    if as_json:
        click.echo(orjson.dumps(rows))
        return
    table = Table("name", "scope", "created", "expires", "last used", "revoked", box=None)
    for row in rows:
        times = (row["created_at"], row["expires_at"], row["last_used_at"], row["revoked_at"])
        table.add_row(row["name"], row["scope"], *(day(time) for time in times))
    Console().print(table)


@token.command()
@click.argument("name")
@with_config
async def revoke(config: Config, name: str) -> None:
    """Revoke the token called NAME: it stops to work at once."""
    async with open_base(config) as base, base.pool.acquire() as conn:
        if not await tokens.revoke(conn, name):
            raise OperationError(
                f"there is no live token called {name}: see `archiver token list`"
            )
    click.echo(f"Revoked {name}.")
