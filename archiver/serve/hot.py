"""Small media in memory: what is asked for again and again costs the database no question."""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from archiver import metrics
from archiver.model import Blob, Mxc

if TYPE_CHECKING:
    from multidict import CIMultiDict

KEEP_SECONDS = 60.0
OVERHEAD = 2048  # bytes in memory of an entry without its bytes and names

# What is to be answered: a file name, or the recipes of a picture.
Key = tuple[Mxc, tuple[str, ...]]


class Entry(NamedTuple):
    """All that decides an answer. `headers` are for whoever copies them."""

    blob: Blob
    data: bytes
    headers: CIMultiDict[str]


class Hot:
    """Up to `capacity` bytes of what anybody with a token may see; the least recently used go.

    It works while `hears`, because then `changed` is called for every media that changes, and
    nothing is kept that was looked up before such a call. Entries end after `keep` seconds: what
    no trigger tells (a media's first file name, a connection that died unnoticed) is seen then.
    """

    def __init__(
        self, capacity: int, hears: Callable[[], bool], keep: float = KEEP_SECONDS
    ) -> None:
        self._capacity = capacity
        self._hears = hears
        self._keep = keep
        self._entries: OrderedDict[Key, tuple[Entry, float]] = OrderedDict()
        self._keys: defaultdict[Mxc, set[Key]] = defaultdict(set)
        self._held = 0
        self.changes = 0

    def get(self, mxc: Mxc, *what: str) -> Entry | None:
        """What is kept, and good."""
        if not self._capacity:
            return None
        key = mxc, what
        entry, until = self._entries.get(key, (None, 0.0))
        if entry is None or not self._hears():
            metrics.HOT_MISSES.inc()
            return None
        if time.monotonic() >= until:
            self._drop(key)
            self._tell()
            metrics.HOT_MISSES.inc()
            return None
        self._entries.move_to_end(key)
        metrics.HOT_HITS.inc()
        return entry

    def put(self, changes: int, entry: Entry, mxc: Mxc, *what: str) -> None:
        """Keeps an entry, unless anything changed since `changes` was read, which is to be done
        before the database is asked; or bytes lack, or are too many."""
        key = mxc, what
        size = _size(key, entry)
        if size > self._capacity or len(entry.data) != entry.blob.size:
            return
        if changes != self.changes or not self._hears():
            return
        self._drop(key)
        self._entries[key] = entry, time.monotonic() + self._keep
        self._keys[mxc].add(key)
        self._held += size
        while self._held > self._capacity:
            self._drop(next(iter(self._entries)))
            metrics.HOT_EVICTIONS.inc()
        self._tell()

    def changed(self, name: str | None) -> None:
        """A media changed, by its server name, a slash and its id; None: any may have."""
        self.changes += 1
        if name is None:
            self._entries.clear()
            self._keys.clear()
            self._held = 0
        else:
            server_name, _, media_id = name.partition("/")
            for key in tuple(self._keys.get(Mxc(server_name, media_id), ())):
                self._drop(key)
        self._tell()

    def _drop(self, key: Key) -> None:
        dropped = self._entries.pop(key, None)
        if dropped is None:
            return
        self._held -= _size(key, dropped[0])
        of_media = self._keys[key[0]]
        of_media.discard(key)
        if not of_media:
            del self._keys[key[0]]

    def _tell(self) -> None:
        metrics.HOT_BYTES.set(self._held)
        metrics.HOT_ENTRIES.set(len(self._entries))


def _size(key: Key, entry: Entry) -> int:
    """Bytes of memory. A name may be as long as a request allows, of four bytes a character."""
    return OVERHEAD + len(entry.data) + 4 * sum(map(len, key[1]))
