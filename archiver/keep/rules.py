"""Which media rules of retention let go. Nothing here reads or changes anything."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from archiver.catalogue.retention import Naming, Stored
from archiver.config.retention import Rule

# These go by rules alone that name their kind.
SPARED = frozenset({"sticker", "emoticon", "avatar", "pack_image"})
HOUR = 3600


class Verdict(NamedTuple):
    """`rule`: the number, from 1, of the rule that lets it go; None: it stays. `quotas`: the
    rules with a quota that it counts for, and that have to agree; `rooms`: such rules whose quota
    is a room's, with the room."""

    rule: int | None
    quotas: frozenset[int]
    rooms: frozenset[tuple[int, str]] = frozenset()


def judge(rules: Sequence[Rule], server_name: str, media: Stored, now: datetime) -> Verdict:
    """A media goes when the first rule that matches does so for every event that names it; never
    while it is what a room shows at present, nor when no event names it."""
    decisive = [
        (_first(rules, server_name, media, naming), naming)
        for naming in sorted(media.namings, key=lambda naming: naming.sent_at)
    ]
    numbers = {number for number, _ in decisive if number}
    quotas = frozenset(number for number in numbers if rules[number - 1].quota is not None)
    rooms = frozenset(
        (number, naming.room_id)
        for number, naming in decisive
        if number and naming.room_id and rules[number - 1].quota_per_room is not None
    )
    goes = decisive and all(
        number and not naming.present and _is_over(rules[number - 1], media, naming, now)
        for number, naming in decisive
    )
    return Verdict(decisive[-1][0] if goes else None, quotas, rooms)


def reason(rules: Sequence[Rule], number: int) -> str:
    """Why a media went, as its tombstone tells: `retention: rule 2 (keep 90 d)`."""
    return f"retention: {label(rules, number)}"


def label(rules: Sequence[Rule], number: int) -> str:
    """A rule by its number and what it says."""
    return f"rule {number} ({rules[number - 1].says})"


class Cut:
    """Since when those were not used that have to go: all up to the hour `last`, and of that as
    many bytes as `rest`. Who was used in the same hour goes in any order."""

    def __init__(self, last: int = -1, rest: int = 0) -> None:
        self._last = last
        self._rest = rest

    def wants(self, media: Stored) -> bool:
        """True when the media is to make room, unless `give` said that there is enough by now."""
        hour = hour_of(media)
        return hour < self._last or (hour == self._last and self._rest > 0)

    def give(self, media: Stored) -> None:
        """The media goes."""
        if hour_of(media) == self._last:
            self._rest -= media.size


class Quota(Cut):
    """What a rule's media come to. It remembers sums by the hour, not media."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._total = 0
        self._hours: dict[int, int] = defaultdict(int)

    def count(self, media: Stored, *, may_go: bool) -> None:
        """Adds one of the rule's media."""
        self._total += media.size
        if may_go:
            self._hours[hour_of(media)] += media.size

    def settle(self) -> None:
        """All have been counted."""
        over = self._total - self._limit
        for hour in sorted(self._hours):
            if over <= 0:
                return
            self._last, self._rest = hour, over
            over -= self._hours[hour]


def hour_of(media: Stored) -> int:
    """When it was used last, in hours."""
    return int(media.used_at.timestamp()) // HOUR


def _first(rules: Sequence[Rule], server_name: str, media: Stored, naming: Naming) -> int | None:
    remote = media.mxc.server_name != server_name
    for number, rule in enumerate(rules, 1):
        if (
            rule.room in (None, naming.room_id)
            and rule.sender in (None, naming.sender)
            and rule.remote in (None, remote)
            and (naming.kind == rule.kind if rule.kind else naming.kind not in SPARED)
            and (rule.larger_than is None or media.size > rule.larger_than)
            and _is_of_type(naming.mimetype, rule.mimetype)
        ):
            return number
    return None


def _is_of_type(mimetype: str | None, wanted: str | None) -> bool:
    if wanted is None or mimetype == wanted:
        return True
    return wanted.endswith("/*") and (mimetype or "").startswith(wanted[:-1])


def _is_over(rule: Rule, media: Stored, naming: Naming, now: datetime) -> bool:
    """A quota is asked later, of all its media together."""
    if rule.quota is not None:
        return True
    if rule.quota_per_room is not None:
        return naming.room_id is not None
    if rule.keep_unread is not None:
        return now - media.used_at >= rule.keep_unread
    return rule.keep is not None and now - naming.sent_at >= rule.keep
