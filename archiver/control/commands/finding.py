"""`find`: what was posted, by words and by who, where, what and when."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from archiver.catalogue import knowledge, lexemes, listing
from archiver.catalogue.knowledge import Room, words
from archiver.catalogue.wanted import Filter
from archiver.control.arguments import ROOM, USER, Target, settled
from archiver.control.asked import Asked
from archiver.control.dates import DATE
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import moment, plural, short
from archiver.errors import ConfigError
from archiver.media_types import essence
from archiver.model import Mxc, State
from archiver.units import format_size

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

MOST = 15
TEXT_MOST = 200
PAGES_MOST = 10  # each walks some thousand events

_MIMETYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/(\*|[a-z0-9][a-z0-9!#$&^_.+-]{0,126})")
_KINDS = ("image", "video", "audio", "file", "sticker", "thumbnail", "avatar", "emoticon",
          "pack_image", "preview")  # fmt: skip


class Kind(NamedTuple):
    """What a media is to be: of one kind, or of one media type or family of them."""

    kind: str | None = None
    mimetype: str | None = None
    family: str | None = None


class KindType(click.ParamType[Kind]):
    """A word like `image`, or a media type like `image/png` or `image/*`."""

    name = "type"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Kind:
        """Refuses what is neither, and says what there is."""
        text = essence(str(value))
        if text in _KINDS:
            return Kind(kind=text)
        if not _MIMETYPE.fullmatch(text):
            kinds = ", ".join(_KINDS[:-1])
            self.fail(
                f"{str(value)!r} is none of {kinds} and {_KINDS[-1]}, and no media type like "
                "image/png or image/*",
                param,
                ctx,
            )
        return Kind(family=text[:-1]) if text.endswith("/*") else Kind(mimetype=text)


@command("find")
@click.argument("text", nargs=-1)
@click.option("--user", type=USER, metavar="USER", help="Who posted it.")
@click.option("--room", type=ROOM, metavar="ROOM", help="Where it was posted.")
@click.option(
    "--type", "kind", type=KindType(), metavar="TYPE", help="image, video, audio, file, sticker…"
)
@click.option("--since", type=DATE, metavar="DATE", help="When at the earliest: 2024-05-31, 30d.")
async def find(
    asked: Asked,
    text: tuple[str, ...],
    user: Target | None,
    room: Target | None,
    kind: Kind | None,
    since: datetime | None,
) -> Reply:
    """Find media by words of its file name or caption, by who posted it, where, what and when.

    Shows the 15 newest. Words may be the beginnings of words; all of them must be there. TYPE is
    image, video, audio, file, sticker, avatar and so on, or a media type like image/png or
    video/*. DATE is like 2024-05-31, or how long ago, like 30d. `show` tells more of one.
    """
    room = await settled(room, asked.means.history) if room else None
    wanted = Filter(
        since=since,
        room_id=room and room.value,
        sender=user and user.value,
        words=_words(" ".join(text)) if text else None,
        **(kind or Kind())._asdict(),
    )
    if not any(wanted):
        raise ConfigError("say what to look for: words, or --user, --room, --type or --since")
    async with asked.means.pool.acquire() as conn:
        rows, more = await _newest(conn, wanted)
        count = await listing.count(conn, wanted, hides=False)
        known = {row["room_id"] for row in rows if row["room_id"] is not None}
        rooms = await knowledge.rooms(conn, sorted(known))
    data = [_found(row, rooms) for row in rows]
    if not data:
        unsure = " among the newest; narrow it down for older ones" if more else ""
        return said(f"Nothing like that was found{unsure}.", data=[])
    number = plural(count.matches, "match", "matches")
    number = number if count.exact else f"At least {number}"
    heading = f"{number}, the newest {len(data)}:" if more else f"{number}:"
    return said(heading, Table(("", "", "by", "", ""), tuple(map(_line, data))), data=data)


def _words(text: str) -> str:
    found = lexemes.query(text) if len(text) <= TEXT_MOST else None
    if found is None:
        raise ConfigError(
            f"{short(text)!r} holds no word to look for: give words of the file name or caption, "
            f"{TEXT_MOST} characters at most"
        )
    return found


async def _newest(conn: Connection, wanted: Filter) -> tuple[list[Row], bool]:
    """The newest, and whether there is, or may be, more."""
    rows: list[Row] = []
    behind = None
    for _ in range(PAGES_MOST):
        page = await listing.page(conn, wanted, behind, MOST - len(rows), hides=False)
        rows, behind = rows + page.rows, page.behind
        if behind is None or len(rows) >= MOST:
            break
    return rows, behind is not None


def _found(row: Row, rooms: dict[str, Room]) -> dict[str, Any]:
    room = rooms.get(row["room_id"])
    return {
        "mxc": str(Mxc(row["server_name"], row["media_id"])),
        "event_id": row["event_id"],
        "kind": row["kind"],
        "filename": row["filename"],
        "user_id": row["sender"],
        "displayname": words(row["sender_name"]),
        "room_id": row["room_id"],
        "room": room and room.name,
        "sent_at": row["sent_at"],
        "size": row["declared_size"] if row["size"] is None else row["size"],
        "state": row["state"],
        "reason": row["reason"],
        "redacted": row["redacted_by"] is not None,
    }


def _line(found: dict[str, Any]) -> tuple[str, ...]:
    name = short(found["filename"] or found["kind"])
    size = "" if found["size"] is None else format_size(found["size"])
    state = "" if found["state"] == State.READY else found["state"]
    redacted = "redacted" if found["redacted"] else ""
    who = short(found["displayname"] or found["user_id"] or "(unknown)")
    where = short(found["room"] or found["room_id"] or "(unknown)")
    return (
        name,
        ", ".join(filter(None, (size, state, redacted))),
        who,
        f"{where}, {moment(found['sent_at'])}",
        found["mxc"],
    )
