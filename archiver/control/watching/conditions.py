"""What is well or not at this moment, and how the control room hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import NamedTuple

from archiver.catalogue.notices import Spell
from archiver.control.reply import Reply
from archiver.control.watching import sentences
from archiver.control.watching.answering import Asking
from archiver.control.watching.disks import Space
from archiver.errors import StoreUnavailable
from archiver.scan.base import ScannerAway

ANSWER_SECONDS = 10.0
SCANNER_PATIENCE = 5  # times as long as with others


class Condition(NamedTuple):
    """A cause, and whether it is there: None for neither here nor gone.

    `patience`: how long it lasts before it is worth a word. `begun` and `over` put that into
    words; without `begun` it is told afterwards only. `unsaid`: its end is told even if its
    beginning was not.
    """

    cause: str
    bad: bool | None
    patience: timedelta
    begun: Callable[[Spell], Reply] | None
    over: Callable[[Spell], Reply]
    unsaid: bool


class Surroundings:
    """What the archive stands on besides its database."""

    def __init__(
        self,
        homeserver: Callable[[], Awaitable[bool]],
        store: Callable[[], Awaitable[None]],
        spaces: Callable[[], list[Space]],
        scanner: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        """`store` raises StoreUnavailable when it is away; `spaces` may block; `scanner` raises
        ScannerAway."""
        self.homeserver_answers = homeserver
        self._store = Asking(store, ANSWER_SECONDS)
        self._spaces = Asking(partial(asyncio.to_thread, spaces), ANSWER_SECONDS)
        self._scanner = scanner and Asking(scanner, ANSWER_SECONDS)

    async def troubles(self, answers: bool, patience: timedelta) -> list[Condition]:
        """Of the homeserver, which `answers` or not, and of the object store."""
        away = await self._store_away()
        store = partial(sentences.store_away, reason=away or "")
        return [
            Condition(
                "homeserver", not answers, patience, None, sentences.homeserver_back, unsaid=True
            ),
            Condition(
                "store", away is not None, patience, store, sentences.store_back, unsaid=True
            ),
        ]

    async def disks(self) -> list[Condition]:
        """Of every file system; none while one of them hangs, which the store tells."""
        try:
            found = await self._spaces.answer()
        except TimeoutError:
            return []
        return list(map(_disk, found))

    async def scanning(self, patience: timedelta) -> list[Condition]:
        """Of the scanner, where there is one. It may take long to read its signatures."""
        if self._scanner is None:
            return []
        away = None
        try:
            await self._scanner.answer()
        except TimeoutError:
            away = "the scanner only makes us wait; see that it runs well"
        except ScannerAway as error:
            away = str(error)
        begun = partial(sentences.scanner_away, reason=away or "")
        longer = SCANNER_PATIENCE * patience
        over = sentences.scanner_back
        return [Condition("scanner", away is not None, longer, begun, over, unsaid=False)]

    async def _store_away(self) -> str | None:
        try:
            await self._store.answer()
        except TimeoutError:
            return "it only makes us wait; see that its disk or its server is well"
        except StoreUnavailable as error:
            return str(error)
        return None


def _disk(space: Space) -> Condition:
    def begun(_: Spell) -> Reply:
        return sentences.disk_low(space)

    def over(_: Spell) -> Reply:
        return sentences.disk_roomy(space)

    return Condition(space.cause, space.is_low, timedelta(0), begun, over, unsaid=False)
