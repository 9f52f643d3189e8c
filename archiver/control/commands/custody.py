"""Who did what, and whether that still is what was written down."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import click

from archiver.catalogue import custody as catalogue
from archiver.control.arguments import ANY_TARGET, Target, settled
from archiver.control.asked import Asked
from archiver.control.commands.verifying import Notice
from archiver.control.dates import DATE
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import moment, plural, short, span
from archiver.keep.anchoring import Expired
from archiver.keep.custody_check import CustodyCheck
from archiver.units import format_size

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

    Every row is hashed anew and compared with its seal, every seal with the one before, and every
    note of a read that is still kept with what it was. With --head also whether the chain has a
    head that was told on a former day: without one, nobody can tell that the whole chain or its
    end was made anew.
    """
    check, notice = CustodyCheck(asked.means.pool, head), Notice(asked)
    async for _ in check.run():
        told = f"{plural(check.rows, 'line')} in {plural(check.seals, 'seal')}"
        await notice.show(f"Verified {told}.")
    told = f"{plural(check.rows, 'line')} in {plural(check.seals, 'seal')}"
    rest = f"{check.unsealed:,} not sealed yet"
    if check.waiting:
        its = "its" if check.waiting == 1 else "their"
        rest += f", {plural(check.waiting, 'capture or read', 'captures or reads')} on {its} way"
    if check.reads:
        told += f", with {plural(check.reads, 'read')}"
    kept, data = asked.means.config.serve.keep_reads, _data(check)
    gone = [_gone(check.expired, kept)] if check.expired else []
    if not check.bad:
        parts = (f"All is as it was: {told}; {rest}.", *gone, f"Head: {check.head.hex()}")
        return said(*parts, data=data)
    first = f"{plural(check.bad, 'difference')} in {told}; {rest}. The first:"
    table = Table(("",), tuple((wrong,) for wrong in check.wrong))
    return Reply((*gone, first, table), data, failed=True)


def _data(check: CustodyCheck) -> dict[str, Any]:
    gone = check.expired
    return {
        "lines": check.rows,
        "seals": check.seals,
        "unsealed": check.unsealed,
        "reads": check.reads,
        "waiting": check.waiting,
        "expired": gone
        and {
            "reads": gone.reads,
            "youngest_seconds": gone.youngest.total_seconds(),
            "line": gone.line,
        },
        "head": check.head.hex(),
        "differences": check.bad,
        "first": check.wrong,
    }


def _gone(expired: Expired, kept: timedelta | None) -> str:
    """What an auditor is to know of reads that were deleted, which is no difference."""
    were = "read was" if expired.reads == 1 else "reads were"
    told = f"{expired.reads:,} {were} deleted as expired, the youngest"
    told += f" {span(expired.youngest.total_seconds())} old"
    if kept is not None and expired.youngest >= kept:
        return f"{told}."
    whiles = "keeps them for ever" if kept is None else f"is {span(kept.total_seconds())}"
    return (
        f"{told} (row {expired.line}), while serve.keep_reads {whiles}: it was shorter then, or"
        " somebody deleted them who may run SQL."
    )


def _told(detail: dict[str, Any]) -> str:
    match detail:
        case {"of": int(), "media": [[_, str(sha256), int(size), *state], *_]}:
            told = f"SHA-256 {sha256}, {format_size(size)}"
            return f"{told}, refused: into quarantine" if state else told
        case {"of": int(number)}:
            return plural(number, "media", "media")
    return short(", ".join(f"{key}: {value}" for key, value in detail.items()), DETAIL)


COMMANDS = (custody, custody_verify)
