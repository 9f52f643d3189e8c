"""The three policies for what is redacted, in each order of arrival, through a real homeserver."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import asyncpg
import orjson
import pytest
import yaml

from demo.people import People
from tests.acceptance.conftest import Site
from tests.support.archiver import Archiver, Reader, eventually
from tests.support.matrix import ADMIN, CLIENT
from tests.support.samples import png

POLICIES = ["keep", "hide", "delete"]
REASON = "posted by mistake"
BOT = "archiver"


class Posted(NamedTuple):
    """An image that Alice posted and redacted."""

    data: bytes
    mxc: str
    event_id: str
    redaction: str
    event: bytes


class Readers(NamedTuple):
    """Two who read the archive, one of them as an administrator of it."""

    reader: Reader
    admin: Reader


@pytest.fixture
def setting(site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession) -> Setting:
    """A homeserver with people, and an archive that does not run."""
    return Setting(site, archive, people, http)


class Setting:
    """What a test has at hand."""

    def __init__(
        self, site: Site, archive: Archiver, people: People, http: aiohttp.ClientSession
    ) -> None:
        self.archive, self.people = archive, people
        self._site, self._http = site, http

    def choose(self, policy: str) -> None:
        """Sets the policy, with a grace that a test can wait for."""
        capture = {"on_redaction": policy, "delete_after": "1 s"}
        self.archive.configure(self._site.synapse.url, {"capture": capture})

    async def empower_bot(self, *, admin: bool) -> None:
        """Makes the bot an administrator of the homeserver, or an ordinary user."""
        token = yaml.safe_load(self.archive.registration.read_text("utf-8"))["as_token"]
        body = {"type": "m.login.application_service", "username": BOT, "inhibit_login": True}
        async with self._http.post(
            f"{self._site.synapse.url}{CLIENT}/register",
            json=body,
            headers={"Authorization": f"Bearer {token}"},
        ) as answer:
            assert (await answer.json()).get("errcode") in (None, "M_USER_IN_USE")
        path = f"{ADMIN}/users/{quote(f'@{BOT}:{self._site.synapse.server_name}')}/admin"
        await self.people.admin.call("PUT", path, json={"admin": admin})

    async def start(self) -> Readers:
        """Starts the archive."""
        await asyncio.to_thread(self.archive.start)
        made = {}
        for scope in ("read", "admin"):
            name = f"{scope}-{secrets.token_hex(4)}"
            arguments = ("token", "create", name, "--scope", scope, "-c", str(self.archive.config))
            secret = await asyncio.to_thread(self.archive.command, *arguments)
            made[scope] = Reader(self._http, self.archive.url, secret.strip())
        return Readers(made["read"], made["admin"])

    async def post(self) -> Posted:
        """Alice posts an image."""
        alice, room = self.people.alice, self.people.room
        data = png(32, 24, tuple(secrets.token_bytes(3)))  # type: ignore[arg-type]  # three it is
        mxc = await alice.upload(data)
        event_id = await alice.send_image(room, mxc)
        path = f"{CLIENT}/rooms/{quote(room)}/event/{quote(event_id)}"
        event = await alice.call("GET", path)
        return Posted(data, mxc, event_id, "", orjson.dumps({"events": [event]}))

    async def redact(self, posted: Posted) -> Posted:
        """Alice takes it back."""
        room, transaction = quote(self.people.room), secrets.token_hex(4)
        path = f"{CLIENT}/rooms/{room}/redact/{quote(posted.event_id)}/{transaction}"
        answer = await self.people.alice.call("PUT", path, json={"reason": REASON})
        return posted._replace(redaction=answer["event_id"])

    async def original(self, posted: Posted) -> str | None:
        """What the archive says of the original of an event; `unknown` without the event."""
        conn = await asyncpg.connect(self.archive.dsn)
        try:
            rows = await conn.fetch(
                "SELECT original FROM event WHERE event_id = $1", posted.event_id
            )
        finally:
            await conn.close()
        return rows[0]["original"] if rows else "unknown"

    async def push(self, posted: Posted) -> None:
        """The event as it was, pushed when the redaction is there already."""
        name = secrets.token_hex(4)
        assert await self.archive.push(self._http, posted.event, name) == 200


async def is_redacted(readers: Readers, posted: Posted) -> None:
    """Waits until an administrator is told who redacted it, and why."""

    async def told() -> bool:
        state = await readers.admin.state(posted.mxc)
        return bool(state) and state["references"][0]["redacted"] is not None

    await eventually("the redaction is known", told)
    [reference] = (await readers.admin.state(posted.mxc))["references"]
    redacted: dict[str, Any] = reference["redacted"]
    assert (redacted["event_id"], redacted["by"]) == (posted.redaction, reference["sender"])
    assert redacted["reason"] == REASON


async def assert_policy(policy: str, readers: Readers, posted: Posted) -> None:
    """Checks what becomes of a media that was redacted after it was known."""
    await is_redacted(readers, posted)
    if policy == "delete":
        await readers.admin.until("deleted", posted.mxc)
        for reader in readers:
            async with reader.get(posted.mxc) as answer:
                assert answer.status == 404

        async def wordless() -> bool:
            [reference] = (await readers.admin.state(posted.mxc))["references"]
            return reference["caption"] is None and reference["filename"] is None

        return await eventually("its words are gone", wordless)
    await readers.admin.until("ready", posted.mxc)
    assert await readers.admin.download(posted.mxc, hidden=policy == "hide") == posted.data
    if policy == "keep":
        assert await readers.reader.download(posted.mxc) == posted.data
        return None
    async with readers.reader.get(posted.mxc) as answer:
        assert answer.status == 404
    assert await readers.reader.state(posted.mxc) == {}
    return None


@pytest.mark.parametrize("policy", POLICIES)
async def test_redacted_after_it_was_archived(setting: Setting, policy: str) -> None:
    """Kept media is still served, hidden media to admins alone, deleted media is gone."""
    setting.choose(policy)
    readers = await setting.start()
    posted = await setting.post()
    await readers.reader.until("ready", posted.mxc)
    await assert_policy(policy, readers, await setting.redact(posted))


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_redaction_comes_before_the_event(setting: Setting, policy: str) -> None:
    """The homeserver pushes the emptied event and its redaction, and the event itself is late."""
    await setting.empower_bot(admin=False)
    setting.choose(policy)
    posted = await setting.redact(await setting.post())
    readers = await setting.start()

    async def is_known() -> bool:
        return await setting.original(posted) == "wanted"

    await eventually("the emptied event was pushed", is_known)
    await setting.push(posted)
    await assert_policy(policy, readers, posted)


@pytest.mark.parametrize(
    ("policy", "admin"), [("keep", True), ("keep", False), ("hide", True), ("delete", True)]
)
async def test_the_event_comes_emptied(setting: Setting, policy: str, admin: bool) -> None:
    """Posted and redacted while the archive is down: under `keep` a bot that is an administrator
    asks for the original, and the media is archived; otherwise the event stays wanted, and what it
    held is not known to anybody."""
    await setting.empower_bot(admin=admin)
    setting.choose(policy)
    posted = await setting.redact(await setting.post())
    readers = await setting.start()
    if policy == "keep" and admin:
        await readers.admin.until("ready", posted.mxc)
        await assert_policy(policy, readers, posted)
        assert await setting.original(posted) is None
        return

    async def is_wanted() -> bool:
        return await setting.original(posted) == "wanted"

    await eventually("the emptied event was pushed", is_wanted)
    later = await setting.post()  # pushed, fetched and served after it
    await readers.reader.until("ready", later.mxc)
    assert await setting.original(posted) == "wanted"
    assert await readers.admin.state(posted.mxc) == {}


async def test_an_edit_goes_with_its_message(setting: Setting) -> None:
    """Both versions are kept and told apart; a redaction of the message hides both."""
    setting.choose("hide")
    readers = await setting.start()
    posted, newer = await setting.post(), await setting.people.alice.upload(png(9, 9, (1, 2, 3)))
    content: dict[str, Any] = {"msgtype": "m.image", "body": "b.png", "url": newer}
    relation = {"rel_type": "m.replace", "event_id": posted.event_id}
    changed = {**content, "m.new_content": content, "m.relates_to": relation}
    await setting.people.alice.send(setting.people.room, "m.room.message", changed)
    await readers.reader.until("ready", posted.mxc, newer)
    [reference] = (await readers.reader.state(newer))["references"]
    assert reference["replaces"] == posted.event_id
    await setting.redact(posted)

    async def both_hidden() -> bool:
        return [await readers.reader.state(mxc) for mxc in (posted.mxc, newer)] == [{}, {}]

    await eventually("both versions are hidden", both_hidden)


async def test_a_hold_outlives_the_policy(setting: Setting) -> None:
    """What is held on the command line is not deleted; once it is released, it is."""
    setting.choose("delete")
    readers = await setting.start()
    posted, other = await setting.post(), await setting.post()
    await readers.reader.until("ready", posted.mxc, other.mxc)
    config = ("-c", str(setting.archive.config))
    arguments = ("hold", posted.mxc, "for", "evidence", *config)
    assert await asyncio.to_thread(setting.archive.command, *arguments) == f"Held {posted.mxc}.\n"
    held = orjson.loads(
        await asyncio.to_thread(setting.archive.command, "holds", "--json", *config)
    )
    assert [(one["target"], one["reason"]) for one in held] == [(posted.mxc, "for evidence")]
    assert held[0]["holder"].startswith("shell:")
    await setting.redact(posted)
    await setting.redact(other)
    await readers.admin.until("deleted", other.mxc)
    assert await readers.admin.download(posted.mxc, hidden=True) == posted.data
    await asyncio.to_thread(setting.archive.command, "unhold", posted.mxc, *config)
    await readers.admin.until("deleted", posted.mxc)
    wrong = await asyncio.to_thread(setting.archive.attempt, "unhold", posted.mxc, *config)
    assert (wrong.returncode, "no hold on" in wrong.stderr) == (1, True)
    wrong = await asyncio.to_thread(setting.archive.attempt, "hold", "cat.png", "x", *config)
    assert (wrong.returncode, "mxc://server/id" in wrong.stderr) == (2, True)


async def test_the_policy_may_change(setting: Setting) -> None:
    """What was redacted under one policy obeys the next one after a restart."""
    setting.choose("keep")
    readers = await setting.start()
    posted = await setting.post()
    await readers.reader.until("ready", posted.mxc)
    posted = await setting.redact(posted)
    await assert_policy("keep", readers, posted)
    for policy in ("hide", "keep", "delete"):
        await asyncio.to_thread(setting.archive.stop)
        setting.choose(policy)
        await assert_policy(policy, await setting.start(), posted)
