"""Pictures that were made of blobs, and the blobs of which they are still to be made.

The second is a queue like that of `queue.py`: `processing_due` is schedule, back-off and lease in
one, `processing_attempts` counts the claims and is the fencing token.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.media import LOOK, LOOK_WARILY
from archiver.model import Blob, Facts, Mxc, Place, State

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# By magic number. What is encrypted has none of these.
PICTURES = frozenset(f"image/{kind}" for kind in ("png", "apng", "jpeg", "gif", "webp", "avif"))
FOOTAGE = frozenset(
    {"video/mp4", "video/quicktime", "video/3gpp", "video/webm", "video/x-matroska",
     "audio/mpeg", "audio/mp4", "audio/ogg", "audio/aac", "audio/flac", "audio/wav"}
)  # fmt: skip
MOVING = ("image/gif", "image/webp")  # what may be an animation
RENDERABLE = sorted(PICTURES | FOOTAGE)


def _with_variant(look: str, still: str, moving: str, with_data: str) -> str:
    """Also the variant by a recipe, or by another one of what may move; and its bytes, if wanted.

    The rest, and so the rules of who may see what, is that of a download.
    """
    return look.replace(
        "NULL::bytea AS data",
        "b.processing, b.processing_reason, made.sha256, made.size, made.place, made.mimetype,"
        " d.data",
    ).replace(
        "WHERE m.server_name = $1 AND m.media_id",
        """LEFT JOIN variant AS v ON v.blob_sha256 = b.sha256 AND m.state = 'ready'
     AND v.recipe = CASE WHEN b.mimetype IN $KINDS THEN $MOVING
                         ELSE $STILL END
LEFT JOIN blob AS made ON made.sha256 = v.sha256
LEFT JOIN blob_data AS d ON d.sha256 = made.sha256 AND made.place = 'inline'
     AND made.size <= 1048576 AND $WITH_DATA
WHERE m.server_name = $1 AND m.media_id""".replace("$KINDS", str(MOVING))
        .replace("$STILL", still)
        .replace("$MOVING", moving)
        .replace("$WITH_DATA", with_data),
    )


VIEW = _with_variant(LOOK, "$4", "$5", "$6::boolean")
VIEW_WARILY = _with_variant(LOOK_WARILY, "$5", "$6", "$7::boolean")

# The young ones first: what was archived long ago is asked for less. Of what no picture can be
# made, this look is the end. Nobody waits for a lock here, nor does an event that names the media.
CLAIM = """
WITH due AS (
    SELECT sha256 FROM blob WHERE processing = 'pending' AND processing_due <= now()
    ORDER BY processing_due DESC LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE blob AS b
SET processing = CASE WHEN b.mimetype = ANY ($2::text[]) THEN 'pending' END,
    processing_due = now() + $1::interval, processing_attempts = b.processing_attempts + 1
FROM due WHERE b.sha256 = due.sha256
RETURNING b.sha256, b.size, b.place, b.mimetype, b.processing_attempts, b.processing
"""
# What failed through no fault of the bytes ($4 = 1) does not count as a try.
POSTPONE = """
UPDATE blob SET processing_due = now() + $3::interval, processing_reason = $5,
                processing_attempts = processing_attempts - $4
WHERE sha256 = $1 AND processing_attempts = $2 AND processing = 'pending'
"""
SETTLE = """
UPDATE blob SET processing = $3, processing_due = NULL, processing_reason = $4,
                width = coalesce(width, $5), height = coalesce(height, $6),
                duration_ms = coalesce(duration_ms, $7)
WHERE sha256 = $1 AND processing_attempts = $2 AND processing = 'pending'
"""
# A song without a cover is in order.
REFUSE = """
UPDATE blob SET processing = CASE WHEN mimetype NOT LIKE 'audio/%' THEN 'failed' END,
                processing_due = NULL, processing_reason = $2
WHERE sha256 = $1 AND processing IS DISTINCT FROM 'ready'
"""
# Worth another look once this process can do what another could not.
RETRY = """
UPDATE blob SET processing = 'pending', processing_due = now(), processing_attempts = 0,
                processing_reason = NULL
WHERE processing = 'failed' AND processing_reason = $1
"""
LOCK = "SELECT FROM blob WHERE sha256 = $1 FOR NO KEY UPDATE"
KEEP = """
WITH room AS (
    SELECT WHERE NOT EXISTS (SELECT FROM variant WHERE blob_sha256 = $1 AND recipe = $2)
             AND (SELECT count(*) FROM variant WHERE blob_sha256 = $1) < $3
), new_blob AS (
    INSERT INTO blob (sha256, size, place, mimetype, width, height)
    SELECT $4, $5, $6, $7, $8, $9 FROM room
    ON CONFLICT (sha256) DO NOTHING
    RETURNING sha256
), new_data AS (
    INSERT INTO blob_data (sha256, data)
    SELECT sha256, $10::bytea FROM new_blob WHERE $6 = 'inline'
    ON CONFLICT (sha256) DO NOTHING
)
INSERT INTO variant (blob_sha256, recipe, sha256, width, height)
SELECT $1, $2, $4, $8, $9 FROM room
RETURNING true
"""
MADE = "SELECT recipe FROM variant WHERE blob_sha256 = $1"
IS_BUSY = """
SELECT count(*) >= $1 FROM
    (SELECT FROM media WHERE state = 'pending' AND due_at <= now() LIMIT $1) AS due
"""
COUNTS = """
SELECT 'pending' AS processing, count(*) AS blobs FROM blob WHERE processing = 'pending'
UNION ALL
SELECT 'failed', count(*) FROM blob WHERE processing = 'failed'
"""


class View(NamedTuple):
    """A media as a thumbnail of it is asked for; see `catalogue.media.Media` for what it shares.

    `refused`: why no picture can be made. `made`, `data`: the variant, and its bytes when they
    are small and asked for.
    """

    state: State
    reason: str | None
    blob: Blob | None
    redacted: bool
    live: bool
    processing: str | None
    refused: str | None
    made: Blob | None
    data: bytes | None


class Job(NamedTuple):
    """A blob whose pictures this process is to make. `attempts`: the claims, this one too."""

    blob: Blob
    attempts: int


async def look(
    conn: Connection, mxc: Mxc, hides: bool | None, *, still: str, moving: str, with_data: bool
) -> View | None:
    """The media and its variant, in one statement; None where nobody ever named it.

    `still` is the recipe's name, `moving` the one for what may be an animation. `hides`: see
    `catalogue.media.look`.
    """
    if hides is None:
        row = await conn.fetchrow(VIEW, *mxc, False, still, moving, with_data)
    else:
        row = await conn.fetchrow(VIEW_WARILY, *mxc, False, hides, still, moving, with_data)
    if row is None:
        return None
    state, reason, _, *source, redacted, live, _, processing, refused = tuple(row)[:12]
    *made, data = tuple(row)[12:]
    hidden = redacted, live
    return View(
        State(state), reason, _blob(*source), *hidden, processing, refused, _blob(*made), data
    )


async def claim(conn: Connection, lease: timedelta) -> Job | None:
    """Takes a blob for `lease`; None when nothing is due."""
    while row := await conn.fetchrow(CLAIM, lease, RENDERABLE):
        sha256, size, place, mimetype, attempts, processing = row
        if processing:
            return Job(Blob(sha256, size, Place(place), Facts(mimetype)), attempts)
    return None


async def postpone(
    conn: Connection, job: Job, delay: timedelta, reason: str, *, counts: bool
) -> None:
    """Lets the blob wait, unless the claim was lost. `counts`: as one of the tries it has."""
    await conn.execute(POSTPONE, job.blob.sha256, job.attempts, delay, 0 if counts else 1, reason)


async def settle(
    conn: Connection, job: Job, processing: str | None, facts: Facts, reason: str | None = None
) -> None:
    """Ends the job, unless the claim was lost: `ready`, `failed` for a reason, or None where it is
    in order that there is no picture.

    `facts` fill in what was not known of the blob.
    """
    await conn.execute(SETTLE, job.blob.sha256, job.attempts, processing, reason, *facts[1:])


async def refuse(conn: Connection, sha256: bytes, reason: str) -> None:
    """A reader's wish has shown that no picture can be made of this."""
    await conn.execute(REFUSE, sha256, reason)


async def retry(conn: Connection, reason: str) -> None:
    """Queues what failed for this reason once more."""
    await conn.execute(RETRY, reason)


async def keep(
    conn: Connection, source: bytes, recipe: str, made: Blob, inline: bytes | None, most: int
) -> bool:
    """Records a variant, with its bytes if they go inside, in one commit.

    False: it is there already, the source has `most` variants, or the source was deleted. Should
    the bytes be deleted meanwhile, the foreign key refuses (asyncpg.ForeignKeyViolationError).
    """
    async with conn.transaction():
        if await conn.fetchrow(LOCK, source) is None:
            return False
        facts = made.facts
        return bool(
            await conn.fetchval(
                KEEP, source, recipe, most, made.sha256, made.size, made.place, facts.mimetype,
                facts.width, facts.height, inline,
            )
        )  # fmt: skip


async def recipes(conn: Connection, source: bytes) -> set[str]:
    """By which recipes pictures were made of a blob."""
    return {row["recipe"] for row in await conn.fetch(MADE, source)}


async def is_busy(conn: Connection, much: int) -> bool:
    """True while so many media are due to be archived."""
    return bool(await conn.fetchval(IS_BUSY, much))


async def counts(conn: Connection) -> list[Row]:
    """Blobs that wait for their pictures, and those that got none."""
    return await conn.fetch(COUNTS)


def _blob(sha256: bytes | None, size: int, place: str, mimetype: str | None) -> Blob | None:
    return Blob(sha256, size, Place(place), Facts(mimetype)) if sha256 else None
