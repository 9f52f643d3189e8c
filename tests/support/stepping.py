"""Processes of an archive that die, or are held up, at any of their steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from archiver.store.base import BlobStore, Body
from archiver.store.filesystem import FilesystemStore

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Pool, Row


class Died(BaseException):
    """The process is no more: nobody catches this, and what was not committed is undone."""


class Steps:
    """Whatever a process asks of database and store is a step. The one after so many is its last,
    or the one at which it waits for `go_on`."""

    def __init__(self, *, dies: int | None = None, waits: int | None = None) -> None:
        self._dies = dies
        self._waits = waits
        self.taken = 0
        self.waiting = asyncio.Event()
        self._on = asyncio.Event()

    def go_on(self) -> None:
        """It is not held up any more."""
        self._on.set()

    async def step(self) -> None:
        """One more; a dead process takes none."""
        self.taken += 1
        if self._dies is not None and self.taken > self._dies:
            raise Died
        if self._waits is not None and self.taken > self._waits:
            self.waiting.set()
            await self._on.wait()


class SteppedStore(FilesystemStore):
    """A step before the store is changed, and one after it."""

    def __init__(self, path: Path, steps: Steps) -> None:
        super().__init__(path)
        self._steps = steps

    async def put(self, body: Body) -> None:
        await self._stepped(super().put, body)

    async def replace(self, body: Body) -> None:
        await self._stepped(super().replace, body)

    async def delete(self, sha256: bytes) -> None:
        await self._stepped(super().delete, sha256)

    async def size(self, sha256: bytes) -> int | None:
        await self._steps.step()
        return await super().size(sha256)

    async def _stepped(self, work: Callable[[Any], Awaitable[None]], given: object) -> None:
        await self._steps.step()
        await work(given)
        await self._steps.step()


class _Former:
    """A store of another kind, and so with another name, than where objects are kept now."""

    def __init__(self, store: FilesystemStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def former(store: FilesystemStore) -> BlobStore:
    """The store as one that objects were kept in before."""
    return cast("BlobStore", _Former(store))


class _SteppedPool:
    def __init__(self, pool: Pool, steps: Steps) -> None:
        self._pool = pool
        self._steps = steps

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        await self._steps.step()
        async with self._pool.acquire() as conn:
            yield conn

    async def execute(self, *said: Any) -> str:
        await self._steps.step()
        return await self._pool.execute(*said)

    async def fetch(self, *said: Any) -> list[Row]:
        await self._steps.step()
        return await self._pool.fetch(*said)

    async def fetchrow(self, *said: Any) -> Row | None:
        await self._steps.step()
        return await self._pool.fetchrow(*said)

    async def fetchval(self, *said: Any) -> Any:
        await self._steps.step()
        return await self._pool.fetchval(*said)


def stepped(pool: Pool, steps: Steps) -> Pool:
    """The pool, as a process has it that takes these steps; never held up within a transaction."""
    return cast("Pool", _SteppedPool(pool, steps))
