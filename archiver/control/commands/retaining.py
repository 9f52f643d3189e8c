"""What rules of retention let go."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any, NamedTuple

from archiver.catalogue.room_use import Over
from archiver.control.asked import Asked
from archiver.control.commands.verifying import Notice
from archiver.control.definition import command
from archiver.control.reply import Reply, Table, said
from archiver.control.words import moment, plural
from archiver.errors import Cancelled, OperationError
from archiver.keep.gentle import gently
from archiver.keep.quarantine import Who
from archiver.keep.retention import Doomed, Retention
from archiver.keep.rules import label
from archiver.units import format_size

SHOWN = 20  # rooms


class _Share(NamedTuple):
    """What goes by one rule."""

    media: int = 0
    size: int = 0
    oldest: datetime | None = None

    def plus(self, one: Doomed) -> _Share:
        """With this one."""
        oldest = min(self.oldest or one.posted_at, one.posted_at)
        return _Share(self.media + 1, self.size + one.media.size, oldest)


@command("retention plan", long=True)
async def plan(asked: Asked) -> Reply:
    """Tell what the rules of retention would let go now, rule by rule; nothing is deleted.

    Bytes that others share are counted, though they stay. The largest rooms over the quota of each
    room are shown as well; what is posted in several goes when it has to make room in all of them.
    """
    shares, over = await _planned(asked)
    if not shares:
        return said("There are no rules: everything is kept for ever.", data=[])
    media, size = sum(one.media for one in shares), sum(one.size for one in shares)
    rules = asked.means.config.retention.rules
    names = [label(rules, number) for number in range(1, len(rules) + 1)]
    rows = [
        (name, f"{share.media:,}", format_size(share.size), moment(share.oldest))
        for name, share in zip(names, shares, strict=True)
    ]
    data = [
        {"rule": name, **share._asdict(), "rooms_over": _rooms(over, number)}
        for number, (name, share) in enumerate(zip(names, shares, strict=True), 1)
    ]
    told = f"Now would go {_media(media, size)}." if media else "Now nothing would go."
    table = Table(("rule", "media", "bytes", "oldest"), tuple(rows))
    return said(told, table, *_shown(over, names), data=data)


async def ask_run(asked: Asked) -> Reply:
    """What would go."""
    told = await plan.run(asked)
    if not any(share["media"] for share in told.data):
        raise OperationError("no rule lets anything go now: see `retention plan`")
    return Reply(("This deletes for ever what the rules let go.", *told.parts), told.data)


@command("retention run", asks=ask_run, long=True)
async def run(asked: Asked) -> Reply:
    """Delete now what the rules of retention let go, without waiting for their time; asks first.

    What is held or quarantined stays. It does not come back when it is posted again.
    """
    who, notice, media, size = Who(asked.actor, asked.place), Notice(asked), 0, 0
    try:
        async with aclosing(gently(_retention(asked).run(who))) as pages:
            async for gone in pages:
                media, size = media + len(gone.media), size + gone.size
                await notice.show(f"Gone so far: {_media(media, size)}.")
    except Cancelled as error:
        told = f"Cancelled: {_media(media, size)} gone so far, the rest is left."
        raise Cancelled(told) from error
    return said(f"Deleted {_media(media, size)}.", data={"media": media, "size": size})


def _rooms(over: Sequence[Over], number: int) -> list[dict[str, Any]]:
    """The largest rooms over the quota of one rule."""
    found = [one for one in over if one.rule == number][:SHOWN]
    return [{"room_id": one.room_id, "size": one.size, "quota": one.quota} for one in found]


def _shown(over: Sequence[Over], names: Sequence[str]) -> list[str | Table]:
    if not over:
        return []
    rows = [
        (names[one.rule - 1], one.room_id, format_size(one.size), format_size(one.quota))
        for one in over[:SHOWN]
    ]
    more = f", of which the {SHOWN} largest are" if len(over) > SHOWN else ""
    told = f"{plural(len(over), 'room')} over the quota{more}:"
    return [told, Table(("rule", "room", "bytes", "quota"), tuple(rows))]


async def _planned(asked: Asked) -> tuple[Sequence[_Share], Sequence[Over]]:
    """One share a rule, and the rooms over their quota."""
    retention = _retention(asked)
    shares, notice = [_Share() for _ in asked.means.config.retention.rules], Notice(asked)
    async with aclosing(retention.plan()) as pages:
        async for page in pages:
            for one in page:
                shares[one.rule - 1] = shares[one.rule - 1].plus(one)
            await notice.show(f"Would go so far: {sum(one.media for one in shares):,} media.")
    return shares, retention.over


def _retention(asked: Asked) -> Retention:
    config = asked.means.config
    return Retention(asked.means.pool, config.retention.rules, config.homeserver.server_name)


def _media(media: int, size: int) -> str:
    return f"{media:,} media ({format_size(size)})"


COMMANDS = (plan, run)
