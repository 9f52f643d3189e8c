"""Damaged blobs: who tries to mend them, when, and what came of it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.deletion import drop_blobs
from archiver.catalogue.garbage import BYTES_AFTER
from archiver.model import Blob, Mxc, Place

if TYPE_CHECKING:
    from archiver.db.pool import Connection

MOST_MEDIA = 20  # of a blob, asked for in a try

# `repair_due` is schedule, back-off and lease in one; `repair_attempts` the fencing token.
CLAIM = """
UPDATE blob SET repair_attempts = repair_attempts + 1, repair_due = now() + $1::interval
WHERE sha256 = (SELECT sha256 FROM blob WHERE damaged_at IS NOT NULL AND repair_due <= now()
                ORDER BY repair_due LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)
RETURNING sha256, size, place, repair_attempts
"""
PUT_OFF = """
UPDATE blob SET repair_due = now() + $3::interval, repair_reason = $4
WHERE sha256 = $1 AND repair_attempts = $2 AND damaged_at IS NOT NULL
"""
GIVE_BACK = """
UPDATE blob SET repair_due = now(), repair_attempts = repair_attempts - 1
WHERE sha256 = $1 AND repair_attempts = $2 AND damaged_at IS NOT NULL
"""
# What nobody may see is wanted all the same, as long as the row says that it is here.
MEDIA = """
SELECT server_name, media_id FROM media WHERE blob_sha256 = $1
ORDER BY state <> 'ready', server_name, media_id LIMIT $2
"""
# The row is locked, so that who deletes the blob deletes these bytes as well.
PUT_INLINE = """
WITH mine AS (
    SELECT sha256 FROM blob WHERE sha256 = $1 AND place = 'inline' FOR NO KEY UPDATE
)
INSERT INTO blob_data (sha256, data) SELECT sha256, $2 FROM mine
ON CONFLICT (sha256) DO UPDATE SET data = EXCLUDED.data
"""
MEND = """
UPDATE blob SET damaged_at = NULL, verified_at = now(), repaired_at = now(), repair_reason = NULL
WHERE sha256 = $1 AND place = $2 AND damaged_at IS NOT NULL
RETURNING true
"""
IS_THERE = "SELECT EXISTS (SELECT FROM blob WHERE sha256 = $1)"
# Not what came within a day: somebody may be about to store the very same picture.
LOCK_PICTURE = """
SELECT true FROM blob AS b WHERE sha256 = $1 AND created_at < now() - $2::interval
  AND EXISTS (SELECT FROM variant AS v WHERE v.sha256 = b.sha256)
  AND NOT EXISTS (SELECT FROM media AS m WHERE m.blob_sha256 = b.sha256)
FOR UPDATE
"""
DELETE_VARIANTS = "DELETE FROM variant WHERE sha256 = $1 RETURNING blob_sha256"
MAKE_AGAIN = """
UPDATE blob SET processing = 'pending', processing_due = now()
WHERE sha256 = ANY($1::bytea[]) AND processing = 'ready'
"""


class Patient(NamedTuple):
    """A damaged blob that this process tries to mend, and how often that was tried."""

    blob: Blob
    attempts: int


async def claim(conn: Connection, lease: timedelta) -> Patient | None:
    """Takes the damaged blob that is due the longest."""
    row = await conn.fetchrow(CLAIM, lease)
    if row is None:
        return None
    return Patient(Blob(row["sha256"], row["size"], Place(row["place"])), row["repair_attempts"])


async def put_off(conn: Connection, patient: Patient, delay: timedelta, reason: str) -> None:
    """Lets it wait; the reason is what is shown meanwhile."""
    await conn.execute(PUT_OFF, patient.blob.sha256, patient.attempts, delay, reason)


async def give_back(conn: Connection, patient: Patient) -> None:
    """As if it had not been tried."""
    await conn.execute(GIVE_BACK, patient.blob.sha256, patient.attempts)


async def media_of(conn: Connection, sha256: bytes) -> list[Mxc]:
    """Media that have the blob."""
    return [Mxc(*row) for row in await conn.fetch(MEDIA, sha256, MOST_MEDIA)]


async def put_inline(conn: Connection, sha256: bytes, data: bytes) -> None:
    """Puts inline bytes in the place of what is there, unless the blob was deleted."""
    await conn.execute(PUT_INLINE, sha256, data)


async def mend(conn: Connection, blob: Blob) -> bool:
    """Its bytes are right again. False where it is not there, or not damaged, any more."""
    return bool(await conn.fetchval(MEND, blob.sha256, blob.place))


async def is_there(conn: Connection, sha256: bytes) -> bool:
    """Whether a row still has this name."""
    return bool(await conn.fetchval(IS_THERE, sha256))


async def drop_picture(conn: Connection, sha256: bytes) -> bool:
    """Deletes a picture that was made of a blob, so that it is made again; False where it is too
    young for that, or no such picture. To be called in a transaction, in which its bytes are
    deleted too: who makes the same picture meanwhile waits for it."""
    if not await conn.fetchval(LOCK_PICTURE, sha256, BYTES_AFTER):
        return False
    sources = [row["blob_sha256"] for row in await conn.fetch(DELETE_VARIANTS, sha256)]
    await drop_blobs(conn, [sha256])
    await conn.execute(MAKE_AGAIN, sources)
    return True
