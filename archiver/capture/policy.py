"""What the configuration leaves out on purpose. It stays visible, with its reason."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from archiver.model import Mxc

ROOM_EXCLUDED = "capture.rooms: this room is left out"
REMOTE_EXCLUDED = "capture.remote_media: media of other servers is left out"


@dataclass(frozen=True)
class CapturePolicy:
    """`capture.rooms` and `capture.remote_media`, as questions that events are asked.

    `bot` is our own bot's user id, `prefix` what a command to it begins with.
    """

    server_name: str
    only: Collection[str] = ()
    excluded: Collection[str] = ()
    remote_media: bool = True
    bot: str = ""
    prefix: str = ""

    def leaves_out_sender(self, sender: object) -> bool:
        """True for our own bot: what it tells about the archive would be archived in circles."""
        return bool(self.bot) and sender == self.bot

    def leaves_out_room(self, room_id: str | None) -> bool:
        """True when nothing of this room is to be archived."""
        return room_id in self.excluded or (bool(self.only) and room_id not in self.only)

    def leaves_out_media(self, mxc: Mxc) -> bool:
        """True when this media is another server's and those are not wanted."""
        return not self.remote_media and mxc.server_name != self.server_name
