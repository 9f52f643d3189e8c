"""What is said waits for the homeserver as long as it takes; what it refuses is not said again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import chain, repeat
from typing import Any, TypeVar

import structlog
from mautrix.errors import MatrixRequestError

from archiver.errors import OperationError
from archiver.matrix.speech import UNHEARD, Speech

PAUSES = (0.5, 1, 2, 5, 10, 20)
# These pass: no time for us, a token that is being changed, a limit.
_PASSING = frozenset({401, 408, 429})

T = TypeVar("T")

log = structlog.get_logger(__name__)


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """The homeserver's answer, whenever it comes. Raises OperationError for a refusal."""
    for seconds in chain(PAUSES, repeat(PAUSES[-1])):
        try:
            return await ask()
        except UNHEARD as error:
            if is_final(error):
                raise OperationError(f"the homeserver refused: {error}") from error
            log.warning("the homeserver does not hear us", reason=str(error), again_in_s=seconds)
        await asyncio.sleep(seconds)
    raise AssertionError


def is_final(error: BaseException) -> bool:
    """True when the same again would end the same."""
    status = error.http_status if isinstance(error, MatrixRequestError) else 0
    return 400 <= status < 500 and status not in _PASSING


class Voice:
    """Speaks in rooms. The same `txn` again is the same message, so what is said once more after
    a crash is said once."""

    def __init__(self, speech: Speech) -> None:
        self.speech = speech

    async def say(self, room_id: str, content: dict[str, Any], txn: str) -> str | None:
        """The message's id; None where the homeserver refuses it, which is logged."""
        kind = "m.room.message"
        return await self._said(lambda: self.speech.send(room_id, kind, content, txn))

    async def react(self, room_id: str, event_id: str, key: str, txn: str) -> None:
        """Puts a sign under a message; a refusal is logged."""
        await self._said(lambda: self.speech.react(room_id, event_id, key, txn))

    async def _said(self, ask: Callable[[], Awaitable[str]]) -> str | None:
        try:
            return await patiently(ask)
        except OperationError as error:
            log.warning("the bot could not speak", reason=str(error))
            return None
