"""What an archive has to hold, in plain words, beside the one that a test works on.

It knows nothing of tables, stores and transactions: who posted what, what was said about it, and
what became of each media because of that.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

EXPIRES = 50  # days since it was posted
UNREAD = 2  # of the model's days since it was read, or else came
# Days ago, first and last: of what was posted then, or pushed, which is always today.
SPANS = {"long ago": (100.5, 99.5), "today": (0.5, -0.5)}


class Said(NamedTuple):
    """A target: `kind` is mxc, event, user, room, hash or span. Of a hash it is a number of
    `BODIES`, of a span its name."""

    kind: str
    value: str | int


@dataclass(frozen=True)
class Posted:
    """An event that names media, `days` ago: an image, a sticker, or its sender's avatar.
    `redacted`: on which day of the model's."""

    room: str
    sender: str
    names: tuple[str, ...]
    kind: str
    days: int
    pushed: bool
    replaces: str | None = None
    redacted: int | None = None
    wordy: bool = True


class Fate(NamedTuple):
    """Of a media: its state, which bytes it has, and whether no posting brings it back."""

    state: str
    body: int | None = None
    for_ever: bool = False


class Facts(NamedTuple):
    """What can be seen of an archive from outside."""

    fates: dict[str, Fate]
    wordy: dict[str, bool]
    refused: set[int]
    variants: dict[tuple[int, str], int]


@dataclass
class World:
    """`bodies` are those that the homeserver has, by media. Days pass by `a_day_later` alone."""

    bodies: dict[str, int]
    events: dict[str, Posted] = field(default_factory=dict)
    fates: dict[str, Fate] = field(default_factory=dict)
    due: set[str] = field(default_factory=set)
    claims: dict[str, int] = field(default_factory=dict)
    since: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    holds: set[Said] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    variants: dict[tuple[int, str], int] = field(default_factory=dict)
    day: int = 0

    def copy(self) -> World:
        """Another one, to be changed."""
        return deepcopy(self)

    def facts(self) -> Facts:
        """What must be seen."""
        wordy = {event_id: event.wordy for event_id, event in self.events.items()}
        return Facts(self.fates, wordy, self.refused, self.variants)

    def kept(self) -> set[int]:
        """The bytes that must be there: some media has them, or they were made of such ones."""
        kept = {fate.body for fate in self.fates.values() if fate.body is not None}
        while more := {made for (of, _), made in self.variants.items() if of in kept} - kept:
            kept |= more
        return kept

    def waiting(self) -> set[str]:
        """What a worker may take."""
        return {name for name in self.due if self.fates[name].state == "pending"}

    def is_hidden(self, name: str) -> bool:
        """All events that name it were redacted."""
        return all(event.redacted is not None for event in self._naming(name).values())

    def is_held(self, name: str) -> bool:
        """A hold is on the media, its bytes, or an event that names it."""
        if self._is_held_itself(name):
            return True
        return any(self._is_event_held(*named) for named in self._naming(name).items())

    def post(self, event_id: str, event: Posted) -> None:
        """Somebody posts; what only redactions deleted is wanted again."""
        self.events[event_id] = event
        for name in event.names:
            fate = self.fates.get(name)
            if fate is None or (fate.state == "deleted" and not fate.for_ever):
                self.fates[name] = Fate("pending")
                self.due.add(name)

    def redact(self, event_id: str) -> None:
        """With the edits of it."""
        meant = [
            other
            for other, event in self.events.items()
            if event.redacted is None and event_id in (other, event.replaces)
        ]
        for other in meant:
            self.events[other] = replace(self.events[other], redacted=self.day)
        for name in {name for other in meant for name in self.events[other].names}:
            if self.is_hidden(name) and self.fates[name].state != "deleted":
                self.since[name] = self.day

    def came(self, name: str, claim: int) -> None:
        """A worker has fetched it; that counts while its claim is the last one."""
        if self.fates[name].state == "pending" and self.claims.get(name) == claim:
            body = self.bodies[name]
            self.fates[name] = Fate("quarantined" if body in self.refused else "ready", body)
            self.used[name] = self.day

    def read(self, name: str) -> None:
        """Somebody was given it."""
        self.used[name] = self.day

    def make(self, of: int, recipe: str, made: int) -> None:
        """A picture was made of bytes that are still there."""
        if of in self.kept():
            self.variants.setdefault((of, recipe), made)

    def set_aside(self, target: Said) -> None:
        """Quarantine; bytes are refused from then on."""
        if target.kind == "hash":
            self.refused.add(int(target.value))
        for name in self._meant(target):
            if self.fates[name].state in ("ready", "pending"):
                self.fates[name] = self.fates[name]._replace(state="quarantined")

    def give_back(self, target: Said) -> None:
        """The end of a quarantine, but not of that of refused bytes."""
        if target.kind == "hash":
            self.refused.discard(int(target.value))
        for name in self._meant(target):
            state, body, _ = self.fates[name]
            if state == "quarantined" and body not in self.refused:
                self.fates[name] = Fate("pending" if body is None else "ready", body)
                self.used[name] = self.day
                if body is None:
                    self.due.add(name)

    def erase(self, target: Said) -> None:
        """All that the target names and nobody else does, unless held; and the words."""
        mine = {key for key in self.events if self._is_of(target, key)}
        for name in self._meant(target):
            others = (key not in mine and event.wordy for key, event in self._naming(name).items())
            if not self.is_held(name) and (target.kind == "mxc" or not any(others)):
                self._delete(name, for_ever=True)
        self._empty(mine)
        self._forget_made()

    def expire(self) -> None:
        """Retention: what was posted long ago goes, stickers aside, and faces that are shown."""
        for name, fate in self.fates.items():
            old = (
                event.kind != "sticker" and event.days >= EXPIRES and not self._is_shown(event)
                for event in self._naming(name).values()
            )
            if fate.state == "ready" and all(old) and not self.is_held(name):
                self._delete(name, for_ever=True)
        self._forget_made()

    def expire_unread(self) -> None:
        """Retention: what nobody read for long goes, stickers and all faces aside."""
        for name, fate in self.fates.items():
            images = (event.kind == "image" for event in self._naming(name).values())
            unread = self.day - self.used.get(name, self.day) >= UNREAD
            if fate.state == "ready" and unread and all(images) and not self.is_held(name):
                self._delete(name, for_ever=True)
        self._forget_made()

    def tidy(self) -> None:
        """What was redacted before today goes, unless held or posted again; and its words."""
        for name, since in list(self.since.items()):
            if since == self.day or self.fates[name].state == "deleted":
                continue
            if not self.is_hidden(name):
                del self.since[name]
            elif not self.is_held(name):
                self._delete(name, for_ever=False)
        self._empty(
            key
            for key, event in self.events.items()
            if event.redacted is not None and event.redacted < self.day
        )
        self._forget_made()

    def a_day_later(self) -> None:
        """Leases have run out, periods of grace as well."""
        self.day += 1
        self.due |= {name for name, fate in self.fates.items() if fate.state == "pending"}

    def between(self, after: World, seen: Facts) -> World:
        """Whoever was to bring about `after` died: of each thing either was done or was not."""
        world = after.copy()
        for name, fate in seen.fates.items():
            ours = self if fate == self.fates.get(name) else after
            assert fate == ours.fates[name], f"{name} is {fate}"
            world.fates[name] = fate
            world.since.pop(name, None)
            if name in ours.since:
                world.since[name] = ours.since[name]
            if name in ours.used:
                world.used[name] = ours.used[name]
        for key, wordy in seen.wordy.items():
            assert wordy in (self.events[key].wordy, after.events[key].wordy), f"{key}: {wordy}"
            world.events[key] = replace(after.events[key], wordy=wordy)
        assert seen.refused in (self.refused, after.refused), seen.refused
        world.refused = set(seen.refused)
        both = self.variants | after.variants
        world.variants = {key: both[key] for key in seen.variants if key in both}
        assert self.variants.keys() & after.variants.keys() <= world.variants.keys()
        world._forget_made()
        return world

    def _naming(self, name: str) -> dict[str, Posted]:
        return {key: event for key, event in self.events.items() if name in event.names}

    def _meant(self, target: Said) -> list[str]:
        if target.kind == "mxc":
            return [str(target.value)] if target.value in self.fates else []
        if target.kind == "hash":
            return [name for name, fate in self.fates.items() if fate.body == target.value]
        mine = [event for key, event in self.events.items() if self._is_of(target, key)]
        return sorted({name for event in mine for name in event.names})

    def _is_of(self, target: Said, key: str) -> bool:
        event = self.events[key]
        return {
            "event": target.value in (key, event.replaces),
            "user": target.value == event.sender,
            "room": target.value == event.room,
        }.get(target.kind, False)

    def _is_shown(self, event: Posted) -> bool:
        """It is the face that its sender has in the room."""
        return (
            event.kind == "avatar"
            and event.redacted is None
            and not any(
                (other.kind, other.room, other.sender) == ("avatar", event.room, event.sender)
                and other.days < event.days
                for other in self.events.values()
            )
        )

    def _is_held_itself(self, name: str) -> bool:
        body = self.fates[name].body
        return Said("mxc", name) in self.holds or (
            body is not None and Said("hash", body) in self.holds
        )

    def _is_event_held(self, key: str, event: Posted) -> bool:
        spans = [SPANS[str(held.value)] for held in self.holds if held.kind == "span"]
        return any(self._is_of(held, key) for held in self.holds) or any(
            first >= days > last
            for first, last in spans
            for days in ((event.days, 0) if event.pushed else (event.days,))
        )

    def _delete(self, name: str, *, for_ever: bool) -> None:
        self.fates[name] = Fate("deleted", None, for_ever or self.fates[name].for_ever)

    def _empty(self, keys: Iterable[str]) -> None:
        for key in list(keys):
            event = self.events[key]
            held = any(map(self._is_held_itself, event.names))
            if not held and not self._is_event_held(key, event):
                self.events[key] = replace(event, wordy=False)

    def _forget_made(self) -> None:
        kept = self.kept()
        self.variants = {key: made for key, made in self.variants.items() if key[0] in kept}
