"""Quarantine of bytes: whoever posts them, whenever they come."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from archiver.catalogue import targets
from archiver.catalogue.queue import Completed
from archiver.catalogue.targets import Target
from archiver.errors import FetchFailed
from archiver.fetch.archive import Parts, archive_one
from archiver.fetch.demand import open_demand
from archiver.keep.quarantine import Done
from tests.support.fetching import INLINE_LIMIT, claim, someone_waits, until
from tests.support.homeserver import Homeserver
from tests.support.keeping import ADMIN, OF_ROOM, archive, custody, hide, media, read, show, states
from tests.support.redacting import image, media_row, mxc, push

if TYPE_CHECKING:
    pass

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(200 * 1024)


def bytes_of(data: bytes) -> Target:
    return Target("hash", "sha256:" + hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "object"])
async def test_all_media_with_the_bytes_are_hidden_those_to_come_too(
    ours: Parts, homeserver: Homeserver, data: bytes
) -> None:
    """Until the bytes are released; custody tells of both."""
    await push(ours.pool, image("$a", "cat"), image("$b", "copy"), image("$c", "other"))
    await archive(ours, homeserver, cat=data, copy=data, other=b"other")
    assert await hide(ours.pool, bytes_of(data), "known") == Done(2, 2 * len(data))
    await push(ours.pool, image("$d", "late"))
    await archive(ours, homeserver, late=data)
    hidden = {"cat": "quarantined", "copy": "quarantined", "late": "quarantined"}
    assert await states(ours.pool) == hidden | {"other": "ready"}
    row = await media_row(ours.pool, "late")
    assert row["reason"] == f"quarantined by {ADMIN.actor}: known"
    assert await read(ours, "late") == data
    assert await show(ours.pool, bytes_of(data)) == Done(3, 3 * len(data))
    assert set((await states(ours.pool)).values()) == {"ready"}
    await push(ours.pool, image("$e", "later"))
    await archive(ours, homeserver, later=data)
    assert (await states(ours.pool))["later"] == "ready"
    told = [(action, target, detail) for _, _, action, target, detail in await custody(ours.pool)]
    name = bytes_of(data).value
    assert told[0] == ("quarantine", name, {"refused": True})
    assert told[2] == ("release", name, {"refused": False})
    assert [action for action, *_ in told] == ["quarantine", "quarantine", "release", "release"]


async def test_bytes_that_never_came_may_be_refused(ours: Parts, homeserver: Homeserver) -> None:
    """Repeating it changes nothing, the first reason stays."""
    assert await hide(ours.pool, bytes_of(SMALL), "first") == Done()
    assert await hide(ours.pool, bytes_of(SMALL), "second") == Done()
    assert len(await custody(ours.pool)) == 1
    await push(ours.pool, image("$a", "cat"))
    await archive(ours, homeserver, cat=SMALL)
    row = await media_row(ours.pool, "cat")
    assert (row["state"], row["reason"]) == (
        "quarantined", f"quarantined by {ADMIN.actor}: first",
    )  # fmt: skip


async def test_a_release_of_something_else_does_not_show_refused_bytes(
    ours: Parts, homeserver: Homeserver
) -> None:
    """The room's media come back, but these."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    await hide(ours.pool, bytes_of(SMALL))
    await hide(ours.pool, OF_ROOM)
    assert await show(ours.pool, OF_ROOM) == Done(1, len(LARGE))
    assert await show(ours.pool, media("cat")) == Done()
    assert await states(ours.pool) == {"cat": "quarantined", "dog": "ready"}


async def test_a_worker_who_is_about_to_commit_is_waited_for(
    ours: Parts, homeserver: Homeserver
) -> None:
    """The media that becomes ready in the very moment is found."""
    await push(ours.pool, image("$a", "cat"), image("$b", "copy"))
    await archive(ours, homeserver, cat=SMALL, copy=SMALL)
    await ours.pool.execute("UPDATE media SET state = 'pending', due_at = now()")
    async with ours.pool.acquire() as other, other.transaction():
        await other.execute("UPDATE media SET state = 'ready' WHERE media_id = 'cat'")
        hiding = asyncio.create_task(hide(ours.pool, bytes_of(SMALL)))
        await until(lambda: someone_waits(ours.pool), "the quarantine waits")
    assert (await hiding).media == 2
    assert await states(ours.pool) == {"cat": "quarantined", "copy": "quarantined"}


async def test_a_worker_who_commits_after_it_sees_it(ours: Parts, homeserver: Homeserver) -> None:
    """Though their statement began before the bytes were refused."""
    homeserver.give(mxc("cat"), SMALL)
    await push(ours.pool, image("$a", "cat"))
    [job] = await claim(ours.pool)
    async with ours.pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM media FOR UPDATE")
        working = asyncio.create_task(archive_one(job, ours))
        await until(lambda: someone_waits(ours.pool), "the worker waits")
        await hide(ours.pool, bytes_of(SMALL))
    archived = await working
    assert archived.completed == Completed(True, True, True)
    assert await states(ours.pool) == {"cat": "quarantined"}


async def test_any_order_of_workers_and_quarantine_hides_all(
    ours: Parts, homeserver: Homeserver
) -> None:
    """Whoever comes first."""
    names = [f"m{number}" for number in range(30)]
    await push(ours.pool, *(image(f"${name}", name) for name in names))
    for name in names:
        homeserver.give(mxc(name), SMALL)
    jobs = await claim(ours.pool, 30)
    works = [archive_one(job, ours) for job in jobs]
    await asyncio.gather(
        *works[:15], hide(ours.pool, bytes_of(SMALL)), *works[15:], return_exceptions=False
    )
    assert set((await states(ours.pool)).values()) == {"quarantined"}


async def test_who_reads_it_as_it_comes_does_not_get_its_end(
    ours: Parts, homeserver: Homeserver
) -> None:
    """What is held back until it is archived stays back."""
    homeserver.give(mxc("cat"), LARGE)
    await push(ours.pool, image("$a", "cat"))
    await hide(ours.pool, bytes_of(LARGE))
    got = bytearray()

    async def read_all(chunks: AsyncIterator[bytes]) -> None:
        async for chunk in chunks:
            got.extend(chunk)

    async with open_demand(ours, timedelta(seconds=30)) as demand:
        arrival = demand.want(mxc("cat"))
        assert arrival is not None
        with pytest.raises(FetchFailed):
            await read_all(arrival.chunks())
        assert not await arrival.over()
    assert len(got) < len(LARGE)
    assert await states(ours.pool) == {"cat": "quarantined"}


async def test_more_than_a_page(
    ours: Parts, homeserver: Homeserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All media with the bytes, each once."""
    monkeypatch.setattr(targets, "AT_ONCE", 3)
    names = [f"m{number}" for number in range(8)]
    await push(ours.pool, *(image(f"${name}", name) for name in names))
    await archive(ours, homeserver, **dict.fromkeys(names, SMALL))
    assert (await hide(ours.pool, bytes_of(SMALL))).media == 8
