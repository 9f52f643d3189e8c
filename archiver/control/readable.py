"""Which rooms a command about the homeserver's history is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from archiver.control.arguments import Target, settled
from archiver.control.asked import Means
from archiver.errors import ConfigError
from archiver.matrix.history import History


class Rooms(NamedTuple):
    """The ids of the rooms to read, and how many are left out on purpose. Without `admin` the bot
    is no administrator of the homeserver, and reads the rooms alone that it is in."""

    room_ids: list[str]
    left_out: int
    admin: bool


async def ids_of(targets: Sequence[Target], history: History) -> list[str]:
    """The rooms, each once. Raises OperationError for an alias that names none."""
    rooms = [await settled(target, history) for target in targets]
    return list(dict.fromkeys(room.value for room in rooms))


async def readable(means: Means, targets: Sequence[Target]) -> Rooms:
    """These rooms, or without any all that the bot may read.

    Raises ConfigError for one that the configuration leaves out, OperationError for an alias that
    names none, and what `History` does.
    """
    admin = await means.history.is_admin()
    if not targets:
        rooms = await means.history.rooms()
        wanted = [room_id for room_id in rooms if not means.policy.leaves_out_room(room_id)]
        return Rooms(wanted, len(rooms) - len(wanted), admin)
    wanted = await ids_of(targets, means.history)
    for room_id in wanted:
        if means.policy.leaves_out_room(room_id):
            raise ConfigError(f"{room_id} is left out: change capture.rooms to have it archived")
    return Rooms(wanted, 0, admin)


def not_admin(url: str, bot: str) -> str:
    """What to do so that the bot may read every room of the homeserver at this URL."""
    return (
        f"{bot} is no administrator of the homeserver, so only the rooms that it is in can be "
        "read. To have every room read, an administrator makes it one, with the own access "
        f"token:\n  curl -X PUT -H 'Authorization: Bearer …' -d '{{\"admin\": true}}' "
        f"'{url}/_synapse/admin/v1/users/{bot}/admin'"
    )
