"""What is quarantined in the archive is hidden by a real Synapse, too."""

from __future__ import annotations

import asyncio
import json
import secrets

import aiohttp
import pytest
import yaml

from archiver.errors import FetchFailed, MediaNotFound
from archiver.fetch.download import MediaSource
from archiver.model import Mxc
from demo.people import People
from tests.acceptance.conftest import Site, started
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.matrix import MatrixError, MatrixUser
from tests.support.samples import png

BOT = "@archiver:archive.test"


async def command(archive: Archiver, *words: str) -> str:
    """What a command says."""
    return await asyncio.to_thread(archive.command, *words, "-c", str(archive.config))


async def sees(user: MatrixUser, mxc: str, data: bytes) -> bool:
    """Whether the homeserver itself gives a media to somebody."""
    try:
        return await user.download(mxc) == data
    except MatrixError as refused:
        if (refused.status, refused.errcode) != (404, "M_NOT_FOUND"):
            raise
        return False


async def fetch(
    archive: Archiver, http: aiohttp.ClientSession, url: str, mxc: str, *, hidden: bool
) -> bytes:
    """What the homeserver gives our bot; with `hidden` as for a repair."""
    token = yaml.safe_load(archive.registration.read_text("utf-8"))["as_token"]
    name = Mxc(*mxc.removeprefix("mxc://").split("/"))
    async with MediaSource(http, url, token, BOT, 1).open(name, hidden=hidden) as download:
        return b"".join([chunk async for chunk in download.chunks()])


async def test_the_homeserver_hides_what_is_quarantined(
    site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
) -> None:
    """From everybody but the archive's administrators, as soon as the bot may tell it, and until
    it is released."""
    archive.configure(site.synapse.url, {"quarantine": {"tell_homeserver": True}})
    reader, alice, bob = await started(archive, http), people.alice, people.bob
    made = await command(archive, "token", "create", secrets.token_hex(4), "--scope", "admin")
    admin = Reader(http, archive.url, made.strip())
    data = png(32, 24, tuple(secrets.token_bytes(3)))  # type: ignore[arg-type]  # three it is
    mxc = await alice.upload(data)
    await alice.send_image(people.room, mxc)
    await reader.until("ready", mxc)

    said = await command(archive, "quarantine", mxc, "spam")
    assert "The homeserver is told of 1 media." in said
    assert "no administrator there" in said
    await eventually("the log tells why", lambda: "cannot hide media there" in archive.log)
    found = await asyncio.to_thread(archive.attempt, "doctor", "--json", "-c", str(archive.config))
    [trust] = [one for one in json.loads(found.stdout) if one["check"] == "administration"]
    assert (found.returncode, trust["ok"]) == (1, False)
    assert await sees(bob, mxc, data)
    async with reader.get(mxc) as answer:
        assert answer.status == 404
    with pytest.raises(FetchFailed):
        await fetch(archive, http, site.synapse.url, mxc, hidden=True)

    await people.admin.make_admin(BOT)

    async def is_hidden() -> bool:
        return not await sees(bob, mxc, data)

    await eventually("the homeserver hides it", is_hidden)
    assert not await sees(alice, mxc, data)
    assert await admin.download(mxc, hidden=True) == data
    with pytest.raises(MediaNotFound):
        await fetch(archive, http, site.synapse.url, mxc, hidden=False)
    assert await fetch(archive, http, site.synapse.url, mxc, hidden=True) == data

    assert "told of 1 media" in await command(archive, "release", mxc)

    async def is_shown() -> bool:
        return await sees(bob, mxc, data)

    await eventually("the homeserver shows it again", is_shown)
    assert await reader.download(mxc) == data
