"""Two long lists in the same order, gone through side by side with a page of each in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

from archiver.errors import OperationError


class Named(Protocol):
    """What has a SHA-256."""

    @property
    def sha256(self) -> bytes:
        """By which it is ordered."""


L = TypeVar("L", bound=Named)
R = TypeVar("R", bound=Named)


async def abreast(
    left: AsyncGenerator[list[L], None], right: AsyncGenerator[list[R], None]
) -> AsyncGenerator[tuple[list[L], list[R]], None]:
    """What both have in one stretch of the order after another: what is in only one of the two is
    not in the other. Raises OperationError where a list is in no order."""
    async with aclosing(left), aclosing(right):
        ours, theirs = _Pages(left), _Pages(right)
        while True:
            ends = [end for end in (await ours.end(), await theirs.end()) if end is not None]
            if not ends:
                return
            yield ours.take(min(ends)), theirs.take(min(ends))


class _Pages(Generic[L]):
    """What is left of the page that was read last."""

    def __init__(self, pages: AsyncIterator[list[L]]) -> None:
        self._pages = pages
        self._page: list[L] = []
        self._last = b""

    async def end(self) -> bytes | None:
        """Up to where everything is in memory; None when there is no more."""
        while not self._page:
            page = await anext(self._pages, None)
            if page is None:
                return None
            for one in page:
                if one.sha256 <= self._last:
                    raise OperationError(
                        "the store does not list what it has in the order of the names, and"
                        " nothing can be said of it: see whether its kind of bucket does"
                    )
                self._last = one.sha256
            self._page = page
        return self._page[-1].sha256

    def take(self, end: bytes) -> list[L]:
        """Everything up to there."""
        cut = bisect_right(self._page, end, key=_name)
        taken, self._page = self._page[:cut], self._page[cut:]
        return taken


def _name(one: Named) -> bytes:
    return one.sha256
