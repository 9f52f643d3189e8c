"""Where bytes rest, changed while the archive runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import click

from archiver.config.sections import MIB
from archiver.control.asked import Asked
from archiver.control.commands.verifying import Notice
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import plural
from archiver.errors import Cancelled, ConfigError, OperationError, StoreUnavailable
from archiver.keep.moving import Moved, Mover, Sizes
from archiver.keep.quarantine import Who
from archiver.store.spool import Spool
from archiver.units import format_size, parse_size

LARGEST_INLINE = 256 * MIB  # as `storage.inline_limit` has it
LARGER_THAN_ALL = 1 << 62
SHOWN = 20  # damaged files in a reply

Where = Literal["s3", "filesystem", "inline"]


class SizeParam(click.ParamType[int]):
    """A size in bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """`5 MiB`, `100kB` or a plain number."""
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


SIZE = SizeParam()


@command("storage move", changes=True, long=True)
@click.option("--to", required=True, type=click.Choice(["s3", "filesystem", "inline"]))
@click.option("--larger-than", type=SIZE, help="Only what is larger, such as 1MiB.")
@click.option("--smaller-than", type=SIZE, help="Only what is smaller.")
async def storage_move(
    asked: Asked, to: Where, larger_than: int | None, smaller_than: int | None
) -> Reply:
    """Move archived bytes to another store while the archive runs; each is checked on the way.

    To `inline`, the database: objects up to storage.inline_limit, or as the options say. To `s3`
    or `filesystem`, which has to be what storage.objects says: what is larger than
    storage.inline_limit, or as the options say, from the database; and from storage.move_from,
    where objects were kept before. May be cancelled and begun again: it goes on. The old copies
    go after a day.
    """
    limit = asked.means.config.storage.inline_limit
    if to == "inline":
        under = limit + 1 if smaller_than is None else min(smaller_than, LARGEST_INLINE + 1)
        sizes = Sizes(-1 if larger_than is None else larger_than, under)
    else:
        _check(asked, to)
        over = limit if larger_than is None and smaller_than is None else larger_than
        under = LARGER_THAN_ALL if smaller_than is None else smaller_than
        sizes = Sizes(-1 if over is None else over, under)
    return await _run(asked, to, sizes, everything=larger_than is None and smaller_than is None)


def _check(asked: Asked, to: Where) -> None:
    now = asked.means.store.objects_name
    if to != now:
        raise ConfigError(
            f"objects are kept in {now} now: set storage.objects to {to} and storage.move_from "
            f"to {now}, start the archive anew, and say this again"
        )


async def _run(asked: Asked, to: Where, sizes: Sizes, *, everything: bool) -> Reply:
    config, notice, moved = asked.means.config.storage, Notice(asked), Moved()
    mover = Mover(
        asked.means.pool,
        asked.means.store,
        Spool(config.spool, config.inline_limit),
        Who(asked.actor, asked.place),
    )
    try:
        async for moved in _steps(asked, mover, to, sizes, everything=everything):
            await notice.show(f"Moved {_told(moved)} to {to} so far.")
    except Cancelled as error:
        raise Cancelled(f"Cancelled after {_told(moved)}. Begun again, it goes on.") from error
    except StoreUnavailable as error:
        raise OperationError(f"stopped after {_told(moved)}: {error}") from error
    return _reply(moved, to)


async def _steps(
    asked: Asked, mover: Mover, to: Where, sizes: Sizes, *, everything: bool
) -> AsyncIterator[Moved]:
    if to == "inline":
        async for moved in mover.to_inline(sizes):
            yield moved
        return
    async for moved in mover.to_objects(sizes):
        yield moved
    former = asked.means.store.former_name
    if former is not None:
        of_former = Sizes(-1, LARGER_THAN_ALL) if everything else sizes
        async for moved in mover.from_former(former, of_former):
            yield moved


def _reply(moved: Moved, to: Where) -> Reply:
    told = f"Moved {_told(moved)} to {to}." if moved.blobs else f"Nothing was to move to {to}."
    damaged = [sha256.hex() for sha256 in moved.damaged]
    data = {"files": moved.blobs, "bytes": moved.size, "damaged": damaged}
    if not damaged:
        return said(told, data=data)
    told += f" {plural(len(damaged), 'file')} stayed, being damaged: see `verify`."
    table = Table(("sha256",), tuple((name,) for name in damaged[:SHOWN]))
    return Reply((told, table), data, failed=True)


def _told(moved: Moved) -> str:
    return f"{plural(moved.blobs, 'file')}, {format_size(moved.size)}"


COMMANDS = (storage_move,)
