"""The control room answers whom it should, once, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import click
import pytest
from structlog.testing import capture_logs

from archiver.base import http_session
from archiver.control import carrying, permission, progress, room, surely, voice
from archiver.control.asked import Asked
from archiver.control.commands import helping
from archiver.control.definition import Command, command
from archiver.control.outcome import FAULT
from archiver.control.reply import Reply, Table, said
from archiver.db.listen import Listener
from archiver.db.migrate import bring_up_to_date
from archiver.db.pool import open_pool
from archiver.errors import OperationError
from archiver.matrix.signs import CANCEL, OK
from tests.support.desk import ADMIN, OTHER_ADMIN, ROOM, STRANGER, Desk
from tests.support.fetching import until
from tests.support.homeserver import SERVER_NAME
from tests.support.postgres import PostgresProcess
from tests.support.talk import Talk

if TYPE_CHECKING:
    from archiver.db.pool import Pool

ELSEWHERE = f"!elsewhere:{SERVER_NAME}"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of the same kind, but shorter."""
    monkeypatch.setattr(room, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(room, "LOOK_FOR_ROOM_SECONDS", 0.02)
    monkeypatch.setattr(room, "TRY_AGAIN", timedelta(seconds=0.02))
    monkeypatch.setattr(voice, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(surely, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(progress, "EDIT_SECONDS", 0.02)
    monkeypatch.setattr(permission, "REMEMBERED_SECONDS", 0.0)


@pytest.fixture
async def talk() -> AsyncIterator[Talk]:
    """A homeserver to speak on."""
    async with Talk() as talk:
        yield talk


@pytest.fixture
async def desk(pool: Pool, talk: Talk, tmp_path: Path) -> AsyncIterator[Desk]:
    """Who speaks to the bot."""
    async with http_session() as session:
        yield Desk(pool, talk, session, tmp_path)


class Deeds:
    """Commands, and what was done of them. Each waits for its `gate`, where it has one."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.begun: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.trouble: BaseException | None = None
        self.troubles = 0
        self.unasked: OperationError | None = None

    async def do(self, what: str) -> Reply:
        """Notes that it was done."""
        self.begun.append(what)
        if what in self.gates:
            await self.gates[what].wait()
        if self.troubles and self.trouble is not None:
            self.troubles -= 1
            raise self.trouble
        self.done.append(what)
        return said(f"did {what}")

    def commands(self) -> tuple[Command, ...]:
        """`read`, `change`, `go` (long) and `destroy` (asks), each with a word."""
        word = click.argument("word", type=click.Choice(["one", "two", "three", "four"]))

        @command("read")
        @word
        async def read(asked: Asked, word: str) -> Reply:
            """Read something."""
            return await self.do(word)

        @command("change", changes=True)
        @word
        async def change(asked: Asked, word: str) -> Reply:
            """Change something."""
            return await self.do(word)

        @command("go", long=True, changes=True)
        @word
        async def go(asked: Asked, word: str) -> Reply:
            """Go on for long."""
            self.begun.append(word)
            step = 0
            while word in self.gates and not self.gates[word].is_set():
                step += 1
                await asked.progress(said(f"step {step}"))
                await asked.pause(0.01)
            self.done.append(word)
            return said(f"went {word}")

        async def asks(asked: Asked, word: str) -> Reply:
            if self.unasked is not None:
                raise self.unasked
            return said(f"{word} would go")

        @command("destroy", asks=asks)
        @word
        async def destroy(asked: Asked, word: str) -> Reply:
            """Destroy something."""
            return await self.do(word)

        @command("secret")
        async def secret(asked: Asked) -> Reply:
            """Tell a secret."""
            await asked.tell_alone(said("the secret"))
            return said("told you")

        return helping.with_help((read, change, go, destroy, secret))

    def hold(self, word: str) -> asyncio.Event:
        """The word's commands end when this is set."""
        self.gates[word] = asyncio.Event()
        return self.gates[word]


@pytest.fixture
def deeds() -> Deeds:
    """Commands of our own."""
    return Deeds()


def eventually(condition: Callable[[], bool], what: str) -> Awaitable[None]:
    """Polls until it is true."""

    async def is_true() -> bool:
        return condition()

    return until(is_true, what)


async def test_an_administrators_invitation_is_followed(desk: Desk, talk: Talk) -> None:
    """The bot joins its control room and says once who it is."""
    talk.joined.clear()
    async with desk.room(()):
        await desk.invite(ROOM)
        await desk.settled()
    assert talk.joined == {ROOM}
    [hello] = talk.messages()
    assert "!archive help" in hello.body
    assert "encrypted" not in hello.body


async def test_an_encrypted_control_room_is_told(desk: Desk, talk: Talk) -> None:
    """Where it cannot read, the bot says so."""
    talk.joined.clear()
    talk.state[ROOM, "m.room.encryption"] = {"algorithm": "m.megolm.v1.aes-sha2"}
    async with desk.room(()):
        await desk.invite(ROOM)
        await desk.settled()
    assert "without encryption" in talk.messages()[0].body


async def test_no_other_invitation_is_followed(desk: Desk, talk: Talk) -> None:
    """Neither a stranger's nor one to another room: custody tells of them, the bot does not."""
    async with desk.room(()):
        await desk.invite(ROOM, STRANGER)
        await desk.invite(ELSEWHERE, ADMIN)
        await desk.settled()
    assert (talk.joins, talk.said) == (0, [])
    assert await desk.custody() == [
        (STRANGER, ROOM, "refused"),
        (ADMIN, ELSEWHERE, "refused"),
    ]


async def test_a_control_room_is_found_by_its_alias(desk: Desk, talk: Talk) -> None:
    """Also when the alias names it only after a while."""
    talk.joined.clear()
    alias = f"#control:{SERVER_NAME}"
    async with desk.room((), control_room=alias) as listening:
        await desk.invite(ROOM)
        await desk.settled()
        assert talk.joins == 0
        talk.aliases[alias] = ROOM
        await eventually(lambda: listening.known_room() == ROOM, "the room is known")
        await desk.invite(ROOM)
        await desk.settled()
    assert talk.joined == {ROOM}


async def test_without_a_control_room_the_log_tells_how_to_have_one(
    desk: Desk, talk: Talk
) -> None:
    """An administrator's invitation is not followed, and the log says what to write."""
    with capture_logs() as logs:
        async with desk.room((), control_room=None):
            await desk.invite(ELSEWHERE)
            await desk.settled()
    assert talk.joins == 0
    assert any("control_room" in log["event"] and log.get("room_id") == ELSEWHERE for log in logs)


async def test_a_command_is_answered_and_signed(desk: Desk, talk: Talk, deeds: Deeds) -> None:
    """In reply, once, with an OK under the command."""
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive read one")
        answer = await desk.answer(event)
        await desk.settled()
    assert answer.body == "did one"
    assert answer.content["m.relates_to"]["m.in_reply_to"] == {"event_id": event}
    assert talk.signs(event) == [OK]
    assert len(talk.said) == 2
    assert await desk.custody() == []


async def test_strangers_and_other_rooms_get_no_answer(
    desk: Desk, talk: Talk, deeds: Deeds
) -> None:
    """Custody tells of each sender and room, not of every message."""
    talk.joined.add(ELSEWHERE)
    async with desk.room(deeds.commands()):
        for _ in range(5):
            await desk.say("!archive read one", STRANGER)
            await desk.say("!archive read one", ADMIN, ELSEWHERE)
        await desk.settled()
    assert (talk.said, deeds.begun) == ([], [])
    assert sorted(await desk.custody()) == [
        (ADMIN, ELSEWHERE, "refused"),
        (STRANGER, ROOM, "refused"),
    ]


@pytest.mark.parametrize(
    ("levels", "may"),
    [
        ({"users": {STRANGER: 50}}, True),
        ({"users": {STRANGER: "50"}}, True),
        ({"users": {STRANGER: 49}}, False),
        ({"users": {STRANGER: 0}, "users_default": 100}, False),
        ({"users_default": 50}, True),
        ({"users": [], "users_default": True}, False),
        (None, False),
    ],
)
async def test_power_in_the_control_room_lets_command(
    desk: Desk, talk: Talk, deeds: Deeds, levels: dict[str, Any] | None, may: bool
) -> None:
    """Whoever has the configured level may, as Matrix counts it."""
    if levels is not None:
        talk.state[ROOM, "m.room.power_levels"] = levels
    async with desk.room(deeds.commands(), power_level=50):
        await desk.say("!archive read one", STRANGER)
        await desk.settled()
    assert (deeds.done == ["one"]) is may


@pytest.mark.parametrize(("version", "may"), [("12", True), ("11", False)])
async def test_who_made_the_control_room_lets_command(
    desk: Desk, talk: Talk, deeds: Deeds, version: str, may: bool
) -> None:
    """From room version 12 on its creator is above all levels, and not named among them."""
    made = {"content": {"room_version": version}, "sender": STRANGER}
    talk.state[ROOM, "m.room.create"] = made
    talk.state[ROOM, "m.room.power_levels"] = {"users": {ADMIN: 100}}
    async with desk.room(deeds.commands(), power_level=100):
        await desk.say("!archive read one", STRANGER)
        await desk.settled()
    assert (deeds.done == ["one"]) is may


async def test_nobody_commands_a_room_that_the_bot_has_left(
    desk: Desk, talk: Talk, deeds: Deeds
) -> None:
    """Not even an administrator."""
    talk.joined.clear()
    async with desk.room(deeds.commands()):
        await desk.say("!archive read one")
        await desk.settled()
    assert (deeds.begun, talk.said) == ([], [])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("!archive", "read"),
        ("  !archive\u00a0help", "read"),
        ("!archive read --help", "Read something."),
        ("!archive -h change nonsense", "Change something."),
        ("!archive raed one", "did you mean `read`?"),
        ("!archive read nonsense", "!archive read nonsense\n              ^^^^^^^^"),
        ("!archive read", "Usage: !archive read"),
        ("!archive read 'one", "never closed"),
        ("!archive read \u201cone\u201d", "did one"),
    ],
)
async def test_what_is_wrong_with_a_line_is_told(
    desk: Desk, deeds: Deeds, line: str, told: str
) -> None:
    """Help, suggestions, and a finger on the word."""
    async with desk.room(deeds.commands()):
        answer = await desk.answer(await desk.say(line))
    assert told in answer.body


async def test_a_mistake_is_shown_as_code(desk: Desk, talk: Talk, deeds: Deeds) -> None:
    """So that the caret stands under the word, with a Cancel under the command."""
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive read <b>")
        answer = await desk.answer(event)
    assert "<pre><code>!archive read &lt;b&gt;\n" in answer.content["formatted_body"]
    assert talk.signs(event) == [CANCEL]


@pytest.mark.parametrize(
    ("trouble", "told"),
    [(OperationError("it is full"), "it is full"), (RuntimeError("of mine"), FAULT)],
)
async def test_what_does_not_work_is_told(
    desk: Desk, talk: Talk, deeds: Deeds, trouble: Exception, told: str
) -> None:
    """The sentence of an error that we know; of any other only that it is our fault."""
    deeds.trouble, deeds.troubles = trouble, 1
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive read one")
        assert (await desk.answer(event)).body == told
        assert (await desk.answer(await desk.say("!archive read two"))).body == "did two"
    assert talk.signs(event) == [CANCEL]


async def test_short_commands_wait_for_each_other_and_long_ones_for_nobody(
    desk: Desk, deeds: Deeds
) -> None:
    """One at a time, in the order in which they were given."""
    first, aside = deeds.hold("one"), deeds.hold("two")
    async with desk.room(deeds.commands()) as listening:
        await desk.say("!archive go two")
        held = await desk.say("!archive read one")
        last = await desk.say("!archive change three")
        await eventually(lambda: deeds.begun == ["two", "one"], "the first ones are begun")
        for _ in range(10):
            listening.wake()
            await asyncio.sleep(0)
        assert deeds.begun == ["two", "one"]
        first.set()
        await desk.answer(held)
        await desk.answer(last)
        assert deeds.done == ["one", "three"]
        aside.set()
        await desk.settled()
    assert deeds.done == ["one", "three", "two"]


async def test_an_interrupted_change_is_not_done_again(
    desk: Desk, talk: Talk, deeds: Deeds
) -> None:
    """Whoever gave it is told to look."""
    deeds.hold("one")
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive change one")
        await eventually(lambda: deeds.begun == ["one"], "it is begun")
    async with desk.room(deeds.commands()):
        assert (await desk.answer(event)).body == carrying.INTERRUPTED
    assert deeds.begun == ["one"]
    assert talk.signs(event) == [CANCEL]


async def test_a_change_that_was_not_begun_is_done(desk: Desk, talk: Talk, deeds: Deeds) -> None:
    """A process that ended while it asked who may has changed nothing."""
    talk.away = True
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive change one")
        await eventually(lambda: talk.asked_while_away > 1, "the homeserver is asked")
    talk.away = False
    async with desk.room(deeds.commands()):
        assert (await desk.answer(event)).body == "did one"


async def test_an_interrupted_look_is_taken_again(desk: Desk, deeds: Deeds) -> None:
    """Reading does no harm."""
    gate = deeds.hold("one")
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive read one")
        await eventually(lambda: deeds.begun == ["one"], "it is begun")
    gate.set()
    async with desk.room(deeds.commands()):
        assert (await desk.answer(event)).body == "did one"


async def test_an_outage_of_the_database_is_waited_for(
    desk: Desk, talk: Talk, deeds: Deeds
) -> None:
    """What only reads is tried again; what changes may have been done, and is not."""
    deeds.trouble, deeds.troubles = asyncpg.InterfaceError("away"), 2
    async with desk.room(deeds.commands()):
        assert (await desk.answer(await desk.say("!archive read one"))).body == "did one"
        assert deeds.begun == ["one"] * 3
        deeds.troubles = 1
        event = await desk.say("!archive change two")
        assert carrying.INTERRUPTED in (await desk.answer(event)).body
    assert deeds.begun == ["one"] * 3 + ["two"]
    assert talk.signs(event) == [CANCEL]


async def test_a_database_that_is_gone_for_a_while_loses_nothing(
    own_postgres: PostgresProcess, talk: Talk, deeds: Deeds, tmp_path: Path
) -> None:
    """What was carried out meanwhile is answered, what comes later is heard."""
    async with open_pool(own_postgres.url, 5) as pool, http_session() as session:
        await bring_up_to_date(pool, embedded=False)
        desk, gate = Desk(pool, talk, session, tmp_path), deeds.hold("one")
        async with desk.room(deeds.commands()):
            event = await desk.say("!archive change one")
            await eventually(lambda: deeds.begun == ["one"], "it is begun")
            await asyncio.to_thread(own_postgres.stop)
            gate.set()
            assert (await desk.answer(event)).body == "did one"
            await asyncio.to_thread(own_postgres.start)
            assert (await desk.answer(await desk.say("!archive read two"))).body == "did two"
            await desk.settled()
    assert deeds.begun == ["one", "two"]


async def test_a_long_command_edits_one_message(desk: Desk, talk: Talk, deeds: Deeds) -> None:
    """It shows how far it is and how to cancel, then how it ended; the outcome is an answer."""
    gate = deeds.hold("one")
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive go one")
        await eventually(
            lambda: any(len(talk.edits(m.event_id)) > 2 for m in talk.messages()), "it is edited"
        )
        gate.set()
        assert (await desk.answer(event)).body == "went one"
        await desk.settled()
    shown, answer = talk.messages()
    assert f"{CANCEL} cancels" in shown.body
    assert talk.signs(shown.event_id) == [CANCEL]
    edits = talk.edits(shown.event_id)
    assert edits[-1].endswith("Done.")
    assert len(set(edits)) == len(edits)
    assert talk.signs(event) == [OK]
    assert answer.edits is None


async def progress_of(talk: Talk) -> str:
    """The message that shows how far it is, once it can be cancelled."""
    await eventually(lambda: any(said.sign for said in talk.said), "it shows how far it is")
    return talk.messages()[0].event_id


async def test_a_cancel_ends_a_long_command(desk: Desk, talk: Talk, deeds: Deeds) -> None:
    """Of anybody who may command, and of nobody else."""
    deeds.hold("one")
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive go one")
        shown = await progress_of(talk)
        await desk.react(shown, CANCEL, STRANGER)
        await desk.react(shown, OK, ADMIN)
        await desk.answer(await desk.say("!archive read two"))
        assert talk.signs(event) == []
        await desk.react(shown, f"{CANCEL}\ufe0f", OTHER_ADMIN)
        assert (await desk.answer(event)).body == "Cancelled."
    assert talk.signs(event) == [CANCEL]
    assert talk.edits(shown)[-1].endswith("Cancelled.")
    assert deeds.done == ["two"]


async def test_a_long_command_goes_on_in_the_next_process(
    desk: Desk, talk: Talk, deeds: Deeds
) -> None:
    """The end of a process is no cancel, and the same message is edited from then on."""
    gate = deeds.hold("one")
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive go one")
        shown = await progress_of(talk)
    assert talk.signs(event) == []
    async with desk.room(deeds.commands()):
        await eventually(lambda: deeds.begun == ["one", "one"], "it is begun again")
        gate.set()
        assert (await desk.answer(event)).body == "went one"
    assert talk.messages()[0].event_id == shown
    assert len(talk.messages()) == 2
    assert talk.edits(shown)[-1].endswith("Done.")


async def test_a_cancel_reaches_the_process_that_works(
    desk: Desk, talk: Talk, deeds: Deeds, database_url: str
) -> None:
    """Whichever process reads it."""
    deeds.hold("one")
    listener = Listener(database_url)
    async with desk.room(deeds.commands()) as working:
        listener.on_payload("control_cancel", working.cancel)
        listening = asyncio.create_task(listener.run())
        await eventually(lambda: listener.connected, "it listens")
        event = await desk.say("!archive go one")
        shown = await progress_of(talk)
        async with desk.pool.acquire() as conn:
            other = await conn.fetchval("SELECT event_id FROM inbox WHERE reply_id = $1", shown)
            await conn.execute("SELECT pg_notify('control_cancel', $1)", other)
        assert (await desk.answer(event)).body == "Cancelled."
        listening.cancel()


async def test_what_destroys_asks_first(desk: Desk, talk: Talk, deeds: Deeds) -> None:
    """Nobody else answers for who was asked; the OK carries it out, once."""
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive destroy one")
        question = await desk.question(event)
        assert "one would go" in question.body
        assert f"{OK} to go on or {CANCEL} to cancel, until " in question.body
        assert sorted(talk.signs(question.event_id)) == sorted([OK, CANCEL])
        await desk.react(question.event_id, OK, OTHER_ADMIN)
        await desk.react(question.event_id, CANCEL, OTHER_ADMIN)
        await desk.settled()
        assert (deeds.begun, talk.signs(event)) == ([], [])
        await desk.react(question.event_id, OK)
        assert (await desk.answer(event)).body == "did one"
        await desk.react(question.event_id, CANCEL)
        await desk.react(question.event_id, OK)
        await desk.settled()
    assert deeds.begun == ["one"]
    assert talk.signs(event) == [OK]


async def test_a_question_survives_a_restart(desk: Desk, deeds: Deeds) -> None:
    """It is answered in the next process."""
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive destroy one")
        question = await desk.question(event)
        await desk.settled()
    await desk.react(question.event_id, OK)
    async with desk.room(deeds.commands()):
        assert (await desk.answer(event)).body == "did one"
    assert deeds.begun == ["one"]


async def test_an_answered_question_is_carried_out_after_a_kill(
    desk: Desk, talk: Talk, deeds: Deeds
) -> None:
    """Between the OK and the end of the command the process may go away."""
    gate = deeds.hold("one")
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive destroy one")
        question = await desk.question(event)
        await desk.react(question.event_id, OK)
        await eventually(lambda: deeds.begun == ["one"], "it is begun")
    gate.set()
    async with desk.room(deeds.commands()):
        assert (await desk.answer(event)).body == "did one"
        await desk.settled()
    assert deeds.done == ["one"]
    assert talk.signs(event) == [OK]


async def test_a_cancelled_question_changes_nothing(desk: Desk, talk: Talk, deeds: Deeds) -> None:
    """And says so."""
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive destroy one")
        question = await desk.question(event)
        await desk.react(question.event_id, CANCEL)
        assert (await desk.answer(event)).body == "Cancelled, nothing was changed."
        await desk.react(question.event_id, OK)
        await desk.settled()
    assert deeds.begun == []
    assert talk.signs(event) == [CANCEL]


async def test_who_may_command_no_more_answers_no_question(
    desk: Desk, talk: Talk, deeds: Deeds
) -> None:
    """What counts is what they may when they answer."""
    talk.state[ROOM, "m.room.power_levels"] = {"users": {STRANGER: 100}}
    async with desk.room(deeds.commands(), power_level=100):
        event = await desk.say("!archive destroy one", STRANGER)
        question = await desk.question(event)
        talk.state[ROOM, "m.room.power_levels"] = {}
        await desk.react(question.event_id, OK, STRANGER)
        await desk.settled()
    assert deeds.begun == []


async def test_a_question_expires(desk: Desk, talk: Talk, deeds: Deeds) -> None:
    """Its message says so, also when nobody ran at that time; an OK comes too late then."""
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive destroy one")
        question = await desk.question(event)
        await desk.settled()
    await desk.pool.execute("UPDATE question SET expires_at = now() - interval '1 s'")
    await desk.react(question.event_id, OK)
    async with desk.room(deeds.commands()):
        await eventually(lambda: bool(talk.edits(question.event_id)), "it is told")
        await desk.settled()
    assert "expired" in talk.edits(question.event_id)[0]
    assert len(talk.edits(question.event_id)) == 1
    assert deeds.begun == []


async def test_where_there_is_nothing_to_ask_the_reason_is_the_answer(
    desk: Desk, talk: Talk, deeds: Deeds
) -> None:
    """What cannot be done is not asked."""
    deeds.unasked = OperationError("there is no such thing")
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive destroy one")
        assert (await desk.answer(event)).body == "there is no such thing"
    assert talk.signs(event) == [CANCEL]


async def test_a_homeserver_that_is_away_hears_the_answer_later(
    desk: Desk, talk: Talk, deeds: Deeds
) -> None:
    """And the command is carried out once."""
    gate = deeds.hold("one")
    async with desk.room(deeds.commands()):
        event = await desk.say("!archive change one")
        await eventually(lambda: deeds.begun == ["one"], "it is begun")
        talk.away = True
        gate.set()
        await eventually(lambda: talk.asked_while_away > 3, "it is tried again")
        talk.away, talk.deaf = False, 2
        assert (await desk.answer(event)).body == "did one"
        await desk.settled()
    assert deeds.begun == ["one"]
    assert len(talk.said) == 2


async def test_a_homeserver_that_refuses_is_not_asked_for_ever(
    desk: Desk, talk: Talk, deeds: Deeds
) -> None:
    """Where the bot may not speak, it does what it is told all the same."""
    talk.refuses.add(ROOM)
    async with desk.room(deeds.commands()):
        await desk.say("!archive change one")
        await desk.say("!archive change two")
        await desk.settled()
    assert deeds.done == ["one", "two"]


async def test_what_nobody_can_put_into_words_is_a_fault(desk: Desk, talk: Talk) -> None:
    """A command whose table is askew is answered all the same."""

    @command("askew")
    async def askew(asked: Asked) -> Reply:
        """Answer nonsense."""
        return said(Table(("one", "two"), (("alone",),)))

    async with desk.room([askew]):
        event = await desk.say("!archive askew")
        assert (await desk.answer(event)).body == FAULT
    assert talk.signs(event) == [CANCEL]


async def test_signs_under_other_messages_are_forgotten(desk: Desk, talk: Talk) -> None:
    """People put them under anything, and the archive keeps no list of that."""
    async with desk.room(()):
        await desk.react("$somebodys", OK, STRANGER, ELSEWHERE)
        await desk.settled()
    assert (talk.said, await desk.custody()) == ([], [])
    assert await desk.pool.fetchval("SELECT count(*) FROM inbox") == 0


async def test_two_control_rooms_share_one_inbox(desk: Desk, talk: Talk, deeds: Deeds) -> None:
    """Everything is done once, by either."""
    async with desk.room(deeds.commands()), desk.room(deeds.commands()):
        events = [await desk.say("!archive change one") for _ in range(20)]
        for event in events:
            await desk.answer(event)
        await desk.settled()
    assert deeds.done == ["one"] * 20
    assert len(talk.said) == 40


async def test_a_secret_is_told_alone(desk: Desk, talk: Talk, deeds: Deeds) -> None:
    """In a room of the two, not in the control room."""
    async with desk.room(deeds.commands()):
        assert (await desk.answer(await desk.say("!archive secret"))).body == "told you"
    assert [said.body for said in talk.messages() if said.room_id != ROOM] == ["the secret"]
    assert [said.body for said in talk.messages(ROOM)] == ["told you"]


async def test_what_is_long_dealt_with_is_purged(desk: Desk, deeds: Deeds) -> None:
    """The inbox does not grow for ever."""
    async with desk.room(deeds.commands()):
        await desk.answer(await desk.say("!archive read one"))
        await desk.settled()
    await desk.pool.execute("UPDATE inbox SET received_at = now() - interval '31 d'")

    async def is_empty() -> bool:
        return int(await desk.pool.fetchval("SELECT count(*) FROM inbox")) == 0

    async with desk.room(deeds.commands()):
        await until(is_empty, "it is purged")


@pytest.mark.parametrize(
    "raw", [b"no JSON", b"[]", b'{"type":7}', b'{"type":"m.reaction","content":{}}']
)
async def test_what_has_no_shape_is_passed_over(desk: Desk, raw: bytes) -> None:
    """It holds up nobody."""
    await desk.pool.execute(
        "INSERT INTO inbox (event_id, room_id, sender, raw) VALUES ('$x', $1, $2, $3)",
        ROOM, ADMIN, raw,
    )  # fmt: skip
    async with desk.room(()):
        await desk.settled()
