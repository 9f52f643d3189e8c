"""What nobody has archived yet is fetched from a real homeserver when somebody asks for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiohttp

from tests.acceptance.conftest import new_folder, newcomers, started
from tests.support.archiver import Archiver, eventually
from tests.support.samples import png
from tests.support.synapse import Synapse


async def test_media_is_there_before_any_worker_was(
    services_folder: Path, synapse_python: Path, http: aiohttp.ClientSession
) -> None:
    """Posted and recorded, with no worker: the first reader causes the fetch, the next finds it,
    and it stays when the homeserver has lost it."""
    folder = new_folder(services_folder)
    archive = Archiver(folder / "archive", only="intake,serve,bot")
    archive.init()
    synapse = Synapse(synapse_python, folder / "synapse", registrations=[archive.registration])
    await asyncio.to_thread(synapse.start)
    try:
        archive.configure(synapse.url)
        reader = await started(archive, http)
        people = await newcomers(synapse, http)
        picture, film = png(64, 48, (1, 2, 3)), os.urandom(7 * 1024 * 1024)
        posted = {await people.alice.upload(data): data for data in (picture, film)}
        for mxc in posted:
            await people.alice.send_image(people.direct, mxc)
        for mxc, data in posted.items():

            async def is_known(mxc: str = mxc) -> bool:
                return (await reader.state(mxc)).get("state") == "pending"

            await eventually("the media is recorded", is_known)
            async with reader.get(mxc) as answer:
                assert (answer.status, answer.headers["X-Cache"]) == (200, "MISS")
                assert await answer.read() == data
            await people.admin.delete_media(mxc)
            assert await reader.download(mxc) == data
    finally:
        await asyncio.to_thread(archive.stop)
        await asyncio.to_thread(synapse.stop)
