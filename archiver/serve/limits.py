"""How much anybody may ask: 429 `M_LIMIT_EXCEEDED` beyond it, with when to come back.

https://spec.matrix.org/v1.16/client-server-api/#rate-limiting
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from aiohttp import web
from aiohttp.typedefs import Handler

from archiver.errors import LimitExceeded
from archiver.serve.readers import READER

MOST_KNOWN = 10_000
SAME_SITE = 64  # bits of an IPv6 address: who has one has all that begin so

Network = IPv4Network | IPv6Network

_ROUNDING = 0.1  # of one, so that sums of fractions do not cost anybody a whole


class Buckets:
    """For each key `burst` at once, and `rate` a second in the long run.

    Of a key only the moment is known at which its bucket is full again, so a full one need not be
    known at all, and `MOST_KNOWN` are enough for anybody.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cost = 1 / rate
        self._depth = (burst + _ROUNDING) / rate
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: str) -> float:
        """Takes one and returns 0, or takes nothing and returns the seconds until there is one."""
        now = self._clock()
        full_at = max(self._full_at.get(key, now), now) + self._cost
        if full_at - now > self._depth:
            return full_at - now - self._depth
        if len(self._full_at) >= MOST_KNOWN and key not in self._full_at:
            self._make_room(now)
        self._full_at[key] = full_at
        return 0.0

    def wait(self, key: str) -> float:
        """The seconds until there is one; 0 when there is."""
        now = self._clock()
        return max(0.0, self._full_at.get(key, now) + self._cost - now - self._depth)

    def _make_room(self, now: float) -> None:
        """Forgets the full ones, and if those are few, some that were known first."""
        busy = {key: at for key, at in self._full_at.items() if at > now}
        too_many = max(0, len(busy) - MOST_KNOWN * 9 // 10)
        for key in list(busy)[:too_many]:
            del busy[key]
        self._full_at = busy


class Limits:
    """What one reader may ask, and what one address may ask without being let in."""

    def __init__(
        self,
        rate: float | None = None,
        burst: int = 1,
        failures_a_minute: int | None = None,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        """`rate` a second for each reader. None: no limit. `trusted_proxies` tell whom they ask
        for, in `X-Forwarded-For`."""
        self._readers = Buckets(rate, burst) if rate else None
        self._failures = (
            Buckets(failures_a_minute / 60, failures_a_minute) if failures_a_minute else None
        )
        self._trusted = tuple(trusted_proxies)

    @web.middleware
    async def within_limits(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Raises LimitExceeded. A signed URL has as many readers as addresses use it."""
        reader = request.get(READER)
        if self._readers is not None and reader is not None:
            key = reader.name
            if reader.via is not None:
                key = f"{key} {self.address(request)}"
            if wait := self._readers.take(key):
                raise LimitExceeded("too many requests: slow down", wait)
        return await handler(request)

    def expect_failure(self, request: web.Request) -> None:
        """To be called before it costs anything to find out whether a stranger may come in.

        Raises LimitExceeded when too many from that address were refused lately.
        """
        # Nearly always nobody was, and then there is no address to find.
        if self._failures and (wait := self._failures.wait(self.address(request))):
            raise _too_many_refused(wait)

    def failed(self, request: web.Request) -> None:
        """Somebody was refused. Raises LimitExceeded when it happens too often."""
        if self._failures is not None and (wait := self._failures.take(self.address(request))):
            raise _too_many_refused(wait)

    def address(self, request: web.Request) -> str:
        """Where a request comes from: the nearest address that is no proxy that we trust."""
        found = _address(request.remote or "")
        forwarded = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
        while found and forwarded and any(found in network for network in self._trusted):
            before = _address(forwarded.pop())
            if before is None:
                break
            found = before
        if isinstance(found, IPv6Address):
            return str(ip_network((int(found), SAME_SITE), strict=False))
        return str(found)


def _too_many_refused(wait: float) -> LimitExceeded:
    return LimitExceeded("too many requests from your address without a good token", wait)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(text.strip())
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found
