"""What runs under Swift's own Python: the ring files, and a cache in place of memcached.

    python swift_node.py FOLDER account=PORT container=PORT object=PORT

writes a ring of one device for each server. The proxy's pipeline names `cache_factory`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_ENTRIES = 50_000


class DictCache:
    """The part of swift.common.memcached.MemcacheRing that a proxy of one process needs."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Any, float]] = {}

    def get(self, key: str, **_options: Any) -> Any:
        """The value, or None when there is none or it is too old."""
        value, expires = self._entries.get(key, (None, 0.0))
        if expires and expires < time.time():
            del self._entries[key]
            return None
        return value

    def set(self, key: str, value: Any, *, time: float = 0, **_options: Any) -> None:
        """Keeps a value for `time` seconds; 0 means for good."""
        if len(self._entries) >= MAX_ENTRIES:
            self._entries.clear()
        self._entries[key] = (value, _expires_at(time))

    def incr(self, key: str, delta: int = 1, time: float = 0) -> int:
        """Adds to a counter that never falls below zero; returns it."""
        value = max(0, int(self.get(key) or 0) + delta)
        self.set(key, value, time=time)
        return value

    def decr(self, key: str, delta: int = 1, time: float = 0) -> int:
        """Takes from a counter; returns it."""
        return self.incr(key, -delta, time)

    def delete(self, key: str, server_key: str | None = None) -> None:
        """Forgets a value."""
        self._entries.pop(key, None)

    def set_multi(self, mapping: dict[str, Any], server_key: str, **options: Any) -> None:
        """Keeps several values."""
        for key, value in mapping.items():
            self.set(key, value, **options)

    def get_multi(self, keys: list[str], server_key: str) -> list[Any]:
        """Several values, None for each that is missing."""
        return [self.get(key) for key in keys]


def _expires_at(seconds: float) -> float:
    return time.time() + seconds if seconds else 0.0


def cache_factory(_global: dict[str, str], **_local: str) -> Callable[[Any], Any]:
    """A paste filter that puts the cache where Swift's middleware looks for memcached."""
    cache = DictCache()

    def wrap(app: Any) -> Any:
        def call(environ: dict[str, Any], start_response: Any) -> Any:
            environ["swift.cache"] = cache
            return app(environ, start_response)

        return call

    return wrap


def write_rings(folder: Path, ports: dict[str, int]) -> None:
    """One ring a server: 16 partitions, one replica, one device."""
    from swift.common.ring.builder import RingBuilder

    for kind, port in ports.items():
        builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
        device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1"}
        builder.add_dev({**device, "weight": 1.0})
        builder.rebalance(seed="1")
        builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


if __name__ == "__main__":
    pairs = (argument.split("=") for argument in sys.argv[2:])
    write_rings(Path(sys.argv[1]), {kind: int(port) for kind, port in pairs})
