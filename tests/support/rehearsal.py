"""An archive on a real database and a real folder, with readers, beside the model."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from archiver.catalogue import accesses
from archiver.catalogue.accesses import Accesses
from archiver.db.listen import Listener
from archiver.db.pool import open_pool
from archiver.fetch.archive import Parts
from archiver.imaging.renderer import Renderer
from archiver.keep.deletion import Deletion
from archiver.keep.sweep import Sweep
from archiver.model import Blob, Place, Scope
from archiver.store.base import digest_of
from archiver.store.filesystem import FilesystemStore
from archiver.store.hybrid import HybridStore
from archiver.store.postgres import PostgresStore
from archiver.variants.maker import Maker
from tests.support.fetching import parts
from tests.support.homeserver import Homeserver
from tests.support.keeping import ADMIN
from tests.support.model import SPANS, Facts, Fate, Posted, Said
from tests.support.redacting import image, mxc, redact
from tests.support.serving import Archive, Reader, serving
from tests.support.stepping import SteppedStore, Steps, former, stepped

if TYPE_CHECKING:
    from archiver.db.pool import Pool

INLINE_LIMIT = 1000
BODIES = [bytes([number]) * (5000 if number % 2 else 500) for number in range(6)]
DIGESTS = [hashlib.sha256(body).digest() for body in BODIES]
NUMBERS = {digest: number for number, digest in enumerate(DIGESTS)}
GRACE = timedelta(days=7)
A_WHILE = timedelta(days=8)
A_DAY = timedelta(hours=25)  # longer than anything is kept that may be about to be recorded
FENCE = "the_test_asks"
NOW = datetime.now(UTC)

TABLES = (
    "reference", "variant", "media", "event", "blob", "blob_data", "garbage", "leftover", "hold",
    "refused", "redaction_due",
)  # fmt: skip
FATES = "SELECT media_id, state, blob_sha256, reason FROM media"
WORDS = """
SELECT event_id, content <> '{}' OR raw IS NOT NULL AS wordy FROM event
WHERE type <> 'm.room.redaction'
"""
LATER = """
UPDATE event SET redacted_at = redacted_at - $1::interval, received_at = CASE
    WHEN type = 'm.room.redaction' THEN received_at - $1::interval ELSE received_at END;
UPDATE redaction_due SET due_at = due_at - $1::interval;
UPDATE media SET redacted_at = redacted_at - $1::interval;
UPDATE media SET due_at = now() WHERE state = 'pending';
UPDATE media SET settled_at = settled_at - $1::interval,
                 last_accessed = last_accessed - $1::interval
"""
STORED_LATER = """
UPDATE garbage SET due_at = due_at - $1::interval;
UPDATE leftover SET due_at = due_at - $1::interval
"""
LEFT_BEHIND = "SELECT EXISTS (SELECT FROM leftover WHERE store <> 'inline')"
# Rows that say of each other what cannot be.
TORN = """
SELECT 'a blob that nobody has' FROM blob AS b
WHERE NOT EXISTS (SELECT FROM media AS m WHERE m.blob_sha256 = b.sha256)
  AND NOT EXISTS (SELECT FROM variant AS v WHERE v.sha256 = b.sha256)
UNION ALL SELECT 'a tombstone with bytes' FROM media
WHERE state = 'deleted' AND blob_sha256 IS NOT NULL
UNION ALL SELECT 'damage that nobody did' FROM blob WHERE damaged_at IS NOT NULL
UNION ALL SELECT 'an inline blob that was left behind' FROM blob AS b JOIN leftover USING (sha256)
WHERE place = 'inline' AND store = 'inline'
"""


class Process:
    """One of the archive's, which may die or be held up."""

    def __init__(self, stage: Stage, **steps: int | None) -> None:
        self.steps = Steps(**steps)
        self.pool = stepped(stage.pool, self.steps)
        objects = SteppedStore(stage.folder / "objects", self.steps)
        before = former(SteppedStore(stage.folder / "former", self.steps))
        self.store = HybridStore(PostgresStore(self.pool), objects, INLINE_LIMIT, before)
        ours = stage.parts
        self.parts = Parts(self.pool, ours.source, ours.spool, self.store)
        self.maker = Maker(self.pool, self.store, ours.spool, Renderer(1), 1)


@dataclass
class Stage:
    """`reader` may read, `admin` sees what is hidden."""

    pool: Pool
    parts: Parts
    folder: Path
    homeserver: Homeserver
    reader: Reader
    admin: Reader
    heard: asyncio.Event

    async def clear(self, bodies: dict[str, int]) -> None:
        """An empty archive, and a homeserver that has these bodies."""
        await self.pool.execute(";".join(f"DELETE FROM {table}" for table in TABLES))  # noqa: S608  # names of ours
        for file in [*self.files().values(), *self.files("former").values()]:
            file.unlink()
        for name, number in bodies.items():
            self.homeserver.give(mxc(name), BODIES[number])

    async def facts(self) -> Facts:
        """What the rows say."""
        fates = {}
        for name, state, sha256, reason in await self.pool.fetch(FATES):
            gone = state == "deleted" and not str(reason).startswith("capture.on_redaction")
            fates[name] = Fate(state, NUMBERS[sha256] if sha256 else None, gone)
        words = await self.pool.fetch(WORDS)
        refused = await self.pool.fetch("SELECT sha256 FROM refused")
        made = await self.pool.fetch("SELECT blob_sha256, recipe, sha256 FROM variant")
        return Facts(
            fates,
            {row["event_id"]: row["wordy"] for row in words},
            {NUMBERS[row["sha256"]] for row in refused},
            {(NUMBERS[of], recipe): NUMBERS[sha256] for of, recipe, sha256 in made},
        )

    async def blobs(self) -> dict[int, Blob]:
        """Whose bytes are right where the rows say that they are."""
        found = {}
        for row in await self.pool.fetch("SELECT sha256, size, place FROM blob"):
            blob = Blob(row["sha256"], row["size"], Place(row["place"]))
            data = b"".join([chunk async for chunk in self.parts.store.read(blob)])
            assert data == BODIES[NUMBERS[blob.sha256]], "these are other bytes"
            found[NUMBERS[blob.sha256]] = blob
        return found

    async def torn(self) -> list[str]:
        """What is wrong with the rows themselves."""
        return [str(row[0]) for row in await self.pool.fetch(TORN)]

    def files(self, where: str = "objects") -> dict[int, Path]:
        """The objects in a folder: that of now, or `former`."""
        found = {}
        for path in (self.folder / where).glob("??/??/*"):
            digest = digest_of("/".join(path.parts[-3:]))
            assert digest, f"{path} is no object"
            found[NUMBERS[digest]] = path
        return found

    async def inline(self) -> set[int]:
        """The bytes in the database."""
        rows = await self.pool.fetch("SELECT sha256 FROM blob_data")
        return {NUMBERS[row["sha256"]] for row in rows}

    async def a_while_later(self) -> None:
        """Periods of grace are over, and leases as well."""
        await self._later(LATER, A_WHILE)
        await self.stored_later(A_WHILE)
        await redact(self.pool)

    async def stored_later(self, time: timedelta = A_DAY) -> None:
        """Of what is in stores without being recorded some is not waited for any more."""
        await self._later(STORED_LATER, time)
        for file in [*self.files().values(), *self.files("former").values()]:
            then = file.stat().st_mtime - time.total_seconds()
            os.utime(file, (then, then))

    async def _later(self, statements: str, time: timedelta) -> None:
        for statement in statements.split(";"):
            await self.pool.execute(statement, *([time] if "$1" in statement else []))

    async def change_stores(self) -> None:
        """Objects are kept elsewhere from now on, and those of before are in the former store; not
        while another one is not empty yet."""
        if self.files("former") or await self.pool.fetchval(LEFT_BEHIND):
            return
        for file in self.files().values():
            target = self.folder / "former" / file.relative_to(self.folder / "objects")
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)

    async def read(self, name: str) -> None:
        """Somebody was given this media, now."""
        async with self.pool.acquire() as conn:
            await accesses.add(conn, {mxc(name): Accesses(1, datetime.now(UTC))})

    async def sweep(self, process: Process) -> None:
        """Lets go what nobody knows."""
        async for _ in Sweep(process.pool, process.store, ADMIN, delete=True).run():
            pass

    async def tidy(self, process: Process) -> None:
        """Deletes what was redacted, and garbage."""
        await Deletion(process.pool, process.store, GRACE).work()

    async def hear(self) -> None:
        """Returns when the readers' door has heard of all that was changed before."""
        self.heard.clear()
        await self.pool.execute(f"NOTIFY {FENCE}")
        await self.heard.wait()


@asynccontextmanager
async def rehearsing(dsn: str, folder: Path) -> AsyncIterator[Stage]:
    """The stage on a migrated database."""
    listener, heard = Listener(dsn), asyncio.Event()
    listener.on(FENCE, heard.set)
    async with (
        open_pool(dsn, 10) as pool,
        Homeserver() as homeserver,
        parts(pool, folder, homeserver.url, inline_limit=INLINE_LIMIT) as built,
        aiohttp.ClientSession() as session,
    ):
        before = FilesystemStore(folder / "former")
        await before.open()
        archive = Archive(pool, folder, INLINE_LIMIT)
        archive.store.former = built.store.former = former(before)
        secrets = [await archive.token(scope, scope) for scope in (Scope.READ, Scope.ADMIN)]
        async with serving(archive, dsn, hides_redacted=True, listener=listener) as server:
            reader, admin = (Reader(session, server, secret) for secret in secrets)
            yield Stage(pool, built, folder, homeserver, reader, admin, heard)


def event_of(event_id: str, event: Posted) -> dict[str, Any]:
    """As the homeserver tells of it."""
    at = NOW - timedelta(days=event.days)
    fields: dict[str, Any] = {"room_id": event.room, "sender": event.sender}
    fields["origin_server_ts"] = int(at.timestamp() * 1000)
    if event.kind == "avatar":
        content = {"membership": "join", "avatar_url": str(mxc(event.names[0]))}
        face = image(event_id, **fields, type="m.room.member", state_key=event.sender)
        return face | {"content": content}
    made = image(event_id, *event.names, **fields)
    if event.replaces:
        made["content"]["m.new_content"] = dict(made["content"])
        made["content"]["m.relates_to"] = {"rel_type": "m.replace", "event_id": event.replaces}
    if event.kind == "sticker":
        made["type"] = "m.sticker"
    return made


def text_of(target: Said) -> str:
    """As commands write it."""
    if target.kind == "mxc":
        return str(mxc(str(target.value)))
    if target.kind == "hash":
        return f"sha256:{DIGESTS[int(target.value)].hex()}"
    if target.kind == "span":
        first, last = (NOW - timedelta(days=days) for days in SPANS[str(target.value)])
        return f"{first.isoformat()}..{last.isoformat()}"
    return str(target.value)
