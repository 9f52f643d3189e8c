"""Custody is sealed in a chain, and whoever changes what it tells is found out."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import asyncpg
import pytest

from archiver.catalogue import custody
from archiver.control.reply import plain
from archiver.errors import Misused
from archiver.keep.custody_check import CustodyCheck
from archiver.keep.sealing import FIRST, Sealer
from archiver.matrix.registration import new_registration
from tests.support.custody import Desk, check, seal, tamper
from tests.support.fetching import until

if TYPE_CHECKING:
    from archiver.db.pool import Pool

ALICE, ROOM, CAT = "@alice:archive.test", "!control:archive.test", "mxc://archive.test/cat"


async def note(pool: Pool, *actions: str) -> None:
    """A line for each, about the cat."""
    for action in actions:
        async with pool.acquire() as conn:
            await custody.note(conn, ALICE, ROOM, action, CAT, reason="spam", times=1.10)


@pytest.fixture
async def sealed(pool: Pool) -> Pool:
    """Six lines in three seals."""
    await note(pool, "one", "two", "three", "four", "five", "six")
    await seal(pool, 2)
    return pool


async def test_an_empty_log_is_right(pool: Pool) -> None:
    """There is nothing to seal, and nothing to differ."""
    assert await Sealer(pool).seal() == 0
    found = await check(pool)
    assert (found.rows, found.seals, found.unsealed, found.head) == (0, 0, 0, FIRST)
    assert found.wrong == []


async def test_a_chain_is_verified(sealed: Pool) -> None:
    """All its lines and seals, and how many wait to be sealed; its head is the last hash."""
    await note(sealed, "seven")
    found = await check(sealed)
    assert (found.rows, found.seals, found.unsealed, found.wrong) == (6, 3, 1, [])
    assert found.head == await sealed.fetchval("SELECT hash FROM custody_seal WHERE id = 3")
    assert (await check(sealed, found.head)).wrong == []
    await seal(sealed)
    assert (await check(sealed, found.head)).wrong == []
    assert (await check(sealed)).head != found.head


async def test_the_same_rows_have_the_same_hash(sealed: Pool) -> None:
    """Whatever time zone the session is in."""
    head = (await check(sealed)).head
    async with sealed.acquire() as conn:
        await conn.execute("SET TIME ZONE 'Asia/Kathmandu'")
    assert (await check(sealed, head)).wrong == []


async def test_what_commits_late_is_sealed_later(pool: Pool) -> None:
    """A row whose id is lower than others' that were sealed before; what was rolled back is not
    waited for."""
    async with pool.acquire() as slow:
        late, lost = slow.transaction(), slow.transaction()
        await lost.start()
        await custody.note(slow, ALICE, ROOM, "lost")
        await lost.rollback()
        await late.start()
        await custody.note(slow, ALICE, ROOM, "late")
        await note(pool, "soon")
        await seal(pool)
        await late.commit()
    assert (await check(pool)).unsealed == 1
    await note(pool, "then")
    await seal(pool)
    rows = await pool.fetch("SELECT ids::text, missing::text FROM custody_seal ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("{[3,4)}", "{[1,3)}"),
        ("{[2,3),[4,5)}", "{[1,2)}"),
    ]
    found = await check(pool)
    assert (found.rows, found.unsealed, found.wrong) == (3, 0, [])


async def test_one_seals_at_a_time(pool: Pool) -> None:
    """Of many at the same moment, no two seal the same row."""
    await note(pool, *"abcdefgh")
    for _ in range(4):
        await asyncio.gather(*(Sealer(pool, 2).seal() for _ in range(4)))
    await seal(pool)
    found = await check(pool)
    assert (found.rows, found.unsealed, found.wrong) == (8, 0, [])


async def test_it_is_sealed_by_itself(pool: Pool) -> None:
    """All of it, however many batches that takes."""
    await note(pool, *"abcde")
    running = asyncio.create_task(Sealer(pool, 2).run())

    async def is_sealed() -> bool:
        return (await check(pool)).rows == 5

    await until(is_sealed, "custody is sealed")
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.parametrize("table", ["custody", "custody_seal"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {0} SET id = DEFAULT", "DELETE FROM {0}", "TRUNCATE {0}"]
)
async def test_nobody_changes_it(sealed: Pool, table: str, statement: str) -> None:
    """Neither a line nor a seal."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="never changed"):
        await sealed.execute(statement.format(table))


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("UPDATE custody SET actor = '@eve:archive.test' WHERE id = 3",
         ["row 3, of seal 2, was changed"]),
        ("UPDATE custody SET detail = detail || '{\"times\": 1.100}' WHERE id = 3",
         ["row 3, of seal 2, was changed"]),
        ("UPDATE custody SET at = at + interval '1 microsecond' WHERE id = 6",
         ["row 6, of seal 3, was changed"]),
        ("UPDATE custody SET target = NULL WHERE id = 1", ["row 1, of seal 1, was changed"]),
        ("DELETE FROM custody WHERE id = 4", ["row 4, of seal 2, is gone"]),
        ("DELETE FROM custody WHERE id IN (1, 6)",
         ["row 1, of seal 1, is gone", "row 6, of seal 3, is gone"]),
        ("UPDATE custody AS a SET action = b.action FROM custody AS b WHERE a.id + b.id = 5"
         " AND a.id IN (2, 3)",
         ["row 2, of seal 1, was changed", "row 3, of seal 2, was changed"]),
        ("DELETE FROM custody_seal WHERE id = 2",
         ["seal 2 is gone"]),
        ("DELETE FROM custody_seal WHERE id <= 2", ["seals 1 to 2 are gone"]),
        ("UPDATE custody_seal SET sealed_at = sealed_at - interval '1 day' WHERE id = 2",
         ["seal 2 was changed"]),
        ("UPDATE custody_seal SET ids = '{[1,1000000000000)}' WHERE id = 2",
         ["seal 2 was changed"]),
        ("UPDATE custody_seal SET previous = sha256('') WHERE id = 3",
         ["seal 3 is not bound to the one before it", "seal 3 was changed"]),
        ("INSERT INTO custody (id, actor, place, action) OVERRIDING SYSTEM VALUE"
         " VALUES (-1, '@eve:archive.test', 'shell', 'hold')",
         ["row -1 is in no seal, and was added by hand"]),
    ],
)  # fmt: skip
async def test_what_was_changed_is_named(sealed: Pool, statement: str, wrong: list[str]) -> None:
    """The very rows and seals, and no others."""
    await tamper(sealed, statement)
    assert (await check(sealed)).wrong == wrong


async def test_a_seal_made_anew_breaks_the_chain(sealed: Pool) -> None:
    """Its own hash is right, but the next seal knows another one."""
    await tamper(sealed, "UPDATE custody SET action = 'none' WHERE id = 3")
    await tamper(sealed, "CREATE TABLE stolen AS SELECT * FROM custody_seal WHERE id = 3")
    head = (await check(sealed)).head
    await tamper(sealed, "DELETE FROM custody_seal WHERE id >= 2")
    await seal(sealed, 2)
    await tamper(sealed, "DELETE FROM custody_seal WHERE id = 3")
    await tamper(sealed, "INSERT INTO custody_seal SELECT * FROM stolen")
    assert (await check(sealed)).wrong == ["seal 3 is not bound to the one before it"]
    assert head == (await check(sealed)).head


async def test_a_chain_made_anew_lacks_the_head_that_was_told(sealed: Pool) -> None:
    """Which nothing in the database could tell."""
    head = (await check(sealed)).head
    await tamper(sealed, "DELETE FROM custody_seal")
    await tamper(sealed, "UPDATE custody SET action = 'none' WHERE id = 3")
    await seal(sealed)
    assert (await check(sealed)).wrong == []
    [wrong] = (await check(sealed, head)).wrong
    assert wrong.startswith("no seal has the head")


async def test_a_row_put_in_between_is_named(pool: Pool) -> None:
    """Under an id that was free, telling of a time before what was sealed."""
    async with pool.acquire() as conn:
        lost = conn.transaction()
        await lost.start()
        await custody.note(conn, ALICE, ROOM, "lost")
        await lost.rollback()
    await note(pool, "one", "two")
    await seal(pool)
    await tamper(
        pool,
        "INSERT INTO custody (id, at, actor, place, action) OVERRIDING SYSTEM VALUE"
        " VALUES (1, '2020-05-31 12:00+00', '@eve:archive.test', 'shell', 'hold')",
    )
    await seal(pool)
    assert (await check(pool)).wrong == [
        "row 1 tells of 2020-05-31 12:00, and was added after later ones"
    ]


async def test_many_differences_are_counted(pool: Pool) -> None:
    """The first of them are named."""
    await note(pool, *(f"{n}" for n in range(30)))
    await seal(pool)
    await tamper(pool, "UPDATE custody SET action = 'none'")
    found = CustodyCheck(pool)
    async for _ in found.run():
        pass
    assert (found.bad, len(found.wrong)) == (30, 20)
    assert found.wrong[0] == "row 1, of seal 1, was changed"


@pytest.fixture
def desk(pool: Pool, http: aiohttp.ClientSession) -> Desk:
    return Desk(pool, http)


async def test_the_command_tells_the_head(sealed: Pool, desk: Desk) -> None:
    """With counts; and where it differs, it does not work."""
    reply = await desk.give("custody", "verify")
    head = (await check(sealed)).head.hex()
    assert plain(reply) == (
        f"All is as it was: 6 lines in 3 seals; 0 not sealed yet.\n\nHead: {head}"
    )
    assert not (await desk.give("custody", "verify", "--head", head)).failed
    await tamper(sealed, "DELETE FROM custody WHERE id = 4")
    reply = await desk.give("custody", "verify", "--head", head)
    assert reply.failed
    assert plain(reply) == (
        "1 difference in 5 lines in 3 seals; 0 not sealed yet. The first:\n\n"
        "• row 4, of seal 2, is gone"
    )
    with pytest.raises(Misused, match="is no head"):
        await desk.give("custody", "verify", "--head", "abc")


async def test_lines_are_shown(pool: Pool, desk: Desk) -> None:
    """The newest first, 20 at most, about one thing or all, since some time."""
    assert plain(await desk.give("custody")) == "Custody tells nothing of it."
    await note(pool, *(f"a{n}" for n in range(25)))
    async with pool.acquire() as conn:
        await custody.note(conn, "@bob:archive.test", "!else:archive.test", "hold", ALICE)
    shown = (await desk.give("custody")).data
    assert [row["action"] for row in shown] == ["hold", *(f"a{n}" for n in range(24, 5, -1))]
    for words, actions in (
        ([CAT], 20), ([ALICE], 20), (["@bob:archive.test"], 1), (["!else:archive.test"], 1),
        ([ROOM], 20), (["$none"], 0), (["--since", "1h"], 20), (["--since", "2099-01-01"], 0),
    ):  # fmt: skip
        assert len((await desk.give("custody", *words)).data) == actions, words
    assert plain(await desk.give("custody", "@bob:archive.test")).endswith(
        f" · who @bob:archive.test · where !else:archive.test · what hold · about {ALICE}"
    )


async def test_on_the_shell_one_word_is_enough(
    sealed: Pool, database_url: str, tmp_path: Path
) -> None:
    """`custody` shows lines, `custody verify` is another command, and fails where they differ."""
    path = tmp_path / "config.yaml"
    homeserver = {"url": "http://127.0.0.1:1", "server_name": "archive.test"}
    storage = {"filesystem": {"path": str(tmp_path / "objects")}, "spool": str(tmp_path / "spool")}
    told = {"homeserver": homeserver, "database": {"url": database_url}, "storage": storage}
    path.write_text(json.dumps(told), "utf-8")
    registration = new_registration("http://127.0.0.1:1", "archive.test")
    (tmp_path / "registration.yaml").write_text(json.dumps(registration), "utf-8")

    async def archiver(*words: str) -> tuple[int, Any]:
        command = [sys.executable, "-m", "archiver", *words, "-c", str(path), "--json"]
        ran = partial(subprocess.run, command, capture_output=True, text=True, check=False)
        done = await asyncio.to_thread(ran, timeout=120)
        return done.returncode, json.loads(done.stdout)

    assert len((await archiver("custody"))[1]) == 6
    assert len((await archiver("custody", CAT, "--since", "1d"))[1]) == 6
    code, found = await archiver("custody", "verify")
    assert (code, found["lines"], found["differences"]) == (0, 6, 0)
    await tamper(sealed, "DELETE FROM custody WHERE id = 4")
    code, found = await archiver("custody", "verify")
    assert (code, found["first"]) == (1, ["row 4, of seal 2, is gone"])
    await archiver("key", "create", "panel", "--scope", "admin")
    made = (await archiver("custody"))[1][0]
    assert (made["action"], made["target"]) == ("key create", "panel")
    assert made["detail"] == {"scope": "admin", "expires": "never"}
    assert made["actor"].startswith("shell:")
