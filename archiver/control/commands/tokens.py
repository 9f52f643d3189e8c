"""Who may read the archive with a token of its own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import click

from archiver.catalogue import custody
from archiver.catalogue import tokens as catalogue
from archiver.control.asked import Asked
from archiver.control.dates import DURATION
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import moment
from archiver.db.pool import Row
from archiver.errors import OperationError
from archiver.model import Scope

TELL_SECONDS = 60.0


@command("token create", changes=True)
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice([str(scope) for scope in Scope]),
    required=True,
    help="What its holder may do.",
)
@click.option("--expires", type=DURATION, help="A span of time, like 30d; never by default.")
async def create(asked: Asked, name: str, scope: str, expires: timedelta | None) -> Reply:
    """Make a token called NAME and tell its secret to you alone: it is shown this once."""
    until = _end_of(expires) if expires else None
    made = f"the token {name} (scope {scope}{f', until {moment(until)} UTC' if until else ''})"
    async with asked.means.pool.acquire() as conn, conn.transaction():
        secret = await catalogue.create(conn, name, Scope(scope), until)
        await custody.note(
            conn, asked.actor, asked.place, "token create", name,
            scope=scope, expires_at=until.isoformat() if until else None,
        )  # fmt: skip
        intro = () if asked.on_shell else (f"This is {made}. It is shown this once:",)
        await _tell(asked, said(*intro, secret, data={"name": name, "token": secret}))
    if asked.on_shell:
        return Reply((), data={"name": name})
    return said(f"Made {made}. I told you its secret alone, in a room for the two of us.")


@command("token list")
async def list_(asked: Asked) -> Reply:
    """List the tokens, without their secrets."""
    async with asked.means.pool.acquire() as conn:
        rows = await catalogue.list_tokens(conn)
    data = [dict(row) for row in rows]
    if not rows:
        return said("There is no token.", data=data)
    table = Table(("name", "scope", "created", "last used", "valid"), tuple(map(_row, rows)))
    return said(table, data=data)


@command("token revoke", changes=True)
@click.argument("name")
async def revoke(asked: Asked, name: str) -> Reply:
    """Revoke the token called NAME: it stops to work at once."""
    async with asked.means.pool.acquire() as conn, conn.transaction():
        if not await catalogue.revoke(conn, name):
            raise OperationError(f"there is no live token called {name}: see `token list`")
        await custody.note(conn, asked.actor, asked.place, "token revoke", name)
    return said(f"Revoked {name}.")


async def _tell(asked: Asked, secret: Reply) -> None:
    """Before the commit: a token whose secret reaches nobody is not made. No transaction waits
    for long, though."""
    try:
        async with asyncio.timeout(TELL_SECONDS):
            await asked.tell_alone(secret)
    except TimeoutError:
        raise OperationError(
            "the homeserver did not take the message with the secret, so no token is made: "
            "try again later"
        ) from None


def _end_of(span: timedelta) -> datetime:
    try:
        return datetime.now(UTC) + span
    except OverflowError:
        raise OperationError(
            "--expires is too far away: leave it out for a token for ever"
        ) from None


def _row(row: Row) -> tuple[str, ...]:
    created, used = moment(row["created_at"]), moment(row["last_used_at"])
    return row["name"], row["scope"], created, used, _validity(row)


def _validity(row: Row) -> str:
    if row["revoked_at"]:
        return f"revoked {moment(row['revoked_at'])}"
    return f"until {moment(row['expires_at'])}" if row["expires_at"] else "for ever"


COMMANDS = (create, list_, revoke)
