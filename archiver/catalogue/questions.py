"""The `question` table: what was asked before something is destroyed, and what was answered."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from archiver.db.pool import Connection

Answer = Literal["ok", "cancel"]

ASK = """
INSERT INTO question (event_id, command_id, expires_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
"""
ASKED = "SELECT event_id FROM question WHERE command_id = $1"
FIND = """
SELECT q.event_id, q.command_id, i.room_id, i.sender, i.raw
FROM question AS q JOIN inbox AS i ON i.event_id = q.command_id WHERE q.event_id = $1
"""
# The same answer again is that of somebody who was killed before it was carried out.
ANSWER = """
UPDATE question SET answer = $2, answer_id = $3
WHERE event_id = $1 AND done_at IS NULL
  AND ((answer IS NULL AND expires_at > now()) OR (answer = $2 AND answer_id = $3))
RETURNING true
"""
EXPIRE = "UPDATE question SET answer = 'expired' WHERE answer IS NULL AND expires_at <= now()"
EXPIRED = """
SELECT q.event_id, q.command_id, i.room_id, i.sender, i.raw
FROM question AS q JOIN inbox AS i ON i.event_id = q.command_id
WHERE q.answer = 'expired' AND q.done_at IS NULL ORDER BY q.expires_at
"""
FINISH = "UPDATE question SET done_at = now() WHERE event_id = $1"


class Question(NamedTuple):
    """Our message that asks, and the command that it is about: where, whose, and its event."""

    event_id: str
    command_id: str
    room_id: str
    sender: str
    raw: bytes


async def ask(conn: Connection, event_id: str, command_id: str, expires_at: datetime) -> None:
    """Notes a question; a command has one."""
    await conn.execute(ASK, event_id, command_id, expires_at)


async def asked(conn: Connection, command_id: str) -> str | None:
    """Our message that asks about a command."""
    event_id: str | None = await conn.fetchval(ASKED, command_id)
    return event_id


async def find(conn: Connection, event_id: str) -> Question | None:
    """The question that this message of ours asks."""
    row = await conn.fetchrow(FIND, event_id)
    return Question(*row) if row else None


async def answer(conn: Connection, event_id: str, given: Answer, answer_id: str) -> bool:
    """Answers an open question. False: it expired, or something else answered it."""
    return bool(await conn.fetchval(ANSWER, event_id, given, answer_id))


async def expire(conn: Connection) -> list[Question]:
    """Closes what nobody answered in time. All that nobody was told of yet."""
    await conn.execute(EXPIRE)
    return [Question(*row) for row in await conn.fetch(EXPIRED)]


async def finish(conn: Connection, event_id: str) -> None:
    """It was carried out, cancelled, or told to have expired."""
    await conn.execute(FINISH, event_id)
