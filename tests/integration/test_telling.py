"""Quarantine that the homeserver is told of: in its own time, whatever is away, and no more than
has to be."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web

from archiver.catalogue import telling
from archiver.catalogue.targets import Target
from archiver.errors import HomeserverUnavailable, RateLimited
from archiver.fetch.archive import Parts
from archiver.keep.erasure import Erasure
from archiver.keep.quarantine import Done, quarantine, release
from archiver.keep.telling import SHARED, Teller
from archiver.matrix.curtain import AdminRefused, Curtain
from archiver.model import Mxc
from tests.support.fetching import INLINE_LIMIT, someone_waits, until
from tests.support.homeserver import BOT, TOKEN, Answer, Homeserver, error
from tests.support.keeping import ADMIN, OF_ROOM, archive, custody, media, states
from tests.support.process import LOOPBACK, free_port
from tests.support.redacting import image, media_row, mxc, push

if TYPE_CHECKING:
    from archiver.db.pool import Pool

SMALL = os.urandom(INLINE_LIMIT)
CAT, DOG = mxc("cat"), mxc("dog")


class Synapse:
    """What a homeserver hides, as its admin API does it. It keeps its port while it is stopped."""

    def __init__(self) -> None:
        self.url = f"http://{LOOPBACK}:{free_port()}"
        self.hidden: set[Mxc] = set()
        self.told: list[tuple[str, str]] = []
        self.answer: Answer | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Returns when it answers."""
        app = web.Application()
        path = "/_synapse/admin/v1/media/{verb}/{server_name}/{media_id}"
        app.router.add_post(path, self._tell)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        port = int(self.url.rpartition(":")[2])
        await web.TCPSite(self._runner, LOOPBACK, port, reuse_address=True).start()

    async def stop(self) -> None:
        """Nothing answers afterwards."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _tell(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert request.query["user_id"] == BOT
        verb, *names = request.match_info.values()
        self.told.append((verb, names[1]))
        if self.answer is not None:
            return await self.answer(request)
        change = {"quarantine": self.hidden.add, "unquarantine": self.hidden.discard}[verb]
        change(Mxc(*names))
        return web.json_response({})


@pytest.fixture
async def synapse() -> AsyncIterator[Synapse]:
    server = Synapse()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def ours(ours: Parts, homeserver: Homeserver) -> Parts:
    """With a cat and a dog of Alice's."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=b"woof")
    return ours


@pytest.fixture
def teller(ours: Parts, synapse: Synapse, http: aiohttp.ClientSession) -> Teller:
    return Teller(ours.pool, Curtain(http, synapse.url, TOKEN, BOT))


async def hide(ours: Parts, target: Target, *, tell: bool = True) -> Done:
    return [one async for one in quarantine(ours.pool, target, "", ADMIN, tell=tell)][-1]


async def show(ours: Parts, target: Target) -> Done:
    return [one async for one in release(ours.pool, target, ADMIN)][-1]


async def work(teller: Teller) -> None:
    """All that is due."""
    while await teller.work():
        pass


async def waiting(pool: Pool) -> dict[str, Any]:
    """What is still to be told, and why it was not."""
    rows = await pool.fetch("SELECT media_id, reason FROM telling WHERE due_at IS NOT NULL")
    return {row["media_id"]: row["reason"] for row in rows}


async def make_due(pool: Pool) -> None:
    """Time passes."""
    await pool.execute("UPDATE telling SET due_at = now() WHERE due_at IS NOT NULL")


async def test_it_is_hidden_and_shown_again(ours: Parts, teller: Teller, synapse: Synapse) -> None:
    """The very media that are set aside, and each once; custody tells when."""
    assert await hide(ours, media("cat")) == Done(1, len(SMALL), 1)
    await work(teller)
    assert synapse.hidden == {CAT}
    assert await hide(ours, OF_ROOM) == Done(1, 4, 1)
    await work(teller)
    assert synapse.hidden == {CAT, DOG}
    assert await show(ours, OF_ROOM) == Done(2, len(SMALL) + 4, 2)
    await work(teller)
    assert synapse.hidden == set()
    assert len(synapse.told) == 4
    told = [line for line in await custody(ours.pool) if line[2] == "told homeserver"]
    assert [line[4] for line in told] == [
        {"hidden": [str(CAT)]},
        {"hidden": [str(DOG)]},
        {"shown": sorted(map(str, (CAT, DOG)))},
    ]
    assert (await custody(ours.pool))[0][4]["homeserver"] == 1
    assert await ours.pool.fetchval("SELECT count(*) FROM telling") == 0


async def test_who_is_to_be_told_is_known_in_the_commit_that_hides_it(
    ours: Parts, teller: Teller, synapse: Synapse
) -> None:
    """A crash before it hides nothing, and one after it forgets nothing."""
    async with ours.pool.acquire() as other, other.transaction():
        await other.execute("LOCK TABLE telling IN SHARE MODE")
        hiding = asyncio.create_task(hide(ours, media("cat")))
        await until(lambda: someone_waits(ours.pool), "the quarantine waits")
        assert (await states(ours.pool))["cat"] == "ready"
    assert (await hiding).told == 1
    await work(teller)
    assert synapse.hidden == {CAT}


async def test_it_is_not_told_unless_somebody_wants_it(
    ours: Parts, teller: Teller, synapse: Synapse
) -> None:
    """And releasing what it was never told of shows nothing that others hid there."""
    assert await hide(ours, OF_ROOM, tell=False) == Done(2, len(SMALL) + 4)
    assert (await show(ours, media("cat"))).told == 0
    await work(teller)
    assert synapse.told == []


async def test_what_was_in_quarantine_before_is_told_when_it_is_repeated(
    ours: Parts, teller: Teller, synapse: Synapse
) -> None:
    """Nothing else changes, and a third time nothing at all."""
    await hide(ours, OF_ROOM, tell=False)
    assert await hide(ours, OF_ROOM) == Done(0, 0, 2)
    assert await hide(ours, OF_ROOM) == Done()
    await work(teller)
    assert synapse.hidden == {CAT, DOG}


async def test_bytes_that_come_later_are_told_of(
    ours: Parts, homeserver: Homeserver, teller: Teller, synapse: Synapse
) -> None:
    """Also by the scanner, which quarantines bytes; released as bytes, all are shown."""
    sha256 = (await media_row(ours.pool, "cat"))["blob_sha256"]
    of_bytes = Target("hash", f"sha256:{sha256.hex()}")
    assert (await hide(ours, of_bytes)).told == 1
    await push(ours.pool, image("$c", "copy"))
    await archive(ours, homeserver, copy=SMALL)
    assert (await states(ours.pool))["copy"] == "quarantined"
    await work(teller)
    assert synapse.hidden == {CAT, mxc("copy")}
    assert (await show(ours, of_bytes)).told == 2
    await work(teller)
    assert synapse.hidden == set()


async def test_bytes_may_be_told_of_later(
    ours: Parts, homeserver: Homeserver, teller: Teller, synapse: Synapse
) -> None:
    """Refused for ourselves first, then for the homeserver as well."""
    sha256 = (await media_row(ours.pool, "cat"))["blob_sha256"]
    for tell in (False, True):
        await hide(ours, Target("hash", f"sha256:{sha256.hex()}"), tell=tell)
        await push(ours.pool, image(f"$c{tell}", f"copy{tell}"))
        await archive(ours, homeserver, **{f"copy{tell}": SMALL})
    await work(teller)
    assert synapse.hidden == {CAT, mxc("copyFalse"), mxc("copyTrue")}


async def test_an_outage_loses_nothing(ours: Parts, teller: Teller, synapse: Synapse) -> None:
    """Neither of the homeserver, nor a change of mind meanwhile."""
    await synapse.stop()
    await hide(ours, OF_ROOM)
    with pytest.raises(HomeserverUnavailable):
        await teller.work()
    assert "does not answer" in (await waiting(ours.pool))["cat"]
    await show(ours, media("dog"))
    await synapse.start()
    await work(teller)
    assert synapse.hidden == {CAT}
    assert await waiting(ours.pool) == {}


async def test_what_was_told_before_an_outage_is_not_told_again(
    ours: Parts, teller: Teller, synapse: Synapse
) -> None:
    """The rest waits."""

    async def once(_request: web.Request) -> web.StreamResponse:
        synapse.answer = error(429, "M_LIMIT_EXCEEDED", retry_after_ms=7000)
        return web.json_response({})

    synapse.answer = once
    await hide(ours, OF_ROOM)
    with pytest.raises(RateLimited):
        await teller.work()
    assert len(synapse.told) == 2
    assert len(await waiting(ours.pool)) == 1
    synapse.answer = None
    await work(teller)
    assert len(synapse.told) == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(403, "M_FORBIDDEN"), "no administrator of the homeserver"),
        (error(404, "M_UNRECOGNIZED"), "no admin API"),
        (error(404, None), "no admin API"),
    ],
    ids=["no administrator", "no Synapse", "a proxy"],
)
async def test_who_is_no_administrator_is_told_so(
    ours: Parts, teller: Teller, synapse: Synapse, answer: Answer, words: str
) -> None:
    """Our own quarantine stands, and once the homeserver lets us, it is told."""
    synapse.answer = answer
    assert await hide(ours, OF_ROOM) == Done(2, len(SMALL) + 4, 2)
    with pytest.raises(AdminRefused, match=words):
        await teller.work()
    assert set((await states(ours.pool)).values()) == {"quarantined"}
    synapse.answer = None
    await work(teller)
    assert synapse.hidden == {CAT, DOG}


async def test_what_it_does_not_know_is_done(
    ours: Parts, teller: Teller, synapse: Synapse
) -> None:
    """Custody tells that it was unknown."""
    synapse.answer = error(404, "M_NOT_FOUND")
    await hide(ours, media("cat"))
    await work(teller)
    assert await waiting(ours.pool) == {}
    assert (await custody(ours.pool))[-1][4] == {"unknown": [str(CAT)]}


async def test_one_that_fails_does_not_hinder_others(
    ours: Parts, teller: Teller, synapse: Synapse
) -> None:
    """It is tried again later."""

    async def breaks(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/cat"):
            return await error(500, "M_UNKNOWN")(request)
        return web.json_response({})

    synapse.answer = breaks
    await hide(ours, OF_ROOM)
    await work(teller)
    assert set(await waiting(ours.pool)) == {"cat"}
    synapse.answer = None
    await make_due(ours.pool)
    await work(teller)
    assert synapse.hidden == {CAT}


@pytest.mark.parametrize("name", ["cat", "dog"])
async def test_one_at_which_the_homeserver_goes_away_does_not_stop_all(
    ours: Parts, teller: Teller, synapse: Synapse, name: str
) -> None:
    """A proxy that gives up on it looks like an outage; the others come before it then."""

    async def gives_up(request: web.Request) -> web.StreamResponse:
        if request.path.endswith(f"/{name}"):
            return web.Response(status=502)
        synapse.hidden.add(mxc(request.path.rpartition("/")[2]))
        return web.json_response({})

    synapse.answer = gives_up
    await hide(ours, OF_ROOM)
    for _ in range(2):
        with pytest.raises(HomeserverUnavailable):
            await work(teller)
    assert synapse.hidden == {CAT, DOG} - {mxc(name)}


async def test_bytes_that_others_have_are_not_shown(
    ours: Parts, homeserver: Homeserver, teller: Teller, synapse: Synapse
) -> None:
    """The homeserver would show both: it is told when the last of them is released."""
    await push(ours.pool, image("$c", "copy"))
    await archive(ours, homeserver, copy=SMALL)
    await hide(ours, OF_ROOM)
    await work(teller)
    await show(ours, media("cat"))
    await work(teller)
    assert synapse.hidden == {CAT, DOG, mxc("copy")}
    assert await waiting(ours.pool) == {"cat": SHARED}
    await show(ours, media("copy"))
    await make_due(ours.pool)
    await work(teller)
    assert synapse.hidden == {DOG}


async def test_who_changes_their_mind_while_it_is_told_is_told_of_after(
    ours: Parts, teller: Teller, synapse: Synapse
) -> None:
    """The older word never arrives last."""
    came, go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        synapse.answer = None
        came.set()
        await go_on.wait()
        synapse.hidden.add(Mxc(*list(request.match_info.values())[1:]))
        return web.json_response({})

    synapse.answer = slow
    await hide(ours, media("cat"))
    telling_it = asyncio.create_task(teller.work())
    async with asyncio.timeout(30):
        await came.wait()
    await show(ours, media("cat"))
    assert not await teller.work()
    go_on.set()
    assert await telling_it
    assert synapse.hidden == {CAT}
    await work(teller)
    assert synapse.hidden == set()


async def test_who_died_is_followed_by_others(
    ours: Parts, teller: Teller, synapse: Synapse
) -> None:
    """When the lease is over; whatever the dead say later changes nothing."""
    await hide(ours, media("cat"))
    async with ours.pool.acquire() as conn:
        orders = await telling.claim(conn, 10, timedelta(minutes=5))
        assert not await teller.work()
        await make_due(ours.pool)
        assert len(await telling.claim(conn, 10, timedelta(minutes=5))) == 1
        async with conn.transaction():
            await telling.done(conn, orders)
    await make_due(ours.pool)
    await work(teller)
    assert synapse.hidden == {CAT}


async def test_what_could_not_be_fetched_meanwhile_is_fetched(
    ours: Parts, homeserver: Homeserver, teller: Teller
) -> None:
    """The homeserver said that it was not there, as long as it hid it."""
    await push(ours.pool, image("$c", "late"))
    await hide(ours, media("late"))
    await work(teller)
    await show(ours, media("late"))
    await ours.pool.execute(
        "UPDATE media SET state = 'failed', due_at = NULL, reason = '404' WHERE media_id = 'late'"
    )
    await work(teller)
    await archive(ours, homeserver, late=b"at last")
    assert (await states(ours.pool))["late"] == "ready"


async def test_what_is_deleted_here_stays_hidden_there(
    ours: Parts, teller: Teller, synapse: Synapse
) -> None:
    """Whether it was told before or not."""
    await hide(ours, OF_ROOM)
    async for _ in Erasure(ours.pool, media("cat"), ADMIN).run():
        pass
    await work(teller)
    assert synapse.hidden == {CAT, DOG}


async def test_it_works_by_itself(ours: Parts, teller: Teller, synapse: Synapse) -> None:
    """Beside everything else, until it is asked to end."""
    running = asyncio.create_task(teller.run())

    async def is_hidden() -> bool:
        return synapse.hidden == {CAT}

    try:
        await hide(ours, media("cat"))
        await until(is_hidden, "the homeserver was told")
    finally:
        running.cancel()
        await asyncio.wait([running])
