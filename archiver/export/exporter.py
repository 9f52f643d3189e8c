"""Writes what is selected of an archive as a bag, as it reads it: page by page, blob by blob."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from archiver import __version__
from archiver.catalogue import custody
from archiver.catalogue import events as catalogue
from archiver.catalogue import export as selected
from archiver.catalogue.export import Selection
from archiver.catalogue.targets import AT_ONCE
from archiver.export import outage, pages
from archiver.export.folder import BagFolder, Lines
from archiver.export.lines import event_line, line, media_line
from archiver.export.names import blob_name
from archiver.model import Blob, Mxc, Place, State

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool, Row
    from archiver.store.hybrid import HybridStore

# A poll with its votes by the event that began it, as an administrator sees it; None for no poll.
Polled = Callable[["Connection", str], Awaitable[dict[str, Any] | None]]

# Events, media, and missing media so far.
Told = Callable[[int, int, int], Awaitable[None]]

PER_PAGE = 300
POLLS = frozenset({"m.poll.start", "org.matrix.msc3381.poll.start"})
DAMAGED = "its bytes are not in the store as they were: `archiver verify` tells more"


class Exported(NamedTuple):
    """What a bag holds: media with their bytes, media that are `missing`, bytes and files."""

    events: int
    media: int
    missing: int
    size: int
    files: int


class Exporter:
    """One export into one folder. Raises OperationError and StoreUnavailable; the same once more
    goes on where it ended."""

    def __init__(
        self, pool: Pool, store: HybridStore, source: str, polled: Polled, who: tuple[str, str]
    ) -> None:
        """`source` is the server's name, for the label; `who` asks, and where, for custody."""
        self._pool = pool
        self._store = store
        self._source = source
        self._polled = polled
        self._who = who

    async def export(
        self, wanted: Selection, path: Path, progress: Told | None = None
    ) -> Exported:
        """Writes the bag, or what is missing of it. `progress` hears what is in it so far."""
        with outage.told("export"):
            return await self._export(wanted, path, progress)

    async def _export(self, wanted: Selection, path: Path, progress: Told | None) -> Exported:
        async with self._pool.acquire() as conn:
            told = {key: value and str(value) for key, value in wanted._asdict().items()}
            await custody.note(conn, *self._who, "export", None, selection=told)
        label = line({"source": self._source, **wanted._asdict()})
        with closing(BagFolder(path, label)) as folder:
            run = _Run(self._pool, self._store, self._polled, folder, _title(wanted, self._source))
            for pages_of in (selected.with_media, selected.others):
                async for events in pages_of(self._pool, wanted):
                    await run.take(events)
                    if progress:
                        await progress(run.events, run.media, run.missing)
            await run.end()
            size, files = await folder.work(folder.finish, _info(self._source, wanted))
        return Exported(run.events, run.media, run.missing, size, files)


class _Run:
    def __init__(
        self, pool: Pool, store: HybridStore, polled: Polled, folder: BagFolder, title: str
    ) -> None:
        self.events = self.media = self.missing = 0
        self._pool = pool
        self._store = store
        self._polled = polled
        self._folder = folder
        self._title = title
        self._files = {
            name: Lines(folder, f"data/{name}.jsonl")
            for name in ("events", "polls", "media", "missing", "custody")
        }
        self._articles: list[str] = []
        self._pages = 0

    async def take(self, event_ids: Sequence[str]) -> None:
        """Writes some events with all that is related to them, and that to it."""
        fresh = await self._fresh("e", event_ids)
        while fresh:
            some, fresh = fresh[:AT_ONCE], fresh[AT_ONCE:]
            async with self._pool.acquire() as conn:
                related = await selected.related(conn, some)
            await self._events(some)
            fresh += await self._fresh("e", related)

    async def end(self) -> None:
        """Writes the last page, and closes the files."""
        await self._write_page(last=True)
        for file in self._files.values():
            await self._folder.work(file.close)

    async def _events(self, event_ids: list[str]) -> None:
        references, named = defaultdict(list), {}
        async with self._pool.acquire() as conn:
            rows = await selected.events(conn, event_ids)
            for reference in await catalogue.references(conn, event_ids):
                references[reference["event_id"]].append(reference)
                named[Mxc(reference["server_name"], reference["media_id"])] = reference
            media = {
                Mxc(row["server_name"], row["media_id"]): row
                for row in await selected.media(conn, list(named))
            }
        await self._media(media)
        paths = await self._paths(media)
        self.events += len(rows)
        await self._write("events", [event_line(row, references[row["event_id"]]) for row in rows])
        articles = [
            pages.article(row, references[row["event_id"]], media, paths)
            for row in rows
            if references[row["event_id"]]
        ]
        if self._articles and len(self._articles) + len(articles) > PER_PAGE:
            await self._write_page(last=False)
        self._articles += articles
        for row in rows:
            if row["type"] in POLLS:
                await self._poll(row["event_id"])
        await self._told(rows, media)

    async def _media(self, media: dict[Mxc, Row]) -> None:
        for name in await self._fresh("m", map(str, media)):
            server_name, _, media_id = name.removeprefix("mxc://").partition("/")
            row = media[Mxc(server_name, media_id)]
            sha256 = row["blob_sha256"] if row["state"] == State.READY else None
            if sha256 is not None and not await self._blob(row):
                sha256 = None
            await self._write("media", [media_line(row, sha256)])
            if sha256 is not None:
                self.media += 1
                continue
            self.missing += 1
            reason = DAMAGED if row["state"] == State.READY else row["reason"]
            told = {"mxc": name, "state": row["state"], "reason": reason}
            await self._write("missing", [line(told)])

    async def _blob(self, row: Row) -> bool:
        """Whether the bytes of a media are in the bag now. Many media may share them."""
        path = _path(row)
        if await self._folder.work(self._folder.ledger.has, path):
            return True
        blob = Blob(row["blob_sha256"], row["size"], Place(row["place"]))
        return await self._folder.put(path, blob.sha256, blob.size, lambda: self._store.read(blob))

    async def _paths(self, media: dict[Mxc, Row]) -> dict[Mxc, str]:
        """Where the bytes of those media lie that have some in the bag."""
        ready = {mxc: _path(row) for mxc, row in media.items() if row["state"] == State.READY}
        has = self._folder.ledger.has
        return {mxc: path for mxc, path in ready.items() if await self._folder.work(has, path)}

    async def _poll(self, event_id: str) -> None:
        async with self._pool.acquire() as conn:
            told = await self._polled(conn, event_id)
        if told is not None:
            await self._write("polls", [line(told)])

    async def _told(self, rows: Sequence[Row], media: dict[Mxc, Row]) -> None:
        """What custody tells of some events, their media, bytes, senders and rooms."""
        digests = [row["blob_sha256"].hex() for row in media.values() if row["blob_sha256"]]
        about = [row[key] for row in rows for key in ("event_id", "sender", "room_id") if row[key]]
        targets = await self._fresh("c", [*map(str, media), *digests, *about])
        async for page in selected.custody(self._pool, targets):
            lines = [line({**dict(row), "detail": orjson.Fragment(row["detail"])}) for row in page]
            await self._write("custody", lines)

    async def _write_page(self, *, last: bool) -> None:
        """Not before it is known whether another one follows."""
        self._pages += 1
        html = pages.page(self._title, self._pages, self._articles, last=last)
        self._articles = []
        file = await self._folder.work(Lines, self._folder, pages.page_name(self._pages))
        await self._folder.work(file.write, [html])
        await self._folder.work(file.close)

    async def _write(self, name: str, lines: list[bytes]) -> None:
        await self._folder.work(self._files[name].write, lines)

    async def _fresh(self, kind: str, names: Any) -> list[str]:
        keys = [kind + name for name in names]
        fresh = await self._folder.work(self._folder.ledger.fresh, keys)
        return [key[1:] for key in fresh]


def _path(row: Row) -> str:
    return blob_name(row["blob_sha256"], row["mimetype"])


def _title(wanted: Selection, source: str) -> str:
    """What the bag holds, in one line."""
    parts = [
        f"room {wanted.room_id}" if wanted.room_id else "",
        f"sent by {wanted.sender}" if wanted.sender else "",
        f"from {wanted.since.isoformat()}" if wanted.since else "",
        f"before {wanted.until.isoformat()}" if wanted.until else "",
    ]
    return f"Media archive of {source}: {', '.join(filter(None, parts)) or 'everything'}"


def _info(source: str, wanted: Selection) -> list[tuple[str, str]]:
    """https://www.rfc-editor.org/rfc/rfc8493#section-2.2.2"""
    return [
        ("Source-Organization", source),
        ("External-Description", _title(wanted, source)),
        ("Bagging-Date", datetime.now(UTC).date().isoformat()),
        ("Bag-Software-Agent", f"Matrix Media Archiver {__version__}"),
    ]
