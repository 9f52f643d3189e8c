"""Matrix access tokens at a real homeserver: whose are let in, how long, and an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from archiver.base import http_session
from archiver.serve.access import Access
from archiver.serve.matrix_tokens import MatrixTokens
from demo.people import People
from tests.acceptance.conftest import started
from tests.support.archiver import Archiver
from tests.support.archiver import Reader as Outsider
from tests.support.matrix import ADMIN, CLIENT, MatrixUser
from tests.support.samples import png
from tests.support.serving import Archive, Reader, serving
from tests.support.synapse import Synapse

if TYPE_CHECKING:
    from archiver.db.pool import Pool

STATS = "/api/v1/stats"
READS = "/api/v1/reads"
SHORT = 1.0  # seconds


def at(archive: Archiver, http: aiohttp.ClientSession, user: MatrixUser) -> Outsider:
    """The user with a Matrix token, and nothing of the archive's."""
    return Outsider(http, archive.url, user.access_token)


@pytest.mark.parametrize("rule", ["nobody", "admins", "local_users"])
async def test_an_administrator_reads_what_the_homeserver_forgot(
    archive: Archiver, people: People, http: aiohttp.ClientSession, rule: str
) -> None:
    """With the very token that the panel has: where administrators may, and users where all of
    the homeserver's may; nobody else."""
    settings = {"serve": {"matrix_tokens": rule}}
    archive.configure(people.alice.url, settings)
    archivist = await started(archive, http)
    picture = png(24, 24, (7, 70, 170))
    mxc = await people.alice.upload(picture)
    await people.alice.send_image(people.room, mxc)
    await archivist.until("ready", mxc)
    await people.admin.delete_media(mxc)
    admin, alice = at(archive, http, people.admin), at(archive, http, people.alice)
    for user, allowed, refusal in (
        (admin, rule != "nobody", 401),
        (alice, rule == "local_users", 401 if rule == "nobody" else 403),
    ):
        async with user.get(mxc) as answer:
            assert answer.status == (200 if allowed else refusal), await answer.text()
            if allowed:
                assert await answer.read() == picture
            else:
                errcode = {401: "M_UNKNOWN_TOKEN", 403: "M_FORBIDDEN"}[refusal]
                assert (await answer.json())["errcode"] == errcode
    if rule == "local_users":
        await _is_told_apart(archive, http, people)


async def _is_told_apart(archive: Archiver, http: aiohttp.ClientSession, people: People) -> None:
    """The administrator alone has scope admin."""
    for user, status in ((people.admin, 200), (people.alice, 403)):
        async with http.get(archive.url + READS, headers=user.headers) as answer:
            assert answer.status == status


class Door:
    """A door of the archive in this process, whose memory is short."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def status(self, user: MatrixUser, path: str = STATS) -> int:
        """How a user with a Matrix token is answered."""
        return await self._reader.status(path, Authorization=user.headers["Authorization"])

    async def until(self, user: MatrixUser, status: int, path: str = STATS) -> None:
        """Asks until the user is answered so."""
        await self._reader.until(path, status, Authorization=user.headers["Authorization"])


@pytest.mark.parametrize("local_users", [True, False])
async def test_what_happens_to_a_user_counts_after_the_memorys_time(
    start_synapse: Callable[..., Awaitable[Synapse]],
    pool: Pool,
    database_url: str,
    tmp_path: Path,
    http: aiohttp.ClientSession,
    local_users: bool,
) -> None:
    """Made an administrator, unmade, logged out, deactivated; and when the homeserver is
    stopped, nobody new gets in, and nobody stays."""
    synapse = await start_synapse()
    boss = await synapse.register(http, "boss", admin=True)
    alice, bob = [await synapse.register(http, name) for name in ("alice", "bob")]
    stored = Archive(pool, tmp_path / "archive")
    await stored.store.open()
    async with http_session() as session:
        matrix = MatrixTokens(
            session,
            synapse.url,
            synapse.server_name,
            local_users=local_users,
            remember=SHORT,
            remember_refused=SHORT,
        )
        async with serving(stored, database_url, access=Access(matrix)) as server:
            door = Door(Reader(http, server, "none"))
            user = 200 if local_users else 403
            assert await door.status(boss) == 200
            assert await door.status(alice) == user
            await boss.make_admin(alice.user_id)
            await door.until(alice, 200, READS)
            await unmake(boss, alice)
            await door.until(alice, 403, READS)
            assert await door.status(alice) == user
            await alice.call("POST", f"{CLIENT}/logout", json={})
            await door.until(alice, 401)
            assert await door.status(bob) == user
            await boss.call("POST", f"{ADMIN}/deactivate/{bob.user_id}", json={"erase": False})
            await door.until(bob, 401)
            await asyncio.to_thread(synapse.stop)
            await door.until(boss, 503)
            for anybody in (boss, alice, bob):
                assert await door.status(anybody) in {401, 503}
            await asyncio.to_thread(synapse.start)
            await door.until(boss, 200)


async def unmake(boss: MatrixUser, user: MatrixUser) -> None:
    """Takes an administrator's power away."""
    path = f"{ADMIN}/users/{user.user_id}/admin"
    said: dict[str, Any] = await boss.call("PUT", path, json={"admin": False})
    assert said == {}
