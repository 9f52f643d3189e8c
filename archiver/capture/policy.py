"""What the configuration leaves out on purpose. It stays visible, with its reason."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from archiver.model import Mxc

ROOM_EXCLUDED = "capture.rooms: this room is left out"
REMOTE_EXCLUDED = "capture.remote_media: media of other servers is left out"


@dataclass(frozen=True)
class CapturePolicy:
    """`capture.rooms` and `capture.remote_media`, as questions that events are asked."""

    server_name: str
    only: Collection[str] = ()
    excluded: Collection[str] = ()
    remote_media: bool = True

    def leaves_out_room(self, room_id: str | None) -> bool:
        """True when nothing of this room is to be archived."""
        return room_id in self.excluded or (bool(self.only) and room_id not in self.only)

    def leaves_out_media(self, mxc: Mxc) -> bool:
        """True when this media is another server's and those are not wanted."""
        return not self.remote_media and mxc.server_name != self.server_name
