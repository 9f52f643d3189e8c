"""How one media gets into the archive, on one screen."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Protocol

from archiver.catalogue import budget, garbage
from archiver.catalogue.queue import Completed, Job, Said, complete, is_known
from archiver.db.pool import Pool
from archiver.errors import BodyMismatch, Excluded
from archiver.fetch.download import Download, MediaSource
from archiver.fetch.inspect import inspect
from archiver.model import Blob, Place
from archiver.store.hybrid import HybridStore
from archiver.store.spool import Spool, SpooledBody
from archiver.units import format_size


@dataclass(frozen=True)
class Parts:
    """What `archive_one` works with. `max_size` is `capture.max_size` in bytes, `remote_rate`
    `history.remote_rate` in bytes a second."""

    pool: Pool
    source: MediaSource
    spool: Spool
    store: HybridStore
    max_size: int | None = None
    remote_rate: int | None = None


@dataclass(frozen=True)
class Archived:
    """The blob behind a media that is `ready` now, and how its recording went."""

    blob: Blob
    completed: Completed


class Onlooker(Protocol):
    """Somebody who watches a body come. The body is closed when `archive_one` ends."""

    def begins(self, download: Download, body: SpooledBody) -> None:
        """The homeserver answered, and the body will grow from now on."""

    def came(self, chunk: bytes) -> None:
        """These bytes are in the body now."""


async def archive_one(job: Job, parts: Parts, onlooker: Onlooker | None = None) -> Archived:
    """Downloads, checks, inspects, stores, and commits. Raises the errors of errors.py.

    The blob is durable before any row says so; the rows and the end of the job are one commit.
    """
    async with (
        parts.source.open(job.mxc) as download,
        parts.spool.body(download.announced_size) as body,
    ):
        _limit(download.announced_size, parts.max_size)
        await parts.store.expect(download.announced_size)
        await _receive(download, body, parts.max_size, onlooker)
        _check(job, download, body)
        facts = await inspect(body)
        blob = Blob(body.sha256, body.size, parts.store.place_for(body.size), facts)
        known = blob.place is Place.OBJECT and await _is_kept(parts.pool, blob)
        inline = None if known else await parts.store.settle(body)
        completed = await _record(job, parts, blob, download.said, inline, known=known)
        if blob.place is Place.OBJECT and not completed.held:
            await _throw_away(parts.pool, blob)
        return Archived(blob, completed)


async def _receive(
    download: Download, body: SpooledBody, max_size: int | None, onlooker: Onlooker | None
) -> None:
    if onlooker:
        onlooker.begins(download, body)
    async for chunk in download.chunks():
        await body.write(chunk)
        _limit(body.size, max_size)
        if onlooker:
            onlooker.came(chunk)
    await body.finish()


def _limit(size: int | None, max_size: int | None) -> None:
    if size is not None and max_size is not None and size > max_size:
        raise Excluded(
            f"capture.max_size: {format_size(size)} is over the limit of {format_size(max_size)}"
        )


def _check(job: Job, download: Download, body: SpooledBody) -> None:
    """Holds the body against what was announced, and against the senders' own hashes.

    The hash of an EncryptedFile is of the ciphertext. One sender's word cannot spoil what others
    posted: the body passes when any event names its hash, or names the media without one.
    """
    if download.announced_size not in (None, body.size):
        raise BodyMismatch(
            f"{body.size} bytes came where {download.announced_size} were announced"
        )
    digest = b64encode(body.sha256).decode().rstrip("=")
    claims = {claim and claim.rstrip("=") for claim in job.hashes}
    if claims and None not in claims and digest not in claims:
        raise BodyMismatch("the content is not what its sender encrypted (hashes.sha256 differs)")


async def _record(
    job: Job, parts: Parts, blob: Blob, said: Said, inline: bytes | None, *, known: bool
) -> Completed:
    async with parts.pool.acquire() as conn:
        if job.charged is None:  # nearly always: one statement is enough
            return await complete(conn, job, blob, said, inline, known=known)
        async with conn.transaction():
            completed = await complete(conn, job, blob, said, inline, known=known)
            if completed.held:
                await budget.correct(conn, job, parts.remote_rate, blob.size)
            return completed


async def _throw_away(pool: Pool, blob: Blob) -> None:
    """The claim was lost, or the media deleted: nobody may need these bytes."""
    async with pool.acquire() as conn:
        await garbage.discard(conn, blob.sha256)


async def _is_kept(pool: Pool, blob: Blob) -> bool:
    async with pool.acquire() as conn:
        return await is_known(conn, blob.sha256)
