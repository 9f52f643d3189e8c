"""What people do in a test: a small client for one logged-in user, administrators included."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

CLIENT = "/_matrix/client/v3"
ADMIN = "/_synapse/admin/v1"


class MatrixError(Exception):
    """The homeserver refused; `status` and `errcode` say how."""

    def __init__(self, status: int, errcode: str, message: str) -> None:
        super().__init__(f"{status} {errcode}: {message}")
        self.status = status
        self.errcode = errcode


async def request(
    http: aiohttp.ClientSession, method: str, url: str, **options: Any
) -> dict[str, Any]:
    """One request with a JSON answer. Raises MatrixError unless the status is 2xx."""
    async with http.request(method, url, **options) as response:
        answer: dict[str, Any] = await response.json()
        if not response.ok:
            raise MatrixError(response.status, answer.get("errcode", ""), answer.get("error", ""))
        return answer


@dataclass(frozen=True)
class MatrixUser:
    """A user of the homeserver at `url`. Every call raises MatrixError when it is refused."""

    http: aiohttp.ClientSession
    url: str
    user_id: str
    access_token: str

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates this user's requests."""
        return {"Authorization": f"Bearer {self.access_token}"}

    async def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """A request as this user; `path` starts with a slash."""
        return await request(self.http, method, self.url + path, headers=self.headers, **options)

    async def create_room(self, **options: Any) -> str:
        """A room; `options` are the fields of createRoom. Returns the room id."""
        answer = await self.call("POST", f"{CLIENT}/createRoom", json=options)
        return str(answer["room_id"])

    async def join(self, room_id: str) -> None:
        """Joins a room that is public, or to which this user was invited."""
        await self.call("POST", f"{CLIENT}/join/{quote(room_id)}", json={})

    async def send(self, room_id: str, event_type: str, content: dict[str, Any]) -> str:
        """Sends an event and returns its id."""
        path = f"{CLIENT}/rooms/{quote(room_id)}/send/{event_type}/{uuid.uuid4().hex}"
        return str((await self.call("PUT", path, json=content))["event_id"])

    async def send_state(
        self, room_id: str, event_type: str, content: dict[str, Any], state_key: str = ""
    ) -> str:
        """Sends a state event and returns its id."""
        path = f"{CLIENT}/rooms/{quote(room_id)}/state/{event_type}/{quote(state_key)}"
        return str((await self.call("PUT", path, json=content))["event_id"])

    async def send_image(self, room_id: str, mxc: str, body: str = "image.png") -> str:
        """Sends an m.image that names `mxc` and returns the event's id."""
        content = {"msgtype": "m.image", "body": body, "url": mxc}
        return await self.send(room_id, "m.room.message", content)

    async def redact(self, room_id: str, event_id: str) -> str:
        """Redacts an event and returns the id of the redaction."""
        path = f"{CLIENT}/rooms/{quote(room_id)}/redact/{quote(event_id)}/{uuid.uuid4().hex}"
        return str((await self.call("PUT", path, json={}))["event_id"])

    async def upload(
        self, data: bytes, content_type: str = "image/png", filename: str = "image.png"
    ) -> str:
        """Uploads media and returns its mxc URI."""
        headers = {**self.headers, "Content-Type": content_type}
        url = f"{self.url}/_matrix/media/v3/upload"
        params = {"filename": filename}
        body = io.BytesIO(data)  # sent in pieces, which bytes would not be
        answer = await request(self.http, "POST", url, params=params, data=body, headers=headers)
        return str(answer["content_uri"])

    async def download(self, mxc: str) -> bytes:
        """The media's bytes as the homeserver has them."""
        url = f"{self.url}/_matrix/client/v1/media/download/{_path(mxc)}"
        async with self.http.get(url, headers=self.headers) as response:
            if not response.ok:
                answer = await response.json()
                raise MatrixError(response.status, answer["errcode"], answer["error"])
            return await response.read()

    async def delete_media(self, mxc: str) -> None:
        """As an administrator: the homeserver forgets a local media."""
        await self.call("DELETE", f"{ADMIN}/media/{_path(mxc)}")

    async def quarantine_media(self, mxc: str) -> None:
        """As an administrator: the homeserver hides a media."""
        await self.call("POST", f"{ADMIN}/media/quarantine/{_path(mxc)}", json={})

    async def make_admin(self, user_id: str) -> None:
        """As an administrator: makes another user one."""
        await self.call("PUT", f"{ADMIN}/users/{quote(user_id)}/admin", json={"admin": True})


def _path(mxc: str) -> str:
    return mxc.removeprefix("mxc://")
