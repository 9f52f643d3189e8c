"""What reading a page of a room's history means, whichever way it is read.

Live intake runs in the same process and on the same loop, so nothing here keeps it for long: a
large body is parsed in a thread, and its events are taken apart a few at a time.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from archiver.capture.batch import Batch, NotJSON
from archiver.capture.policy import CapturePolicy
from archiver.capture.rows import Kept, keep_one
from archiver.errors import Retryable

# Parsed on the loop up to here: less than a millisecond.
SMALL_BODY = 64 * 1024
EVENTS_AT_ONCE = 50


class ClaimLost(Exception):
    """Another worker has the room now; nothing of the last page was written."""


class Page(NamedTuple):
    """Some events in the order in which they were asked for, and where the reading goes on.

    `end` is None when there is nothing more in that direction.
    https://spec.matrix.org/v1.16/client-server-api/#get_matrixclientv3roomsroomidmessages
    """

    events: Batch
    start: str | None
    end: str | None

    def times(self) -> list[datetime]:
        """When its events were sent, by their senders' own word; without those that tell no time
        that could be true."""
        now = datetime.now(UTC)
        sent = (_sent_at(event) for event in self.events.events)
        return [at for at in sent if at is not None and at <= now]

    def middle(self) -> datetime | None:
        """The median of its times, of which any one may be untrue."""
        times = sorted(self.times())
        return times[len(times) // 2] if times else None


async def read_page(body: bytes, key: str = "chunk") -> Page:
    """A page from the body of an answer that has its events under `key`.

    Any event may be hostile. Raises Retryable when the body as a whole is no page.
    """
    large = len(body) > SMALL_BODY
    try:
        return await asyncio.to_thread(_parse, body, key) if large else _parse(body, key)
    except NotJSON as error:
        raise Retryable(f"what the homeserver sent is no page of events: {error}") from error


async def keep_page(events: Batch, policy: CapturePolicy) -> list[Kept]:
    """What is to be kept of a page, while others have their turn on the loop. Raises Retryable
    where the bytes of an event cannot be told from its neighbours'."""
    found: list[Kept] = []
    for index in range(len(events.events)):
        if index % EVENTS_AT_ONCE == EVENTS_AT_ONCE - 1:
            await asyncio.sleep(0)
        try:
            kept = keep_one(events, index, policy)
        except NotJSON as error:
            raise Retryable(f"what the homeserver sent is no page of events: {error}") from error
        if kept is not None:
            found.append(kept)
    return found


def _parse(body: bytes, key: str) -> Page:
    events = Batch(body, key)
    # Where each event is takes long to find: here rather than when one is asked for its bytes.
    apart = not events.exact or rb"\u0000" in body
    fields = events.fields if apart else orjson.loads(body)
    return Page(events, _token(fields.get("start")), _token(fields.get("end")))


def _token(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _sent_at(event: Any) -> datetime | None:
    milliseconds = event.get("origin_server_ts") if isinstance(event, dict) else None
    if type(milliseconds) is not int or not 0 <= milliseconds <= 253_402_300_799_000:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
