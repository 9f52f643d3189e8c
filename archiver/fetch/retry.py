"""When to try again, and when to give up: pure.

Synapse says 404 for what is purged, quarantined, or gone for a moment alike, so it is only final
after days. What is not the media's fault (homeserver or store away) never makes it `failed`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from archiver.errors import (
    ArchiverError,
    BodyMismatch,
    FetchFailed,
    HomeserverUnavailable,
    MediaNotFound,
    NotYetUploaded,
    Permanent,
    RateLimited,
    Retryable,
    StoreUnavailable,
)


@dataclass(frozen=True)
class Backoff:
    """Waits that double from `first` to `longest`; None for `give_up_after` means never."""

    first: timedelta
    longest: timedelta
    give_up_after: timedelta | None

    @cached_property
    def patience(self) -> int:
        """The tries that it takes to wait for `give_up_after`."""
        waited, tries = timedelta(), 1
        while self.give_up_after is not None and waited < self.give_up_after:
            waited += self._wait(tries)
            tries += 1
        return tries

    def is_over(self, attempts: int, age: timedelta) -> bool:
        """True when it was tried for long enough. Age alone does not tell: a media may have waited
        for days before anybody had the time to try."""
        return (
            self.give_up_after is not None
            and age >= self.give_up_after
            and attempts >= self.patience
        )

    def delay(self, attempts: int) -> timedelta:
        """Before the next try, spread by a quarter so that a crowd does not return at once."""
        return self._wait(attempts) * random.uniform(0.75, 1.25)  # noqa: S311  # no secret

    def _wait(self, attempts: int) -> timedelta:
        doubled: timedelta = self.first * 2 ** min(attempts - 1, 30)
        return min(doubled, self.longest)


_SECOND, _MINUTE = timedelta(seconds=1), timedelta(minutes=1)
_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)

BACKOFF: dict[type[Retryable], Backoff] = {
    MediaNotFound: Backoff(5 * _SECOND, 12 * _HOUR, 3 * _DAY),
    NotYetUploaded: Backoff(5 * _SECOND, 10 * _MINUTE, _DAY),
    BodyMismatch: Backoff(5 * _SECOND, _HOUR, _DAY),
    FetchFailed: Backoff(10 * _SECOND, 6 * _HOUR, 7 * _DAY),
    HomeserverUnavailable: Backoff(2 * _SECOND, _MINUTE, None),
    StoreUnavailable: Backoff(2 * _SECOND, 5 * _MINUTE, None),
}


def next_try(error: ArchiverError, attempts: int, age: timedelta) -> timedelta | None:
    """The wait before the next try; None when it was the last.

    `attempts` counts the tries so far, `age` is the time since the media became known.
    """
    if isinstance(error, Permanent) or not isinstance(error, Retryable):
        return None
    if isinstance(error, RateLimited):
        return timedelta(seconds=max(error.retry_after, 1)) * random.uniform(1, 1.5)  # noqa: S311  # no secret
    backoff = BACKOFF[type(error)]
    return None if backoff.is_over(attempts, age) else backoff.delay(attempts)
