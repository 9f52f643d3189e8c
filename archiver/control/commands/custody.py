"""Who did what, and whether that still is what was written down."""

from __future__ import annotations

import json
from datetime import datetime

import click

from archiver.catalogue import custody as catalogue
from archiver.control.arguments import ANY_TARGET, Target, settled
from archiver.control.asked import Asked
from archiver.control.commands.verifying import Notice
from archiver.control.dates import DATE
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import moment, plural, short
from archiver.keep.custody_check import CustodyCheck

LINES = 20
DETAIL = 120  # characters, shown


class _HeadParam(click.ParamType[bytes]):
    """A SHA-256 in hexadecimal."""

    name = "hash"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        """Refuses what is none."""
        try:
            head = bytes.fromhex(str(value))
        except ValueError:
            head = b""
        if len(head) != 32:
            self.fail(f"{value!r} is no head: it has 64 characters from 0 to f", param, ctx)
        return head


@command("custody")
@click.argument("target", type=ANY_TARGET, required=False)
@click.option("--since", type=DATE, help="A date, or how long ago, like 7d.")
async def custody(asked: Asked, target: Target | None, since: datetime | None) -> Reply:
    """Show who did what, when and from where: the newest 20 lines of the custody log.

    Of everything, or of a media, an event, a user or a room; of a user also what they did, and of
    a room what was done from it. `custody verify` tells whether it still is what was written.
    """
    about = (await settled(target, asked.means.history)).value if target else None
    async with asked.means.pool.acquire() as conn:
        rows = await catalogue.about(conn, about, since, LINES)
    data = [{**dict(row), "detail": json.loads(row["detail"])} for row in rows]
    if not rows:
        return said("Custody tells nothing of it.", data=data)
    table = Table(
        ("when", "who", "where", "what", "about", ""),
        tuple(
            (
                moment(row["at"]), row["actor"], row["place"], row["action"],
                row["target"] or "", _told(row["detail"]),
            )
            for row in data
        ),
    )  # fmt: skip
    return said(table, data=data)


@command("custody verify", long=True)
@click.option("--head", type=_HeadParam(), help="One that the control room was told.")
async def custody_verify(asked: Asked, head: bytes | None) -> Reply:
    """Verify that nothing was changed, removed or slipped in below custody's seals.

    Every row is hashed anew and compared with its seal, and every seal with the one before. With
    --head also whether the chain has a head that was told on a former day: without one, nobody can
    tell that the whole chain or its end was made anew.
    """
    check, notice = CustodyCheck(asked.means.pool, head), Notice(asked)
    async for _ in check.run():
        told = f"{plural(check.rows, 'line')} in {plural(check.seals, 'seal')}"
        await notice.show(f"Verified {told}.")
    told = f"{plural(check.rows, 'line')} in {plural(check.seals, 'seal')}"
    rest = f"{check.unsealed:,} not sealed yet"
    data = {
        "lines": check.rows,
        "seals": check.seals,
        "unsealed": check.unsealed,
        "head": check.head.hex(),
        "differences": check.bad,
        "first": check.wrong,
    }
    if not check.bad:
        return said(f"All is as it was: {told}; {rest}.", f"Head: {check.head.hex()}", data=data)
    parts = [f"{plural(check.bad, 'difference')} in {told}; {rest}. The first:"]
    table = Table(("",), tuple((wrong,) for wrong in check.wrong))
    return Reply((*parts, table), data, failed=True)


def _told(detail: dict[str, object]) -> str:
    return short(", ".join(f"{key}: {value}" for key, value in detail.items()), DETAIL)


COMMANDS = (custody, custody_verify)
