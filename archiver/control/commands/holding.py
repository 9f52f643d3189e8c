"""What must stay, whatever rule says that it goes."""

from __future__ import annotations

import click

from archiver.catalogue import custody
from archiver.catalogue import holds as catalogue
from archiver.control.arguments import HOLDABLE, Target, settled
from archiver.control.asked import Asked
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import moment


@command("hold", changes=True)
@click.argument("target", type=HOLDABLE)
@click.argument("reason", nargs=-1, required=True)
async def hold(asked: Asked, target: Target, reason: tuple[str, ...]) -> Reply:
    """Keep TARGET from being deleted, whatever rule says that it goes.

    TARGET is a media (mxc://...), an event ($...), a user (@...) or a room (!..., or its alias),
    or a link to one; bytes (sha256:...), whoever posts them; or a span of time, like
    2024-01-01..2024-01-31: all that is posted in it. REASON is shown in lists.
    """
    target, why = await settled(target, asked.means.history), " ".join(reason)
    async with asked.means.pool.acquire() as conn, conn.transaction():
        await catalogue.place(conn, target.value, why, asked.actor)
        await custody.note(conn, asked.actor, asked.place, "hold", target.value, reason=why)
    return said(f"Held {target}.")


@command("unhold", changes=True)
@click.argument("target", type=HOLDABLE)
async def unhold(asked: Asked, target: Target) -> Reply:
    """End the hold on TARGET: the rules apply to it again."""
    target = await settled(target, asked.means.history)
    async with asked.means.pool.acquire() as conn, conn.transaction():
        await catalogue.release(conn, target.value)
        await custody.note(conn, asked.actor, asked.place, "unhold", target.value)
    return said(f"Released {target}.")


@command("holds")
async def holds(asked: Asked) -> Reply:
    """List what is held, by whom and why."""
    async with asked.means.pool.acquire() as conn:
        rows = [dict(row) for row in await catalogue.live(conn)]
    if not rows:
        return said("Nothing is held.", data=rows)
    table = Table(
        ("target", "reason", "by", "since"),
        tuple(
            (row["target"], row["reason"], row["holder"], moment(row["created_at"]))
            for row in rows
        ),
    )
    return said(table, data=rows)


COMMANDS = (hold, unhold, holds)
