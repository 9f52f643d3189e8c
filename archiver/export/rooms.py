"""What of a bag the settings of this archive leave out, as if its events had just been posted."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from archiver.capture.rows import Kept
from archiver.export.check import Bag
from archiver.export.ledger import Ledger
from archiver.export.lines import kept_of
from archiver.export.reading import EVENTS, lines
from archiver.model import Mxc, Reference
from archiver.store.spool import in_thread

if TYPE_CHECKING:
    from archiver.capture.policy import CapturePolicy


def as_captured(found: Kept, policy: CapturePolicy) -> Kept | None:
    """What capturing would keep of it: of a room that is left out no words; None for nothing."""
    if policy.leaves_out_sender(found.row.sender):
        return None
    if not policy.leaves_out_room(found.row.room_id):
        return found
    if not found.references:
        return None
    wordless = [Reference(named.mxc, named.role, named.item) for named in found.references]
    return Kept(found.row._replace(content="{}", raw=None, original=None), wordless, left_out=True)


class Wanted:
    """Which media of a bag are wanted: all, unless there is a list of them."""

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger

    async def of(self, names: Sequence[Mxc]) -> set[Mxc]:
        """Those of the media that are wanted."""
        if self._ledger is None:
            return set(names)
        has = self._ledger.seen
        listed = await in_thread(None, has, [str(mxc) for mxc in names])
        return {mxc for mxc in names if str(mxc) in listed}


@asynccontextmanager
async def wanted(bag: Bag, policy: CapturePolicy) -> AsyncIterator[Wanted]:
    """What is named outside of rooms that are left out. Reads all events, if there are such."""
    if not policy.only and not policy.excluded:
        yield Wanted(None)
        return
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder, "wanted"))
        try:
            async for some in lines(bag, EVENTS):
                await in_thread(None, ledger.fresh, _named(some, policy))
            yield Wanted(ledger)
        finally:
            ledger.close()


def _named(some: list[bytes], policy: CapturePolicy) -> list[str]:
    kept = [as_captured(kept_of(text), policy) for text in some]
    return [
        str(named.mxc) for found in kept if found and not found.left_out
        for named in found.references
    ]  # fmt: skip
