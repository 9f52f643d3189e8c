"""An archive between a homeserver that it archives from and a browser that shows it."""

from __future__ import annotations

import json

import aiohttp

from archiver.model import Mxc
from tests.support.archiver import Archiver, Reader
from tests.support.chromium import Page
from tests.support.homeserver import Answer, Homeserver, body, mxc
from tests.support.panel import Panel
from tests.support.scripted import Scripted


class Stage:
    """An archive that archived from a homeserver, a panel, and a page in a browser."""

    def __init__(
        self, archive: Archiver, reader: Reader, http: aiohttp.ClientSession,
        homeserver: Homeserver, panel: Panel, page: Page,
    ) -> None:  # fmt: skip
        self.reader = reader
        self.panel = panel
        self.page = page
        self._http = http
        self._archive = archive
        self._homeserver = homeserver

    async def archived(self, media_id: str, answer: Answer) -> Mxc:
        """A media that is ready, fetched by the archive's own worker."""
        media = mxc(media_id)
        self._homeserver.give(media, answer)
        content = {"url": str(media)}
        event = {"event_id": f"${media_id}", "type": "m.room.message", "content": content}
        pushed = json.dumps({"events": [event]}).encode()
        assert await self._archive.push(self._http, pushed, media_id) == 200
        await self.reader.until("ready", str(media))
        return media

    async def signed(self, media: Mxc, what: str = "content", **parameters: object) -> str:
        """A URL that the archive signed."""
        url = f"{self.reader.url}/api/v1/media/{media.server_name}/{media.media_id}/sign"
        headers = {"Authorization": f"Bearer {self._archive.token}"}
        asked = {"what": what, "parameters": parameters}
        async with self._http.post(url, json=asked, headers=headers) as answer:
            signed = await answer.json()
            assert answer.status == 200, signed
            return str(signed["url"])

    async def scripted(self, name: str, file: Scripted) -> Mxc:
        """An archived file whose script would call the canary of this name."""
        data = file.calling(self.panel.canary(name))
        return await self.archived(name, body(data, file.declared))

    async def served(self, url: str) -> tuple[bytes, dict[str, str]]:
        """What a signed URL gives without a token: the bytes, and all headers but their length."""
        async with self._http.get(url) as answer:
            assert answer.status == 200, await answer.text()
            headers = dict(answer.headers)
            del headers["Content-Length"]
            return await answer.read(), headers
