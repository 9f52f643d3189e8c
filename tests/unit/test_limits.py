"""How much may be asked, and from where a request comes."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from archiver.serve import limits
from archiver.serve.limits import Buckets, Limits


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def taken(buckets: Buckets, key: str, most: int = 10_000) -> int:
    """How many can be had at once."""
    for number in range(most):
        if buckets.take(key):
            return number
    return most


@given(
    rate=st.sampled_from([0.1, 1, 3, 7, 100, 10_000]),
    burst=st.integers(1, 1000),
    start=st.floats(0, 1e6),
)
def test_so_many_at_once_and_then_so_many_a_second(rate: float, burst: int, start: float) -> None:
    """Whatever the numbers: the burst exactly, then what time has brought, never more."""
    clock = Clock()
    clock.now = start
    buckets = Buckets(rate, burst, clock)
    assert taken(buckets, "a") == burst
    assert 0 < buckets.take("a") == buckets.wait("a") <= 1 / rate
    clock.now += 2.5 / rate
    assert taken(buckets, "a") == min(2, burst)
    clock.now += 1e9 / rate
    assert taken(buckets, "a") == burst


def test_who_waits_as_told_gets_one() -> None:
    """Neither asking too early nor being refused makes it longer."""
    clock = Clock()
    buckets = Buckets(2, 1, clock)
    assert buckets.take("a") == 0
    wait = buckets.take("a")
    clock.now += wait / 2
    assert buckets.take("a") == pytest.approx(wait / 2)
    clock.now += wait / 2 + 1e-9
    assert buckets.wait("a") == 0
    assert buckets.take("a") == 0


def test_keys_do_not_share() -> None:
    """One's flood is nobody else's."""
    buckets = Buckets(1, 3, Clock())
    assert taken(buckets, "a") == taken(buckets, "b") == 3


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The full ones are forgotten, which changes nothing for them; who floods stays known."""
    monkeypatch.setattr(limits, "MOST_KNOWN", 100)
    clock = Clock()
    buckets = Buckets(1, 10, clock)
    for number in range(99):
        buckets.take(f"idle{number}")
    clock.now += 5
    assert taken(buckets, "busy") == 10
    assert taken(buckets, "new") == 10
    assert len(buckets) == 2
    assert buckets.wait("busy") > 0
    for number in range(1000):
        buckets.take(f"address{number}")
        assert len(buckets) <= 100


@pytest.mark.parametrize(("busy", "left"), [(80, 80), (100, 90)])
def test_only_what_has_to_go_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, busy: int, left: int
) -> None:
    """Those who wait go on waiting while there is room for them, the latest in any case."""
    monkeypatch.setattr(limits, "MOST_KNOWN", 100)
    clock = Clock()
    buckets = Buckets(1, 1, clock)
    for number in range(100 - busy):
        buckets.take(f"idle{number}")
    clock.now += 1
    for number in range(busy):
        buckets.take(f"busy{number}")
    buckets.take("one more")
    waiting = [number for number in range(busy) if buckets.wait(f"busy{number}")]
    assert waiting == list(range(busy - left, busy))


@pytest.mark.parametrize(
    ("remote", "forwarded", "address"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["198.51.100.7, 203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["198.51.100.7, 203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        ("127.0.0.1", ["198.51.100.7", "203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", ["unknown, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", [""], "127.0.0.1"),
        ("127.0.0.1", ["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64"),
        ("::ffff:127.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("::1", ["203.0.113.9"], "::/64"),
    ],
)
def test_the_address_is_the_nearest_that_is_no_trusted_proxy(
    remote: str, forwarded: list[str], address: str
) -> None:
    """Read from the right; what a stranger wrote to the left of it counts for nothing."""
    trusted = [ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8")]
    headers = [("X-Forwarded-For", line) for line in forwarded]
    request = make_mocked_request("GET", "/", headers=headers).clone(remote=remote)
    assert Limits(trusted_proxies=trusted).address(request) == address
