"""A database that goes away under a long command, as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from archiver.db.pool import DATABASE_AWAY
from archiver.errors import OperationError


@contextmanager
def told(what: str) -> Iterator[None]:
    """Raises OperationError for it; nothing else in the block may fail with an OSError."""
    try:
        yield
    except DATABASE_AWAY as error:
        raise OperationError(
            f"the database does not answer any more ({error}): see that it runs, and {what} once"
            " more, which goes on where this ended"
        ) from error
