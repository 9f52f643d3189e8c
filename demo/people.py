"""Who posts in the demo, and what."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from tests.support.encrypted import encrypt
from tests.support.matrix import MatrixUser
from tests.support.samples import film, png, wav

POLL_START = "org.matrix.msc3381.poll.start"
POLL_RESPONSE = "org.matrix.msc3381.poll.response"
LARGE = 6 * 1024 * 1024  # over storage.inline_limit


@dataclass(frozen=True)
class Posted:
    """A media that somebody posted."""

    what: str
    where: str
    mxc: str
    data: bytes
    filename: str
    file: dict[str, Any] | None = None


class People:
    """Three users, a room of all and a room of two. The archive's bot is in neither."""

    def __init__(self, admin: MatrixUser, alice: MatrixUser, bob: MatrixUser) -> None:
        self.admin, self.alice, self.bob = admin, alice, bob
        self.room = self.direct = ""
        self.posted: list[Posted] = []
        self.poll_events = 0

    async def gather(self) -> None:
        """Alice opens a private room for everybody, and one for Bob alone."""
        self.room = await self.alice.create_room(
            name="The garden", invite=[self.bob.user_id, self.admin.user_id]
        )
        self.direct = await self.alice.create_room(is_direct=True, invite=[self.bob.user_id])
        await self.bob.join(self.room)
        await self.admin.join(self.room)
        await self.bob.join(self.direct)

    async def post(self) -> None:
        """Everything that the archive is there for."""
        alice, bob, room = self.alice, self.bob, self.room
        picture = await self._upload(
            alice, "image", "room", png(640, 480, (90, 170, 60)), "rose.png"
        )
        await alice.send_image(room, picture, "rose.png")
        private = await self._upload(
            bob, "image in a DM", "DM", png(320, 240, (20, 90, 190)), "sea.png"
        )
        await bob.send_image(self.direct, private, "sea.png")
        await self._file(bob, "file over the limit", secrets.token_bytes(LARGE), "plan.bin")
        await self._file(alice, "audio", wav(2), "bees.wav", "m.audio", "audio/wav")
        await self._file(bob, "video", film(5), "swing.mov", "m.video", "video/quicktime")
        sticker = await self._upload(
            alice, "sticker", "room", png(128, 128, (250, 200, 0)), "sun.png"
        )
        await alice.send(room, "m.sticker", {"body": "sun", "url": sticker, "info": {}})
        await self._edit()
        await self._gallery()
        await self._poll()
        await self._encrypted()

    async def _edit(self) -> None:
        before = await self._upload(
            self.bob, "edited: before", "room", png(200, 100, (200, 0, 0)), "a.png"
        )
        event_id = await self.bob.send_image(self.room, before, "a.png")
        after = await self._upload(
            self.bob, "edited: after", "room", png(200, 100, (0, 200, 0)), "b.png"
        )
        new = {"msgtype": "m.image", "body": "b.png", "url": after}
        relation = {"rel_type": "m.replace", "event_id": event_id}
        content = {**new, "body": "* b.png", "m.new_content": new, "m.relates_to": relation}
        await self.bob.send(self.room, "m.room.message", content)

    async def _gallery(self) -> None:
        items = []
        for number in (1, 2):
            data = png(100 * number, 100, (0, 120, 120))
            name = f"bed-{number}.png"
            mxc = await self._upload(self.alice, f"gallery {number}", "room", data, name)
            items.append({"itemtype": "m.image", "body": name, "url": mxc, "info": {}})
        content = {"msgtype": "dm.filament.gallery", "body": "Two beds", "itemtypes": items}
        await self.alice.send(self.room, "m.room.message", content)

    async def _poll(self) -> None:
        answers = [{"id": name, "org.matrix.msc1767.text": name} for name in ("tulips", "beans")]
        start = {
            "question": {"org.matrix.msc1767.text": "What do we plant?"},
            "kind": "org.matrix.msc3381.poll.disclosed",
            "max_selections": 1,
            "answers": answers,
        }
        text = "What do we plant?"
        poll = await self.alice.send(
            self.room, POLL_START, {POLL_START: start, "org.matrix.msc1767.text": text}
        )
        relation = {"rel_type": "m.reference", "event_id": poll}
        content = {POLL_RESPONSE: {"answers": ["beans"]}, "m.relates_to": relation}
        await self.bob.send(self.room, POLL_RESPONSE, content)
        self.poll_events = 2

    async def _encrypted(self) -> None:
        data, file = encrypt(png(400, 300, (120, 60, 160)))
        mxc = await self._upload(
            self.alice,
            "encrypted attachment",
            "DM",
            data,
            "secret",
            "application/octet-stream",
            file,
        )
        content = {"msgtype": "m.image", "body": "secret.png", "file": {**file, "url": mxc}}
        await self.alice.send(self.direct, "m.room.message", content)

    async def _file(
        self,
        user: MatrixUser,
        what: str,
        data: bytes,
        name: str,
        msgtype: str = "m.file",
        content_type: str = "application/octet-stream",
    ) -> None:
        mxc = await self._upload(user, what, "room", data, name, content_type)
        info = {"mimetype": content_type, "size": len(data)}
        content = {"msgtype": msgtype, "body": name, "url": mxc, "info": info}
        await user.send(self.room, "m.room.message", content)

    async def _upload(
        self,
        user: MatrixUser,
        what: str,
        where: str,
        data: bytes,
        name: str,
        content_type: str = "image/png",
        file: dict[str, Any] | None = None,
    ) -> str:
        mxc = await user.upload(data, content_type, name)
        self.posted.append(Posted(what, where, mxc, data, name, file))
        return mxc
