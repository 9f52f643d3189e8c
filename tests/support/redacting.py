"""Events that are edited and redacted, as a homeserver tells of them, and their rows."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import orjson

from archiver.capture.batch import Batch
from archiver.capture.policy import CapturePolicy
from archiver.capture.record import Recorded, record
from archiver.capture.rows import keep
from archiver.keep.redactions import Redactor
from archiver.model import Mxc, Source

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool, Row

SERVER = "remote.example"
ROOM = "!room"
ALICE = f"@alice:{SERVER}"
MODERATOR = f"@moderator:{SERVER}"
EVERYTHING = CapturePolicy(SERVER)

Event = dict[str, Any]


def image(event_id: str, *media: str, caption: str = "look", **fields: Any) -> Event:
    """An image of Alice's; of several media the second is its thumbnail."""
    names = media or ("cat",)
    content: Event = {"msgtype": "m.image", "body": caption, "filename": "cat.jpg"}
    content["url"] = f"mxc://{SERVER}/{names[0]}"
    if names[1:]:
        content["info"] = {"thumbnail_url": f"mxc://{SERVER}/{names[1]}"}
    return _event(event_id, "m.room.message", content) | fields


def edit(event_id: str, original: str, media: str, **fields: Any) -> Event:
    """Alice puts another image in the place of the original's."""
    event = image(event_id, media)
    event["content"]["m.new_content"] = image(event_id, media)["content"]
    event["content"]["m.relates_to"] = {"rel_type": "m.replace", "event_id": original}
    return event | fields


def redaction(event_id: str, target: str, reason: str = "spam", **fields: Any) -> Event:
    """The moderator redacts an event, as rooms of version 11 and later have it."""
    content = {"redacts": target, "reason": reason}
    return _event(event_id, "m.room.redaction", content) | {"sender": MODERATOR} | fields


def emptied(event: Event, by: Event) -> Event:
    """The event as the homeserver tells of it after its redaction."""
    return {**event, "content": {}, "unsigned": {"redacted_because": by}}


def _event(event_id: str, kind: str, content: Event) -> Event:
    return {
        "event_id": event_id,
        "room_id": ROOM,
        "sender": ALICE,
        "type": kind,
        "origin_server_ts": 1_700_000_000_000,
        "content": content,
    }


async def put(conn: Connection, *events: Event, source: Source = Source.PUSH) -> Recorded:
    """Records events as one batch."""
    batch = Batch(orjson.dumps({"events": events}))
    return await record(conn, keep(batch, EVERYTHING), source, EVERYTHING)


async def push(pool: Pool, *events: Event) -> Recorded:
    """Records events as one transaction of the homeserver's."""
    async with pool.acquire() as conn:
        return await put(conn, *events)


async def redact(pool: Pool) -> None:
    """Works out what is due."""
    while await Redactor(pool).work():
        pass


async def pass_time(pool: Pool, time: timedelta) -> None:
    """Everything that happened is longer ago, and everything that is to come is closer."""
    await pool.execute("UPDATE event SET received_at = received_at - $1::interval", time)
    await pool.execute("UPDATE event SET redacted_at = redacted_at - $1::interval", time)
    await pool.execute("UPDATE redaction_due SET due_at = due_at - $1::interval", time)
    await pool.execute("UPDATE garbage SET due_at = due_at - $1::interval", time)
    await pool.execute(
        "UPDATE media SET redacted_at = redacted_at - $1::interval",
        time,
    )


async def redacted_by(pool: Pool) -> dict[str, str | None]:
    """Which redaction each event was redacted by."""
    rows = await pool.fetch(
        "SELECT event_id, redacted_by FROM event WHERE type <> 'm.room.redaction'"
    )
    return {row["event_id"]: row["redacted_by"] for row in rows}


async def hinted(pool: Pool) -> set[str]:
    """The ids of media that only redacted events name, as far as their rows know."""
    rows = await pool.fetch("SELECT media_id FROM media WHERE redacted_at IS NOT NULL")
    return {row["media_id"] for row in rows}


async def media_row(pool: Pool, media_id: str) -> Row:
    """The row of a media."""
    row = await pool.fetchrow(
        "SELECT * FROM media WHERE (server_name, media_id) = ($1, $2)", *mxc(media_id)
    )
    assert row is not None
    return row


def mxc(media_id: str) -> Mxc:
    """A media that the events here name."""
    return Mxc(SERVER, media_id)
