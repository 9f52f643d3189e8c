"""The helpers that wait for work, and the end of all the others."""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Sequence

from archiver.imaging.process import Helper


class Pool:
    """Lends helpers. A borrowed one is given back when it answered, else discarded."""

    def __init__(self, command: Sequence[str], jobs: int, idle: float) -> None:
        self._command = command
        self._jobs = jobs
        self._idle_seconds = idle
        self._closed = False
        self._idle: dict[Helper, TimerHandle] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> list[Helper]:
        """Those that wait, the longest waiting first."""
        return list(self._idle)

    async def borrow(self) -> Helper:
        """The one that worked last, so that the others may be ended; else a new one.

        Raises OperationError where none can be started.
        """
        while self._idle:
            helper, timer = self._idle.popitem()
            timer.cancel()
            if helper.alive:
                return helper
            self.discard(helper)
        helper = await Helper.spawn(self._command)
        try:
            await helper.greet()
        except BaseException:
            self.discard(helper)
            raise
        return helper

    def give_back(self, helper: Helper) -> None:
        """It answered, and may work again unless it did for long enough."""
        if self._closed or helper.jobs >= self._jobs:
            self.discard(helper)
            return
        loop = asyncio.get_running_loop()
        self._idle[helper] = loop.call_later(self._idle_seconds, self._retire, helper)

    def discard(self, helper: Helper) -> None:
        """Ends it, whatever it is doing."""
        helper.kill()
        task = asyncio.get_running_loop().create_task(helper.ended())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Ends those that wait, and returns when all that were discarded are gone."""
        self._closed = True
        for helper in self.idle:
            self._retire(helper)
        while self._ending:
            await asyncio.wait(self._ending)

    def _retire(self, helper: Helper) -> None:
        self._idle.pop(helper).cancel()
        self.discard(helper)
