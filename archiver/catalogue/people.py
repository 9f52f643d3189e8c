"""People's names and faces, as they are and as they were, read from their memberships.

Only a membership that its own user wrote counts (`join`): an invitation is another's word.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from archiver.catalogue.knowledge import mxc_of, uri_of, words
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection

# Of `e`, an event: what its sender was called in its room when it was sent.
SENDER_NAME = """
(SELECT CASE WHEN n.redacted_by IS NULL AND jsonb_typeof(n.content -> 'displayname') = 'string'
             THEN left(n.content ->> 'displayname', 255) END
 FROM event AS n
 WHERE n.room_id = e.room_id AND n.type = 'm.room.member' AND n.state_key = e.sender
   AND n.sent_at <= e.sent_at AND n.content ->> 'membership' = 'join'
 ORDER BY n.sent_at DESC, n.event_id DESC LIMIT 1)
"""
# Of `e`: what its room is called now.
ROOM_NAME = """
(SELECT CASE WHEN n.redacted_by IS NULL AND jsonb_typeof(n.content -> 'name') = 'string'
             THEN left(n.content ->> 'name', 255) END
 FROM event AS n
 WHERE n.room_id = e.room_id AND n.type = 'm.room.name' AND n.state_key = ''
 ORDER BY n.sent_at DESC, n.event_id DESC LIMIT 1)
"""
FACES = """
SELECT room_id, sent_at, redacted_by IS NOT NULL AS redacted,
       CASE WHEN jsonb_typeof(content -> 'displayname') = 'string'
            THEN left(content ->> 'displayname', 255) END AS displayname,
       CASE WHEN jsonb_typeof(content -> 'avatar_url') = 'string'
            THEN left(content ->> 'avatar_url', 1024) END AS avatar
FROM event
WHERE type = 'm.room.member' AND state_key = $1 AND content ->> 'membership' = 'join'
  AND (redacted_by IS NULL OR $2) AND original IS NULL
ORDER BY sent_at DESC, event_id DESC LIMIT $3
"""

CHANGES = 5_000  # memberships looked at: one change of a profile writes one in every room


class Face(NamedTuple):
    """What a user is called and looks like."""

    displayname: str | None
    avatar: Mxc | None


async def face(conn: Connection, user_id: str) -> Face | None:
    """The present one of a user; None where nobody of that name was seen in a room."""
    row = await conn.fetchrow(FACES, user_id, False, 1)
    return Face(words(row["displayname"]), mxc_of(row["avatar"])) if row else None


async def faces(conn: Connection, user_id: str, *, also_redacted: bool) -> list[dict[str, Any]]:
    """What a user was called and looked like, the newest first: `since`, `rooms`, and the two.

    A change of a profile arrives once a room; together these are one.
    """
    rows = await conn.fetch(FACES, user_id, also_redacted, CHANGES)
    runs = (list(run) for _, run in groupby(rows, key=itemgetter("displayname", "avatar")))
    return [
        {
            "since": run[-1]["sent_at"],
            "displayname": words(run[0]["displayname"]),
            "avatar": uri_of(run[0]["avatar"]),
            "rooms": len({row["room_id"] for row in run}),
        }
        for run in runs
    ]
