"""What no row knows, and rows whose bytes are gone."""

from __future__ import annotations

import click

from archiver.control.asked import Asked
from archiver.control.commands.verifying import Notice
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import plural
from archiver.errors import Cancelled, OperationError, StoreUnavailable
from archiver.keep.gentle import gently
from archiver.keep.quarantine import Who
from archiver.keep.sweep import Heap, Sweep, Swept
from archiver.units import format_size

_KINDS = {
    "objects": "objects without a row",
    "inline": "inline bytes without a row",
    "lost": "rows without their bytes",
    "leftovers": "left half written",
}


async def ask_sweep(asked: Asked, delete: bool) -> Reply:
    """What would go."""
    del delete
    swept = await _sweep(asked, delete=False)
    goes = Heap(*map(sum, zip(swept.objects, swept.inline, swept.leftovers, strict=True)))
    told = f"This lets {plural(goes.number, 'file')} go ({format_size(goes.size)}), that no row"
    told += f" knows, and notes {_files(swept.lost)} as damaged."
    return said(told, *_found(swept), data=_data(swept))


@command("sweep", asks=ask_sweep, asks_if="delete", long=True)
@click.option("--delete", is_flag=True, help="Let go what no row knows; asks first.")
async def sweep(asked: Asked, delete: bool) -> Reply:
    """Compare what the stores have with what the database knows, in both directions.

    Tells which bytes no row knows, which rows have no bytes, and what was left half written.
    Nothing is changed. With --delete, after asking: what no row knows goes, an object a day later;
    a row without its bytes is noted as damaged, and they are fetched again. What is younger than a
    day is left alone, because it may just be coming.
    """
    swept = await _sweep(asked, delete=delete)
    told = f"Swept; {_files(swept.right)} are where they should be."
    found = _found(swept)
    if not found:
        return said(told, "Nothing is left over, and nothing is missing.", data=_data(swept))
    if delete:
        told += " This was let go, or noted as damaged; objects are gone a day from now:"
    return said(told, *found, data=_data(swept))


async def _sweep(asked: Asked, *, delete: bool) -> Swept:
    who = Who(asked.actor, asked.place)
    swept, notice = Swept(), Notice(asked)
    try:
        sweeping = Sweep(asked.means.pool, asked.means.store, who, delete=delete)
        async for swept in gently(sweeping.run()):
            await notice.show(f"Swept so far: {_files(swept.right)} are where they should be.")
    except Cancelled as error:
        raise Cancelled(f"Cancelled after {_files(swept.right)}.") from error
    except StoreUnavailable as error:
        raise OperationError(f"stopped after {_files(swept.right)}: {error}") from error
    return swept


def _found(swept: Swept) -> list[Table]:
    heaps = [(words, getattr(swept, name)) for name, words in _KINDS.items()]
    rows = tuple((words, _files(heap)) for words, heap in heaps if heap.number)
    return [Table(("found", ""), rows)] if rows else []


def _data(swept: Swept) -> dict[str, dict[str, int]]:
    return {
        name: {"files": heap.number, "bytes": heap.size} for name, heap in swept._asdict().items()
    }


def _files(heap: Heap) -> str:
    return f"{plural(heap.number, 'file')}, {format_size(heap.size)}"
