"""What rules of retention are asked about: archived media, and all the events that name them.

Events that no rule can tell apart are read as one, the newest of them: so a picture that a
thousand people posted takes no more memory than another.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from archiver.catalogue.holds import MEDIA_IS_HELD
from archiver.catalogue.listing import TYPE
from archiver.catalogue.targets import columns
from archiver.model import Mxc

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

AT_ONCE = 300

_KIND = """
CASE WHEN r.role <> 'content' THEN r.role
     WHEN split_part(TYPE, '/', 1) = ANY('{image,video,audio}') THEN split_part(TYPE, '/', 1)
     ELSE 'file' END
""".replace("TYPE", TYPE)
# A thumbnail is of the kind of what it shows.
_KIND_OR_SHOWN = """
CASE WHEN r.role <> 'thumbnail' THEN KIND
     ELSE coalesce((
         SELECT KIND FROM reference AS r JOIN media AS m USING (server_name, media_id)
         LEFT JOIN blob AS b ON b.sha256 = m.blob_sha256
         WHERE r.event_id = e.event_id AND r.item = own.item AND r.role IN ('content', 'sticker')
         LIMIT 1), 'image') END
""".replace("KIND", _KIND)
# What a room's state says now: faces, the room's picture, packs of stickers.
_IS_PRESENT = """
e.state_key IS NOT NULL AND e.redacted_by IS NULL AND NOT EXISTS (
    SELECT FROM event AS n
    WHERE n.room_id = e.room_id AND n.type = e.type AND n.state_key = e.state_key
      AND n.sent_at > e.sent_at)
"""
FACTS = (
    """
SELECT m.server_name, m.media_id, b.size,
       coalesce(greatest(m.last_accessed, m.settled_at), m.created_at) AS used_at, f.*
FROM (CHOSEN) AS m
JOIN blob AS b ON b.sha256 = m.blob_sha256
LEFT JOIN LATERAL (
    SELECT CASE WHEN $1::text[] IS NULL OR e.room_id = ANY($1) THEN e.room_id END AS room_id,
           CASE WHEN e.sender = ANY($2::text[]) THEN e.sender END AS sender,
           KIND_OR_SHOWN AS kind, TYPE AS mimetype, max(e.sent_at) AS sent_at,
           bool_or(IS_PRESENT) AS present
    FROM reference AS r JOIN event AS e USING (event_id)
    CROSS JOIN LATERAL (SELECT r.item) AS own
    WHERE r.server_name = m.server_name AND r.media_id = m.media_id
    GROUP BY 1, 2, 3, 4
) AS f ON true
ORDER BY m.server_name, m.media_id
""".replace("KIND_OR_SHOWN", _KIND_OR_SHOWN)
    .replace("TYPE", TYPE)
    .replace("IS_PRESENT", _IS_PRESENT)
)
PAGE = FACTS.replace(
    "CHOSEN",
    """
    SELECT * FROM media
    WHERE state = 'ready' AND (server_name, media_id) > ($3, $4)
    ORDER BY server_name, media_id LIMIT $5
    """,
)
THESE = FACTS.replace(
    "CHOSEN",
    """
    SELECT x.* FROM unnest($3::text[], $4::text[]) AS named(server_name, media_id)
    JOIN media AS x USING (server_name, media_id) WHERE x.state = 'ready'
    """,
)
HELD = """
SELECT m.server_name, m.media_id
FROM unnest($1::text[], $2::text[]) AS named(server_name, media_id)
JOIN media AS m USING (server_name, media_id)
WHERE MEDIA_IS_HELD
""".replace("MEDIA_IS_HELD", MEDIA_IS_HELD)


class Naming(NamedTuple):
    """Events that name a media alike, and when the newest of them was posted. Rooms and senders
    that were not asked for are None. `present`: one is a room's state as it is now."""

    room_id: str | None
    sender: str | None
    kind: str
    mimetype: str | None
    sent_at: datetime
    present: bool = False


class Stored(NamedTuple):
    """An archived media. `used_at`: when it was last read, or else archived."""

    mxc: Mxc
    size: int
    used_at: datetime
    namings: list[Naming]


class Scope(NamedTuple):
    """The rooms and senders that rules name; None: each room counts by itself."""

    rooms: list[str] | None
    senders: list[str]


async def page(conn: Connection, scope: Scope, behind: Mxc) -> list[Stored]:
    """The next archived media by key; none: there are no more. Quarantined ones are not among
    them."""
    return _stored(await conn.fetch(PAGE, *scope, *behind, AT_ONCE))


async def these(conn: Connection, scope: Scope, media: Sequence[Mxc]) -> list[Stored]:
    """Those of the media that are archived."""
    return _stored(await conn.fetch(THESE, *scope, *columns(media)))


async def held(conn: Connection, media: Sequence[Mxc]) -> set[Mxc]:
    """Those of the media that are held."""
    return {Mxc(*row) for row in await conn.fetch(HELD, *columns(media))}


def _stored(rows: list[Row]) -> list[Stored]:
    found = []
    for (server_name, media_id, size, used_at), group in groupby(rows, itemgetter(0, 1, 2, 3)):
        namings = [Naming(*tuple(row)[4:]) for row in group if row["kind"] is not None]
        found.append(Stored(Mxc(server_name, media_id), size, used_at, namings))
    return found
