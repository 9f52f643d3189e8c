"""Media that failed, or waits, is tried now."""

from __future__ import annotations

import click

from archiver.catalogue import custody, steering
from archiver.catalogue.media import look
from archiver.control.arguments import MXC, Target, mxc_of
from archiver.control.asked import Asked
from archiver.control.definition import command
from archiver.control.reply import Reply, said
from archiver.control.words import plural
from archiver.errors import OperationError
from archiver.model import State

FAILED = "failed"
_NO_USE = {
    State.READY: "is archived already",
    State.PENDING: "is being fetched right now",
    State.EXCLUDED: "is left out by the configuration",
    State.QUARANTINED: "is in quarantine, and archived: `release` shows it again",
    State.DELETED: "was deleted, which nothing brings back",
    State.FAILED: "failed again just now: see `show`, and try once more",
}


class _WhatType(click.ParamType[Target | None]):
    """A media, or None for all that failed."""

    name = "media"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Target | None:
        """`failed`, or what names a media."""
        return None if value == FAILED else MXC.convert(value, param, ctx)


@command("retry", changes=True)
@click.argument("what", type=_WhatType(), metavar="[failed|MXC]", default=FAILED)
async def retry(asked: Asked, what: Target | None) -> Reply:
    """Try now to archive what failed, all of it or one media.

    Each gets one more try, and more where the reason is one that may pass. A media that still
    waits for its turn gets it now.
    """
    return await _retry_all(asked) if what is None else await _retry_one(asked, what)


async def _retry_all(asked: Asked) -> Reply:
    async with asked.means.pool.acquire() as conn, conn.transaction():
        media = await steering.retry_failed(conn)
        if media:
            await custody.note(conn, asked.actor, asked.place, "retry", FAILED, media=media)
    if not media:
        return said("Nothing has failed.", data={"media": 0})
    are = "is" if media == 1 else "are"
    return said(f"{plural(media, 'media', 'media')} {are} tried again.", data={"media": media})


async def _retry_one(asked: Asked, target: Target) -> Reply:
    mxc = mxc_of(target)
    async with asked.means.pool.acquire() as conn, conn.transaction():
        if not await steering.retry_this(conn, mxc):
            found = await look(conn, mxc, with_name=False, with_data=False)
            if found is None:
                raise OperationError(f"{mxc} is not in the archive: no event that it saw names it")
            reason = f" ({found.reason})" if found.reason else ""
            raise OperationError(f"{mxc} {_NO_USE[found.state]}{reason}")
        await custody.note(conn, asked.actor, asked.place, "retry", str(mxc), media=1)
    return said(f"{mxc} is tried now.", data={"media": 1})


COMMANDS = (retry,)
