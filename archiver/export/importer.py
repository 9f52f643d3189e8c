"""Brings a bag into an archive: first the media with their bytes, then the events that name them.

A bag is a stranger's: every file is hashed before anything of it counts, the type of bytes is told
by themselves, and nothing that the archive knows is overwritten. The same bag once more goes on
where it ended, and changes nothing in the end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from archiver.capture.record import record
from archiver.capture.rows import Kept
from archiver.catalogue import custody
from archiver.catalogue import export as catalogue
from archiver.errors import OperationError
from archiver.export import outage
from archiver.export.arriving import Arrivals, in_batches, is_what_senders_said
from archiver.export.check import BadBag, Bag
from archiver.export.lines import BadLine, Brought, brought_of, kept_of
from archiver.export.reading import EVENTS, MEDIA, lines, opened, sizes
from archiver.export.rooms import Wanted, as_captured, wanted
from archiver.model import Facts, Mxc, Source, State
from archiver.store.base import Body
from archiver.store.spool import in_thread

if TYPE_CHECKING:
    from archiver.capture.policy import CapturePolicy
    from archiver.db.pool import Connection, Pool, Row
    from archiver.store.hybrid import HybridStore
    from archiver.store.spool import Spool

EVENTS_AT_ONCE = 100
# Which nobody has decided, or only the settings at that time.
FILLABLE = frozenset({State.PENDING, State.FAILED, State.EXCLUDED})
# States in which `RECORD` would queue a media again that is named once more.
ENDED = frozenset({State.DELETED, State.EXCLUDED})
# What comes without bytes and is over, so that nobody asks the homeserver for it.
OVER = frozenset({State.FAILED, State.EXCLUDED, State.QUARANTINED, State.DELETED})


class Imported(NamedTuple):
    """What came: events and media that are new; media that were there or stay as they are; and
    media that only rooms name which this archive leaves out."""

    events: int = 0
    media: int = 0
    known: int = 0
    left_out: int = 0


class Importer:
    """One import. Raises OperationError and StoreUnavailable."""

    def __init__(
        self,
        pool: Pool,
        store: HybridStore,
        spool: Spool,
        policy: CapturePolicy,
        inspect: Callable[[Body], Awaitable[Facts]],
        who: tuple[str, str],
        tell: Callable[[str], None],
        progress: Callable[[Imported], Awaitable[None]] | None = None,
        *,
        deleted_too: bool = False,
    ) -> None:
        """`policy` leaves out rooms; `inspect` tells what bytes are; `tell` gets a sentence for
        each media that stays. `deleted_too`: what was deleted here comes back with its bytes."""
        self._pool = pool
        self._policy = policy
        self._fillable = FILLABLE | ({State.DELETED} if deleted_too else set())
        self._arrivals = Arrivals(pool, store, spool, inspect, self._fillable)
        self._who = who
        self._tell = tell
        self._progress = progress
        self._done = Imported()
        self._damaged = 0
        self._label: dict[str, str] = {}

    async def import_(self, path: Path) -> Imported:
        """Brings in the bag in a folder or a ZIP."""
        try:
            bag, digest = await opened(path)
            with closing(bag), outage.told("import"):
                self._done, self._damaged = Imported(), 0
                self._label = {"bag": path.name, "manifest": digest}
                await self._all(bag)
        except (BadBag, BadLine) as error:
            raise OperationError(
                f"{path} cannot be imported: {error}"
                " `archiver export --check` tells all that is wrong with it"
            ) from error
        if self._damaged:
            raise OperationError(
                f"{path} is imported but for {self._damaged:,} media whose files in it are not as"
                " they were: `archiver export --check` names them; put them right and import it"
                " once more"
            )
        return self._done

    async def _all(self, bag: Bag) -> None:
        async with self._pool.acquire() as conn:
            await self._note(conn, {"state": "begun"}, self._label["bag"])
        async with wanted(bag, self._policy) as only:
            async for some in lines(bag, MEDIA):
                await self._media(bag, some, only)
        async for some in lines(bag, EVENTS):
            await self._events(some)
        async with self._pool.acquire() as conn:
            await self._note(
                conn,
                {"state": "done", "damaged": self._damaged, **self._done._asdict()},
                self._label["bag"],
            )

    async def _note(
        self, conn: Connection, detail: dict[str, object], target: str | None = None
    ) -> None:
        """Tells custody what came, in the transaction of what came; of the whole with a target."""
        actor, place = self._who
        await custody.note(conn, actor, place, "import", target, **self._label, **detail)

    async def _media(self, bag: Bag, some: list[bytes], only: Wanted) -> None:
        brought: dict[Mxc, Brought] = {}
        before = self._done.media
        for one in await in_thread(None, _brought, some):
            brought.setdefault(one.mxc, one)
        names = await only.of(list(brought))
        async with self._pool.acquire() as conn:
            rows = await catalogue.states(conn, sorted(names))
        coming = [brought[mxc] for mxc in sorted(names) if self._may_come(brought[mxc], rows)]
        await self._without_bytes([one for one in coming if one.sha256 is None])
        with_bytes = [one for one in coming if one.sha256 is not None]
        paths = [one.path for one in with_bytes]
        sized = zip(with_bytes, await in_thread(None, sizes, bag, paths), strict=True)
        for batch in in_batches(list(sized)):
            await self._with_bytes(bag, batch)
        new = self._done.media - before
        left_out = len(brought) - len(names)
        await self._came(known=len(some) - left_out - new, left_out=left_out)

    def _may_come(self, brought: Brought, rows: dict[Mxc, Row]) -> bool:
        """Whether the media is new here, or may be filled in. Says why where it is not."""
        mxc, row = brought.mxc, rows.get(brought.mxc)
        if row is None:
            return brought.sha256 is not None or brought.state in OVER
        if row["state"] not in self._fillable:
            other = brought.sha256 is not None and row["blob_sha256"] != brought.sha256
            if row["state"] != brought.state or other:
                why = f" ({row['reason']})" if row["reason"] else ""
                self._tell(f"{mxc} is {row['state']} here{why}, and stays as it is.")
            return False
        if brought.sha256 is None:
            return False
        if not is_what_senders_said(row, brought.sha256):
            self._tell(f"{mxc} stays out: its bytes in the bag are not what its sender encrypted.")
            return False
        return True

    async def _without_bytes(self, ended: list[Brought]) -> None:
        if not ended:
            return
        said = "it was so where it was exported"
        async with self._pool.acquire() as conn, conn.transaction():
            told = [(one.mxc, one.state, one.reason or said) for one in ended]
            new = await catalogue.note(conn, told)
            if new:
                told_new = [[str(one.mxc), one.state] for one in ended if one.mxc in new]
                await self._note(conn, {"without_bytes": told_new})
        await self._came(media=len(new))

    async def _with_bytes(self, bag: Bag, batch: list[tuple[Brought, int]]) -> None:
        taken, damaged = await self._arrivals.take(bag, batch, self._note)
        for mxc, why in damaged.items():
            self._damaged += 1
            self._tell(f"{mxc} stays out: {why}")
        for mxc, refused in taken.items():
            if refused:
                self._tell(f"{mxc} is in quarantine: its bytes are refused here.")
        await self._came(media=len(taken))

    async def _events(self, some: list[bytes]) -> None:
        kept = await in_thread(None, _kept, some, self._policy)
        for start in range(0, len(kept), EVENTS_AT_ONCE):
            await self._came(events=await self._record(kept[start : start + EVENTS_AT_ONCE]))

    async def _record(self, kept: list[Kept]) -> int:
        named = sorted({reference.mxc for found in kept for reference in found.references})
        event_ids = [found.row.event_id for found in kept]
        async with self._pool.acquire() as conn, conn.transaction():
            known = await catalogue.known(conn, event_ids)
            ended = [
                (mxc, row["state"], row["reason"])
                for mxc, row in (await catalogue.states(conn, named)).items()
                if row["state"] in ENDED
            ]
            recorded = await record(conn, kept, Source.BACKFILL, self._policy)
            await catalogue.stay(conn, ended)
            if recorded.events:
                new = [event_id for event_id in event_ids if event_id not in known]
                await self._note(conn, {"events": new})
        recorded.add_to_metrics(Source.BACKFILL)
        return recorded.events

    async def _came(
        self, *, events: int = 0, media: int = 0, known: int = 0, left_out: int = 0
    ) -> None:
        more = Imported(events, media, known, left_out)
        self._done = Imported(*(a + b for a, b in zip(self._done, more, strict=True)))
        if self._progress:
            await self._progress(self._done)


def _brought(some: list[bytes]) -> list[Brought]:
    return [brought_of(text) for text in some]


def _kept(some: list[bytes], policy: CapturePolicy) -> list[Kept]:
    found = (as_captured(kept_of(text), policy) for text in some)
    return [kept for kept in found if kept is not None]
