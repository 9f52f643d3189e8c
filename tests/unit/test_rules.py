"""Rules of retention judge one media by all the events that name it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from archiver.catalogue.retention import Naming, Stored
from archiver.config.retention import Rule
from archiver.keep.rules import Quota, Verdict, judge, reason
from archiver.model import Mxc

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OURS = "example.com"
MIB = 1024 * 1024
STAYS = Verdict(None, frozenset())
ROOM, BOB = "!room", "@bob:example.com"


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def naming(days: float = 100, **fields: Any) -> Naming:
    """An event that named an image so many days ago."""
    told = {"room_id": ROOM, "sender": None, "kind": "image", "mimetype": "image/png"}
    return Naming(**(told | {"sent_at": ago(days)} | fields))


def stored(*namings: Naming, used: float = 50, size: int = MIB, server: str = OURS) -> Stored:
    """A media that was last used so many days ago."""
    return Stored(Mxc(server, "cat"), size, ago(used), list(namings))


def rule(**fields: Any) -> Rule:
    return Rule.model_validate(fields)


GOES = rule(keep="90 d")


@pytest.mark.parametrize(
    ("rules", "media", "goes"),
    [
        ([], stored(naming()), None),
        ([rule()], stored(naming()), None),
        ([rule(keep="forever")], stored(naming()), None),
        ([GOES], stored(naming()), 1),
        ([GOES], stored(naming(90)), 1),
        ([GOES], stored(naming(89)), None),
        ([GOES], stored(), None),
        # Every event that names it
        ([GOES], stored(naming(200), naming(100)), 1),
        ([GOES], stored(naming(200), naming(10)), None),
        ([rule(room=ROOM, keep="1 d")], stored(naming(), naming(room_id=None)), None),
        ([rule(room=ROOM, keep="1 d"), GOES], stored(naming(95), naming(room_id=None)), 1),
        ([rule(room=ROOM, keep="1 d"), GOES], stored(naming(), naming(95, room_id=None)), 2),
        # The first that matches
        ([rule(room=ROOM), GOES], stored(naming()), None),
        ([rule(room="!other"), GOES], stored(naming()), 2),
        ([rule(keep="1000 d"), GOES], stored(naming()), None),
        # Conditions
        ([rule(sender=BOB, keep="1 d")], stored(naming(sender=BOB)), 1),
        ([rule(sender=BOB, keep="1 d")], stored(naming()), None),
        ([rule(kind="video", keep="1 d")], stored(naming()), None),
        ([rule(kind="image", keep="1 d")], stored(naming()), 1),
        ([rule(mimetype="image/*", keep="1 d")], stored(naming()), 1),
        ([rule(mimetype="IMAGE/PNG", keep="1 d")], stored(naming()), 1),
        ([rule(mimetype="image/gif", keep="1 d")], stored(naming()), None),
        ([rule(mimetype="image/*", keep="1 d")], stored(naming(mimetype=None)), None),
        ([rule(larger_than="1 MiB", keep="1 d")], stored(naming()), None),
        ([rule(larger_than="1 MiB", keep="1 d")], stored(naming(), size=MIB + 1), 1),
        ([rule(remote=True, keep="1 d")], stored(naming()), None),
        ([rule(remote=True, keep="1 d")], stored(naming(), server="other"), 1),
        ([rule(remote=False, keep="1 d")], stored(naming(), server="other"), None),
        ([rule(room=ROOM, sender=BOB, keep="1 d")], stored(naming()), None),
        # Since it was last read
        ([rule(keep_unread="50 d")], stored(naming(1)), 1),
        ([rule(keep_unread="51 d")], stored(naming(500)), None),
        # What rooms show
        *[([GOES], stored(naming(kind=kind)), None) for kind in ("sticker", "avatar", "emoticon")],
        ([rule(kind="sticker", keep="1 d")], stored(naming(kind="sticker")), 1),
        ([rule(kind="sticker", keep="1 d"), GOES], stored(naming(kind="sticker"), naming()), 2),
        ([GOES], stored(naming(kind="sticker"), naming()), None),
        ([rule(kind="avatar", keep="1 d")], stored(naming(kind="avatar", present=True)), None),
        ([GOES], stored(naming(kind="avatar", present=True), naming()), None),
    ],
)
def test_a_media_goes_when_every_event_lets_it(
    rules: list[Rule], media: Stored, goes: int | None
) -> None:
    """By the first rule that matches each of them; the newest one's rule is told."""
    assert judge(rules, OURS, media, NOW) == Verdict(goes, frozenset())


@pytest.mark.parametrize(
    ("media", "verdict"),
    [
        (stored(naming(1)), Verdict(1, frozenset({1}))),
        (stored(naming(1), naming(2, room_id="!other")), Verdict(1, frozenset({1, 2}))),
        (stored(naming(1), naming(2, room_id=None)), Verdict(None, frozenset({1}))),
        (stored(naming(1, present=True)), Verdict(None, frozenset({1}))),
        (stored(naming(1, room_id=None)), STAYS),
    ],
)
def test_a_quota_counts_what_it_may_not_delete(media: Stored, verdict: Verdict) -> None:
    """Every media that the rule matches counts for it; all quotas have to agree."""
    rules = [rule(room=ROOM, quota="1 GiB"), rule(room="!other", quota="2 GiB")]
    assert judge(rules, OURS, media, NOW) == verdict


@pytest.mark.parametrize(
    ("media", "verdict"),
    [
        (stored(naming(1)), Verdict(1, frozenset(), frozenset({(1, ROOM)}))),
        (
            stored(naming(1), naming(2, room_id="!b")),
            Verdict(1, frozenset(), frozenset({(1, ROOM), (1, "!b")})),
        ),
        (
            stored(naming(2), naming(1, kind="video")),
            Verdict(2, frozenset(), frozenset({(1, ROOM), (2, ROOM)})),
        ),
        (
            stored(naming(1), naming(1, kind="sticker")),
            Verdict(None, frozenset(), frozenset({(1, ROOM)})),
        ),
        (stored(naming(1, room_id=None)), STAYS),
    ],
)
def test_a_quota_of_each_room_is_asked_in_every_room(media: Stored, verdict: Verdict) -> None:
    """What was posted in none that is known stays."""
    rules = [rule(kind="image", quota_per_room="1 GiB"), rule(quota_per_room="2 GiB")]
    assert judge(rules, OURS, media, NOW) == verdict


@pytest.mark.parametrize(
    ("limit", "kept", "gone"),
    [
        (4, 0, []),
        (3, 0, [40]),
        (2, 0, [40, 30]),
        (0, 0, [40, 30, 20, 10]),
        (2, 2, [40, 30, 20, 10]),
    ],
)
def test_who_was_used_longest_ago_makes_room(limit: int, kept: int, gone: list[int]) -> None:
    """As many go as it takes, also for those that count and may not go."""
    media = [stored(used=days) for days in (10, 30, 20, 40)]
    quota = Quota(limit * MIB)
    for one in media:
        quota.count(one, may_go=True)
    for _ in range(kept):
        quota.count(stored(), may_go=False)
    quota.settle()
    assert sorted((NOW - one.used_at).days for one in media if quota.wants(one)) == sorted(gone)


def test_of_one_hour_no_more_go_than_have_to() -> None:
    """Within an hour in any order, until there is enough."""
    media = [stored(used=40) for _ in range(5)]
    quota, gone = Quota(3 * MIB + 1), 0
    for one in media:
        quota.count(one, may_go=True)
    quota.settle()
    for one in media:
        if quota.wants(one):
            quota.give(one)
            gone += 1
    assert gone == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "keep forever"),
        ({"keep": "90 d"}, "keep 90 d"),
        ({"keep": "2 w"}, "keep 14 d"),
        ({"keep": "36 h"}, "keep 36 h"),
        ({"keep": "90 min"}, "keep 90 min"),
        ({"keep_unread": "90 s"}, "keep_unread 90 s"),
        ({"quota": "10 GiB"}, "quota 10.0 GiB"),
        ({"quota_per_room": "1 GiB"}, "quota_per_room 1.0 GiB"),
    ],
)
def test_a_tombstone_tells_the_rule(fields: dict[str, str], words: str) -> None:
    """By its number, and what it says."""
    assert reason([rule(), rule(**fields)], 2) == f"retention: rule 2 ({words})"
