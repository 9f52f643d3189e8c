"""When to try again, and when to give up."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.errors import (
    ArchiverError,
    BlobMissing,
    BodyMismatch,
    Excluded,
    FetchFailed,
    HomeserverUnavailable,
    MediaNotFound,
    NotYetUploaded,
    OperationError,
    RateLimited,
    Retryable,
    StoreUnavailable,
    TooLargeForHomeserver,
)
from archiver.fetch.retry import BACKOFF, next_try

NOBODYS_FAULT = (HomeserverUnavailable, StoreUnavailable)
GIVEN_UP = {
    MediaNotFound: timedelta(days=3),
    NotYetUploaded: timedelta(days=1),
    BodyMismatch: timedelta(days=1),
    FetchFailed: timedelta(days=7),
}
BACKED_OFF = [*NOBODYS_FAULT, *GIVEN_UP]
NEVER_TRIED = timedelta()
OFTEN = 100_000

attempts = st.integers(min_value=1, max_value=2**31 - 1)
ages = st.timedeltas(min_value=timedelta(), max_value=timedelta(days=3650))


def test_every_retryable_error_has_its_wait() -> None:
    """An error of the tree that may pass is either in the table or says itself when to return."""
    assert {*BACKOFF, RateLimited} == set(Retryable.__subclasses__())


@pytest.mark.parametrize(
    "error", [TooLargeForHomeserver("x"), Excluded("x"), BlobMissing("x"), OperationError("x")]
)
def test_what_would_end_the_same_is_not_tried_again(error: ArchiverError) -> None:
    """Permanent errors, and those that no fetch should raise, end the media at once."""
    assert next_try(error, 1, NEVER_TRIED) is None


@pytest.mark.parametrize("kind", BACKED_OFF)
@given(tries=attempts, age=ages)
def test_a_wait_is_within_its_bounds(kind: type[Retryable], tries: int, age: timedelta) -> None:
    """Whatever the numbers, a wait is the doubled one, capped, give or take a quarter."""
    wait = next_try(kind("x"), tries, age)
    backoff = BACKOFF[kind]
    if wait is not None:
        nominal = min(backoff.first * 2 ** min(tries - 1, 40), backoff.longest)
        assert nominal * 0.75 <= wait <= nominal * 1.25


@pytest.mark.parametrize("kind", BACKED_OFF)
def test_waits_grow_up_to_the_longest(kind: type[Retryable]) -> None:
    """Each wait is longer than the one before, beyond what the spread explains, until the cap."""
    waits = [next_try(kind("x"), tries, NEVER_TRIED) for tries in range(1, 30)]
    longest = BACKOFF[kind].longest
    for wait, after in pairwise(waits):
        assert wait is not None
        assert after is not None
        assert after > wait or after >= longest * 0.75
    assert waits[-1] is not None
    assert waits[-1] >= longest * 0.75


def test_waits_are_spread() -> None:
    """Media that failed together do not return together."""
    waits = {next_try(MediaNotFound("x"), 5, NEVER_TRIED) for _ in range(50)}
    assert len(waits) > 40


@pytest.mark.parametrize(("kind", "days"), GIVEN_UP.items())
def test_the_age_of_giving_up(kind: type[Retryable], days: timedelta) -> None:
    """A media that was tried often enough is given up at its age, and not a second before."""
    assert next_try(kind("x"), OFTEN, days - timedelta(seconds=1)) is not None
    assert next_try(kind("x"), OFTEN, days) is None


@pytest.mark.parametrize("kind", GIVEN_UP)
def test_age_alone_ends_nothing(kind: type[Retryable]) -> None:
    """The first tries of a media that waited for a year in a backlog are not its last ones."""
    for tries in range(1, 9):
        assert next_try(kind("x"), tries, timedelta(days=365)) is not None


@pytest.mark.parametrize("kind", GIVEN_UP)
def test_trying_ends_at_about_the_age(kind: type[Retryable]) -> None:
    """Whoever is always tried when due is given up at the age in the table, a cap's wait more."""
    age, tries = NEVER_TRIED, 1
    while (wait := next_try(kind("x"), tries, age)) is not None:
        age += wait
        tries += 1
    assert GIVEN_UP[kind] <= age <= (GIVEN_UP[kind] + BACKOFF[kind].longest) * 1.25


@pytest.mark.parametrize("kind", NOBODYS_FAULT)
@given(tries=attempts, age=ages)
def test_outages_give_up_nothing(kind: type[Retryable], tries: int, age: timedelta) -> None:
    """While the homeserver or the store is away, no media fails, however long it takes."""
    assert next_try(kind("x"), tries, age) is not None


@given(tries=attempts, age=ages, seconds=st.floats(min_value=0, max_value=86_400))
def test_the_homeservers_own_word_is_kept(tries: int, age: timedelta, seconds: float) -> None:
    """A limited media returns no sooner than told, and soon after; it is never given up."""
    wait = next_try(RateLimited("x", seconds), tries, age)
    assert wait is not None
    told = max(timedelta(seconds=seconds), timedelta(seconds=1))
    assert told <= wait <= told * 1.5 + timedelta(milliseconds=1)
