"""`archiver key`: who may sign URLs of archived media."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click
import orjson
from rich.console import Console
from rich.table import Table

from archiver.base import open_base
from archiver.catalogue import custody, signing_keys
from archiver.cli.common import with_config
from archiver.cli.shell import login_name
from archiver.config import Config
from archiver.control.asked import SHELL
from archiver.control.dates import DURATION
from archiver.control.words import moment
from archiver.errors import OperationError
from archiver.model import Scope

if TYPE_CHECKING:
    from archiver.db.pool import Connection


@click.group()
def key() -> None:
    """Make, list and revoke the keys with which a panel's back end signs URLs."""


@key.command()
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice([str(scope) for scope in Scope]),
    default=str(Scope.READ),
    show_default=True,
    help="The most that it may sign for.",
)
@click.option("--expires", type=DURATION, help="A span of time, like 30d; never by default.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@with_config
async def create(
    config: Config, name: str, scope: str, expires: timedelta | None, as_json: bool
) -> None:
    """Make a key called NAME and print its id and its secret: it is shown this once."""
    expires_at = datetime.now(UTC) + expires if expires else None
    async with open_base(config) as base, base.pool.acquire() as conn, conn.transaction():
        made = await signing_keys.create(conn, name, Scope(scope), expires_at)
        await _note(conn, "key create", name, scope=scope, expires=str(expires_at or "never"))
    if as_json:
        click.echo(orjson.dumps({"id": made.id, "secret": made.secret}))
        return
    click.echo(f"key    {made.id}\nsecret {made.secret}")


@key.command("list")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@with_config
async def list_(config: Config, as_json: bool) -> None:
    """List the keys, without their secrets. Those called archive are the archive's own."""
    async with open_base(config) as base, base.pool.acquire() as conn:
        rows = [dict(row) for row in await signing_keys.list_keys(conn)]
    if as_json:
        click.echo(orjson.dumps(rows))
        return
    table = Table("key", "name", "scope", "created", "expires", "revoked", box=None)
    for row in rows:
        times = (row["created_at"], row["expires_at"], row["revoked_at"])
        table.add_row(str(row["id"]), row["name"], row["scope"], *(moment(time) for time in times))
    Console().print(table)


@key.command()
@click.argument("name")
@with_config
async def revoke(config: Config, name: str) -> None:
    """Revoke the key called NAME: every URL that it signed stops to work at once.

    `archive` revokes the archive's own; it makes a new one when it signs next.
    """
    async with open_base(config) as base, base.pool.acquire() as conn, conn.transaction():
        if not await signing_keys.revoke(conn, name):
            raise OperationError(f"there is no live key called {name}: see `archiver key list`")
        await _note(conn, "key revoke", name)
    click.echo(f"Revoked {name}.")


async def _note(conn: Connection, action: str, name: str, **detail: str) -> None:
    await custody.note(conn, f"shell:{login_name()}", SHELL, action, name, **detail)
