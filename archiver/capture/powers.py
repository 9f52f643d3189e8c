"""Who may do what in a room, as its state says. Pure and total: a content may be any JSON value.

https://spec.matrix.org/v1.16/client-server-api/#mroompower_levels
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

REDACT = 50  # where the room does not say


class Powers(NamedTuple):
    """The contents of `m.room.power_levels` (None: there is none) and of `m.room.create`, and who
    sent the latter (None: unknown)."""

    levels: Any = None
    create: Any = None
    creator: str | None = None

    def may_redact(self, user_id: str | None) -> bool:
        """True when this user may redact what others sent."""
        levels = self.levels if isinstance(self.levels, dict) else {}
        return user_id is not None and self.level(user_id) >= _number(levels.get("redact"), REDACT)

    def level(self, user_id: str) -> float:
        """The power of a user; infinite for who made a room of version 12 or later."""
        create = self.create if isinstance(self.create, dict) else {}
        # Room version 12: https://spec.matrix.org/v1.16/rooms/v12/#room-creators-have-infinite-power-levels
        if _version(create) >= 12:
            additional = create.get("additional_creators")
            if user_id == self.creator or (isinstance(additional, list) and user_id in additional):
                return math.inf
        if not isinstance(self.levels, dict):
            # Until version 10 the creator is named: https://spec.matrix.org/v1.16/rooms/v11/
            named = create.get("creator") if _version(create) < 11 else None
            return 100 if user_id == (named or self.creator) else 0
        users = self.levels.get("users")
        default = _number(self.levels.get("users_default"), 0)
        return _number(users.get(user_id), default) if isinstance(users, dict) else default


def _version(create: dict[str, Any]) -> int:
    """The room version; one that is no number is taken for the first."""
    version = create.get("room_version")
    if isinstance(version, str) and len(version) < 4 and version.isdecimal():
        return int(version)
    return 1


def _number(value: Any, default: float) -> float:
    """A power level. Until room version 9 it may be written as text or as a fraction."""
    if isinstance(value, str):
        digits = value.strip().removeprefix("-")
        if digits.isdecimal() and len(digits) < 20:
            return int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return default
