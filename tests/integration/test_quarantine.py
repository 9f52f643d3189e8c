"""Quarantine: hidden at once, lost never."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from archiver.catalogue import holds, queue
from archiver.catalogue.targets import AT_ONCE, Target
from archiver.fetch.archive import Parts, archive_one
from archiver.keep.quarantine import Done
from tests.support.fetching import INLINE_LIMIT, claim, someone_waits, until
from tests.support.homeserver import Homeserver
from tests.support.keeping import (
    ADMIN,
    BOB,
    OF_ALICE,
    OF_ROOM,
    OTHER_ROOM,
    archive,
    custody,
    hide,
    media,
    read,
    show,
    states,
    tables,
)
from tests.support.redacting import ALICE, ROOM, edit, image, media_row, mxc, push

if TYPE_CHECKING:
    pass

SMALL, LARGE = os.urandom(INLINE_LIMIT), os.urandom(INLINE_LIMIT + 1)


async def test_a_media_is_hidden_and_shown_again(ours: Parts, homeserver: Homeserver) -> None:
    """It keeps its bytes meanwhile; custody tells who did both."""
    await push(ours.pool, image("$a"))
    await archive(ours, homeserver, cat=SMALL)
    assert await hide(ours.pool, media("cat"), "a scan said so") == Done(1, len(SMALL))
    row = await media_row(ours.pool, "cat")
    assert (row["state"], row["due_at"]) == ("quarantined", None)
    assert row["reason"] == f"quarantined by {ADMIN.actor}: a scan said so"
    assert await read(ours, "cat") == SMALL
    assert await show(ours.pool, media("cat")) == Done(1, len(SMALL))
    row = await media_row(ours.pool, "cat")
    assert (row["state"], row["reason"], row["due_at"]) == ("ready", None, None)
    told = {"media": [str(mxc("cat"))], "bytes": len(SMALL)}
    assert await custody(ours.pool) == [
        (*ADMIN, action, str(mxc("cat")), told) for action in ("quarantine", "release")
    ]


async def test_repeating_changes_nothing(ours: Parts, homeserver: Homeserver) -> None:
    """The first reason stays, and custody hears of it once."""
    await push(ours.pool, image("$a"))
    await archive(ours, homeserver, cat=SMALL)
    assert await show(ours.pool, OF_ROOM) == Done()
    await hide(ours.pool, OF_ROOM)
    assert await hide(ours.pool, media("cat"), "again") == Done()
    assert (await media_row(ours.pool, "cat"))["reason"] == f"quarantined by {ADMIN.actor}"
    assert len(await custody(ours.pool)) == 1


async def test_what_is_not_there_yet_is_not_fetched_until_released(
    ours: Parts, homeserver: Homeserver
) -> None:
    """Pending and failed media are hidden as well, and queued when they are released."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await ours.pool.execute(
        "UPDATE media SET state = 'failed', reason = 'gone', due_at = NULL WHERE media_id = 'dog'"
    )
    assert await hide(ours.pool, OF_ALICE) == Done(2, 0)
    assert await states(ours.pool) == {"cat": "quarantined", "dog": "quarantined"}
    assert await claim(ours.pool, 2) == []
    await push(ours.pool, image("$c", "cat"))
    assert await claim(ours.pool, 2) == []
    assert await show(ours.pool, OF_ALICE) == Done(2, 0)
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    assert await read(ours, "dog") == LARGE


async def test_what_is_left_out_or_deleted_stays_so(ours: Parts) -> None:
    """Releasing it would fetch what nobody wanted."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await ours.pool.execute(
        "UPDATE media SET state = CASE media_id WHEN 'cat' THEN 'excluded' ELSE 'deleted' END,"
        " reason = 'a reason', due_at = NULL"
    )
    assert await hide(ours.pool, OF_ROOM) == Done()
    assert await states(ours.pool) == {"cat": "excluded", "dog": "deleted"}


async def test_each_kind_of_target(ours: Parts, homeserver: Homeserver) -> None:
    """An event with its edits, a user, a room; somebody else's edit is none."""
    await push(
        ours.pool,
        image("$a", "cat", "small"),
        edit("$e", "$a", "edited"),
        edit("$f", "$a", "forged", sender=BOB),
        image("$b", "bobs", sender=BOB),
        image("$c", "elsewhere", room_id=OTHER_ROOM),
    )
    every = set(await states(ours.pool))
    expected = {
        Target("event", "$a"): {"cat", "small", "edited"},
        Target("user", ALICE): {"cat", "small", "edited", "elsewhere"},
        Target("user", BOB): {"bobs", "forged"},
        Target("room", ROOM): every - {"elsewhere"},
        media("bobs"): {"bobs"},
        Target("event", "$nothing"): set(),
    }
    for target, names in expected.items():
        assert (await hide(ours.pool, target)).media == len(names)
        hidden = await states(ours.pool)
        assert {name for name in every if hidden[name] == "quarantined"} == names
        assert (await show(ours.pool, target)).media == len(names)


async def test_a_user_comes_with_memberships_about_them(ours: Parts) -> None:
    """An invitation shows a face that the invited chose."""
    content = {"membership": "invite", "avatar_url": str(mxc("face"))}
    event = image("$i", sender=BOB, type="m.room.member", state_key=ALICE) | {"content": content}
    await push(ours.pool, event)
    assert (await hide(ours.pool, OF_ALICE)).media == 1


async def test_held_media_can_be_hidden(ours: Parts) -> None:
    """A hold says that it stays, not that it is shown."""
    await push(ours.pool, image("$a"))
    async with ours.pool.acquire() as conn:
        await holds.place(conn, ROOM, "a case", "shell:root")
    assert (await hide(ours.pool, OF_ROOM)).media == 1


async def test_more_than_a_page(ours: Parts) -> None:
    """Each media counts once, however many events of one time name it."""
    await push(ours.pool, *(image(f"${n}", f"m{n // 2}") for n in range(2 * AT_ONCE + 2)))
    assert (await hide(ours.pool, OF_ROOM)).media == AT_ONCE + 1
    assert set((await states(ours.pool)).values()) == {"quarantined"}
    assert (await show(ours.pool, OF_ALICE)).media == AT_ONCE + 1


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["inline", "object"])
async def test_who_is_fetching_it_does_not_show_it(
    ours: Parts, homeserver: Homeserver, data: bytes
) -> None:
    """Whatever the worker says of a claim from before the quarantine changes nothing."""
    await push(ours.pool, image("$a"))
    homeserver.give(mxc("cat"), data)
    [job] = await claim(ours.pool)
    await hide(ours.pool, media("cat"))
    assert not (await archive_one(job, ours)).completed.held
    async with ours.pool.acquire() as conn:
        assert not await queue.settle(conn, job, "failed", "a reason")
        assert not await queue.postpone(conn, job, timedelta(), "a reason")
        assert not await queue.renew(conn, [job], timedelta(seconds=30))
        await queue.release(conn, [job])
    assert (await media_row(ours.pool, "cat"))["state"] == "quarantined"
    rows = await tables(ours.pool)
    assert (rows["blob"], rows["data"]) == (0, 0)


async def test_what_somebody_has_locked_is_waited_for(ours: Parts, homeserver: Homeserver) -> None:
    """A media that becomes ready in the very moment is hidden, after all others."""
    await push(ours.pool, image("$a", "cat"), image("$b", "dog"))
    await archive(ours, homeserver, cat=SMALL, dog=LARGE)
    await ours.pool.execute("UPDATE media SET state = 'pending', due_at = now()")
    async with ours.pool.acquire() as other:
        async with other.transaction():
            await other.execute("UPDATE media SET state = 'ready' WHERE media_id = 'cat'")
            hiding = asyncio.create_task(hide(ours.pool, OF_ROOM))
            await until(lambda: someone_waits(ours.pool), "the quarantine waits")
            assert await states(ours.pool) == {"cat": "pending", "dog": "quarantined"}
        assert await hiding == Done(2, len(SMALL) + len(LARGE))
    assert await states(ours.pool) == {"cat": "quarantined", "dog": "quarantined"}


async def test_a_hot_cache_hears_of_it(ours: Parts, homeserver: Homeserver) -> None:
    """What was ready is told to whoever keeps it in memory, in the commit that hides it."""
    await push(ours.pool, image("$a"))
    await archive(ours, homeserver, cat=SMALL)
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with ours.pool.acquire() as listening:
        await listening.add_listener(
            "media_changed", listen := lambda *told: heard.put_nowait(told[3])
        )
        await hide(ours.pool, media("cat"))
        async with asyncio.timeout(20):
            assert await heard.get() == "remote.example/cat"
        await listening.remove_listener("media_changed", listen)
