"""Everything that can go wrong, in one tree.

ArchiverError                     errcode and status: how HTTP shows it (mapped in serve/errors.py)
├── ConfigError                   the operator's mistake: one sentence, exit status 2
│   └── Misused                   a command's arguments
├── OperationError                it did not work: one sentence, exit status 1
│   └── Cancelled                 who asked for it has had enough
├── Retryable                     worth another try later
│   ├── HomeserverUnavailable     no answer at all: the worker pauses, nobody is blamed
│   ├── StoreUnavailable          the object store is away: the media waits as pending
│   ├── RateLimited               the homeserver said when to come back
│   ├── MediaNotFound             404: may be a passing thing, final after days
│   ├── NotYetUploaded            an asynchronous upload that is still to come
│   ├── FetchFailed               the homeserver could not, or may not, get this one
│   │   └── TokenRefused          it does not know a position in a room's history any more
│   └── BodyMismatch              not the announced length, or not the sender's hash
├── Permanent                     another try would end the same
│   ├── TooLargeForHomeserver     502 M_TOO_LARGE: over the homeserver's own limit
│   ├── RoomUnreadable            the homeserver does not let us read this room's history
│   ├── BlobMissing               the store does not have the bytes that a row promises
│   └── Excluded                  our policy says no (becomes state `excluded`)
└── RequestError                  a reader asked for what we will not or cannot give
    ├── InvalidParam · MissingParam · MissingToken · UnknownToken · NotFound
    ├── Forbidden
    │   └── NoReader              a good Matrix token of somebody who may not read
    ├── CannotRender · NotAnImage · RenderingBroke · TooLargeToRender    no thumbnail of this one
    ├── TryLater                  come back when it says
    │   └── LimitExceeded · CannotAsk
    └── Waiting                   known, asked for, still on its way
"""

from __future__ import annotations


class ArchiverError(Exception):
    """The root. `errcode` and `status` are Matrix's and HTTP's words for it."""

    errcode = "M_UNKNOWN"
    status = 500


class ConfigError(ArchiverError):
    """A wrong configuration or usage; the message names the key and says what was expected."""


class Misused(ConfigError):
    """A command with wrong arguments; the message says which, `usage` how it is given."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class OperationError(ArchiverError):
    """Something an administrator asked for did not work; the message says what to do."""


class Cancelled(OperationError):
    """Who asked for it cancelled it while it was under way."""


class Retryable(ArchiverError):
    """Another try later may succeed."""

    status = 502


class HomeserverUnavailable(Retryable):
    """The homeserver did not answer at all, so the failure says nothing about the media."""

    status = 503


class StoreUnavailable(Retryable):
    """The blob store did not take or give the bytes; nothing was lost."""

    status = 503


class RateLimited(Retryable):
    """`M_LIMIT_EXCEEDED`: come back in `retry_after` seconds."""

    errcode = "M_LIMIT_EXCEEDED"
    status = 429

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class MediaNotFound(Retryable):
    """404: never existed, purged, quarantined, gone for a moment; Synapse does not tell which."""

    errcode = "M_NOT_FOUND"
    status = 404


class NotYetUploaded(Retryable):
    """`M_NOT_YET_UPLOADED`: the media id is reserved (MSC2246), its content still to come."""

    errcode = "M_NOT_YET_UPLOADED"
    status = 504


class FetchFailed(Retryable):
    """The homeserver answered, but could not hand out this media."""


class TokenRefused(FetchFailed):
    """400 for a page of history: the homeserver does not know the position that it gave us."""


class BodyMismatch(Retryable):
    """The body is not what was announced: its length, or the sender's `hashes.sha256`."""


class Permanent(ArchiverError):
    """Another try would end the same."""


class TooLargeForHomeserver(Permanent):
    """`M_TOO_LARGE`: remote media over the homeserver's own limit."""

    errcode = "M_TOO_LARGE"
    status = 413


class RoomUnreadable(Permanent):
    """The room is gone, or the bot is neither an administrator nor in it."""

    errcode = "M_FORBIDDEN"
    status = 403


class BlobMissing(Permanent):
    """The store answers, and does not have this blob: a row promises bytes that are gone."""


class Excluded(Permanent):
    """Left out by our own policy; the message is the reason shown in lists."""

    errcode = "M_NOT_FOUND"
    status = 404


class RequestError(ArchiverError):
    """A request that is answered with a Matrix error."""


class InvalidParam(RequestError):
    """A parameter that is no valid server name, media id, cursor or number."""

    errcode = "M_INVALID_PARAM"
    status = 400


class MissingParam(RequestError):
    """A parameter that has to be given."""

    errcode = "M_MISSING_PARAM"
    status = 400


class MissingToken(RequestError):
    """No access token was given."""

    errcode = "M_MISSING_TOKEN"
    status = 401


class UnknownToken(RequestError):
    """The access token is unknown, expired or revoked.

    `soft_logout`: the homeserver says that its client may get a new one for the same device.
    """

    errcode = "M_UNKNOWN_TOKEN"
    status = 401

    def __init__(self, message: str, *, soft_logout: bool = False) -> None:
        super().__init__(message)
        self.soft_logout = soft_logout


class Forbidden(RequestError):
    """The token is good, but may not do this."""

    errcode = "M_FORBIDDEN"
    status = 403


class NoReader(Forbidden):
    """The homeserver knows whose token it is, and it is nobody who may read the archive."""


class NotFound(RequestError):
    """Nothing archived under this name; the message gives the reason where one is known."""

    errcode = "M_NOT_FOUND"
    status = 404


class Waiting(RequestError):
    """Known and queued, not archived yet."""

    errcode = "M_NOT_YET_UPLOADED"
    status = 504


class CannotRender(RequestError):
    """No thumbnail can be made of this: it is damaged, of an unusual kind, or took too long."""

    status = 400


class NotAnImage(CannotRender):
    """This is none of the kinds of picture, film or sound that we decode."""


class RenderingBroke(CannotRender):
    """The helper died of it or hung, which once in a while is not the picture's fault."""


class TooLargeToRender(RequestError):
    """`M_TOO_LARGE`: decoding this would cost too much."""

    errcode = "M_TOO_LARGE"
    status = 413


class TryLater(RequestError):
    """Come back in `retry_after` seconds."""

    status = 503

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LimitExceeded(TryLater):
    """`M_LIMIT_EXCEEDED`: this reader, or this address, asks too much."""

    errcode = "M_LIMIT_EXCEEDED"
    status = 429


class CannotAsk(TryLater):
    """Who knows the reader's token does not answer, so nobody new is let in for now."""
