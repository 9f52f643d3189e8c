"""The door: pictures are asked for here, and made in a few helper processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import structlog

from archiver import metrics
from archiver.errors import (
    ArchiverError,
    CannotRender,
    LimitExceeded,
    NotAnImage,
    OperationError,
    RenderingBroke,
    TooLargeToRender,
)
from archiver.imaging import wire
from archiver.imaging.pool import Pool
from archiver.imaging.process import COMMAND, Answer, Helper, HelperLost
from archiver.imaging.recipe import Probe, Recipe
from archiver.imaging.wire import Footage, Rendered

_REFUSALS: dict[str, type[ArchiverError]] = {
    "not_an_image": NotAnImage,
    "cannot": CannotRender,
    "too_large": TooLargeToRender,
}
_REASON_LENGTH = 300

T = TypeVar("T")

log = structlog.get_logger(__name__)


class HasFileno(Protocol):
    """An open file, as `store.spool.SpooledBody` and Python's own files are."""

    def fileno(self) -> int:
        """Its descriptor, open for reading; it stays the caller's."""


Source = bytes | Path | HasFileno


class Renderer:
    """Makes pictures of hostile media in helper processes. Use it as `async with`.

    helpers    how many work at once, and so how many processes there are at most
    queue      how many callers may wait; the next is refused with LimitExceeded
    deadline   seconds for one picture, then its helper is killed
    jobs       pictures a helper makes before a fresh one takes its place
    idle       seconds after which a helper without work is ended

    All calls may raise CannotRender, NotAnImage, TooLargeToRender, LimitExceeded; OperationError
    where helpers cannot be started, or the extra `video` is missing; OSError for a path that
    cannot be opened. A cancelled call frees its place at once. Leave the context when no call is
    under way.
    """

    def __init__(
        self,
        helpers: int = 2,
        *,
        queue: int = 256,
        deadline: float = 20.0,
        jobs: int = 100,
        idle: float = 60.0,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._pool = Pool(command, jobs, idle)
        self._places = asyncio.Semaphore(helpers)
        self._queue = queue
        self._waiting = 0
        self._deadline = deadline

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._pool.close()

    @property
    def idle_helpers(self) -> list[Helper]:
        """The helpers that wait for work."""
        return self._pool.idle

    async def render(self, source: Source, recipe: Recipe) -> Rendered:
        """The thumbnail or variant of a picture."""
        request = {"do": "render", "recipe": wire.recipe_to_json(recipe)}
        return await self._ask(request, source, _rendered)

    async def probe(self, source: Source) -> Probe:
        """What a picture's header says; no pixel is decoded."""
        return await self._ask({"do": "probe"}, source, lambda a: wire.probe_of(a.head))

    async def poster(self, source: Source, recipe: Recipe) -> Rendered:
        """A frame of a film near its start that is not black; the cover of a piece of music."""
        request = {"do": "poster", "recipe": wire.recipe_to_json(recipe)}
        return await self._ask(request, source, _rendered)

    async def footage(self, source: Source) -> Footage:
        """What a film or a piece of music says of itself."""
        return await self._ask({"do": "footage"}, source, lambda a: wire.footage_of(a.head))

    async def _ask(
        self, request: dict[str, Any], source: Source, read: Callable[[Answer], T]
    ) -> T:
        request = {**request, "seconds": self._deadline}
        async with self._place(), _opened(source) as fd:
            started, outcome = time.monotonic(), "refused"
            try:
                result = await self._ask_helper(request, fd, read)
                outcome = "made"
            except HelperLost as error:
                outcome = "crashed"
                log.warning("a helper died of a picture", do=request["do"], reason=str(error))
                raise RenderingBroke("this is damaged: its decoder broke on it") from None
            except TimeoutError:
                outcome = "timed_out"
                log.warning("a helper hung on a picture", do=request["do"])
                sentence = f"decoding this takes more than {self._deadline:g} seconds"
                raise RenderingBroke(sentence) from None
            finally:
                metrics.RENDERS.labels(request["do"], outcome).inc()
                metrics.RENDER_SECONDS.observe(time.monotonic() - started)
            return result

    async def _ask_helper(
        self, request: dict[str, Any], fd: int, read: Callable[[Answer], T]
    ) -> T:
        """Tries a fresh helper when a used one is lost: what it did before may be to blame."""
        while True:
            helper = await self._pool.borrow()
            used = helper.jobs > 0
            try:
                return await self._ask_this(helper, request, fd, read)
            except HelperLost:
                if not used:
                    raise

    async def _ask_this(
        self, helper: Helper, request: dict[str, Any], fd: int, read: Callable[[Answer], T]
    ) -> T:
        if request["do"] not in helper.works:
            self._pool.give_back(helper)
            raise OperationError("films are looked into with the package av: install it")
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._pool.discard, helper)
            async with asyncio.timeout(self._deadline):
                answer = await helper.ask(request, fd)
            try:
                refusal = _refusal(answer)
                result = None if refusal else read(answer)
            except wire.Malformed as error:
                raise HelperLost(str(error)) from None
            on_failure.pop_all()
        self._pool.give_back(helper)
        if refusal:
            raise refusal
        return result  # type: ignore[return-value]  # None only with a refusal

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._places.locked() and self._waiting >= self._queue:
            raise LimitExceeded("too many pictures are being made: try again in a moment", 1.0)
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()


def _rendered(answer: Answer) -> Rendered:
    return wire.rendered_of(answer.head, answer.data)


def _refusal(answer: Answer) -> ArchiverError | None:
    if "refused" not in answer.head:
        return None
    kind = _REFUSALS.get(str(answer.head["refused"]))
    if kind is None:
        raise wire.Malformed("an unknown refusal")
    reason = str(answer.head.get("reason"))[:_REASON_LENGTH]
    return kind("".join(c if c.isprintable() else " " for c in reason))


@contextlib.asynccontextmanager
async def _opened(source: Source) -> AsyncIterator[int]:
    """The source as a descriptor of its own, which no other reader moves."""
    opening = asyncio.get_running_loop().run_in_executor(None, _open, source)
    try:
        fd = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_opened)
        raise
    try:
        yield fd
    finally:
        os.close(fd)


def _open(source: Source) -> int:
    if isinstance(source, Path):
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    if not isinstance(source, bytes):
        return os.open(f"/proc/self/fd/{source.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    fd = os.memfd_create("picture", os.MFD_CLOEXEC)
    try:
        rest = memoryview(source)
        while rest:
            rest = rest[os.write(fd, rest) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def _close_opened(opening: asyncio.Future[int]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result())
