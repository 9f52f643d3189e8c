"""Keys that sign URLs: those made for a panel's back end, and the archive's own."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from archiver.errors import OperationError
from archiver.model import Scope

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# Whoever keeps keys in memory listens to this, and forgets them.
CHANGED = "signing_key_changed"

OWN = "archive"
# The archive signs with one key of its own for so long, and then makes another.
SIGNS_FOR = timedelta(days=30)

CREATE = """
INSERT INTO signing_key (name, secret, scope, expires_at) VALUES ($1, $2, $3, $4)
RETURNING id, name, secret, scope, expires_at
"""
LIST = """
SELECT id, name, scope, created_at, expires_at, revoked_at FROM signing_key ORDER BY id
"""
REVOKE = """
WITH revoked AS (
    UPDATE signing_key SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL RETURNING id
)
SELECT pg_notify($2, '') IS NOT NULL FROM revoked
"""
FIND = """
SELECT id, name, secret, scope, expires_at FROM signing_key WHERE id = $1 AND revoked_at IS NULL
"""
FIND_OWN = """
SELECT id, name, secret, scope, expires_at FROM signing_key
WHERE name = $1 AND revoked_at IS NULL AND created_at > now() - $2::interval AND expires_at >= $3
ORDER BY id DESC LIMIT 1
"""


class Key(NamedTuple):
    """A key that was not revoked when it was looked up. It may have expired."""

    id: int
    name: str
    secret: str
    scope: Scope
    expires_at: datetime | None


async def create(conn: Connection, name: str, scope: Scope, expires_at: datetime | None) -> Key:
    """Makes a key. Raises OperationError when the name is taken by a live one, or by us."""
    if name == OWN:
        raise OperationError(f"{OWN} is the name of the archive's own keys: choose another")
    try:
        return await _create(conn, name, scope, expires_at)
    except asyncpg.UniqueViolationError:
        raise OperationError(
            f"there is a live key called {name} already: revoke it, or choose another name"
        ) from None


async def own(conn: Connection, until: datetime, longest: timedelta) -> Key:
    """The archive's own key, for a signature that ends at `until`, at most `longest` from now.

    Made if there is none, or none that is young enough. Two processes that find none at the same
    moment make one each, and both are good.
    """
    row = await conn.fetchrow(FIND_OWN, OWN, SIGNS_FOR, until)
    if row:
        return _key(row)
    return await _create(conn, OWN, Scope.ADMIN, until + SIGNS_FOR + longest)


async def list_keys(conn: Connection) -> list[Row]:
    """All keys ever made, oldest first, without their secrets."""
    return await conn.fetch(LIST)


async def revoke(conn: Connection, name: str) -> bool:
    """Ends the live keys of that name, at once in every process. False: there is none."""
    return bool(await conn.fetch(REVOKE, name, CHANGED))


async def find(conn: Connection, key_id: int) -> Key | None:
    """The key with this id, unless it was revoked."""
    row = await conn.fetchrow(FIND, key_id)
    return _key(row) if row else None


async def _create(conn: Connection, name: str, scope: Scope, expires_at: datetime | None) -> Key:
    secret = f"mmk_{secrets.token_urlsafe(32)}"
    row = await conn.fetchrow(CREATE, name, secret, scope, expires_at)
    assert row is not None  # noqa: S101  # an INSERT that returns has a row
    return _key(row)


def _key(row: Row) -> Key:
    return Key(row["id"], row["name"], row["secret"], Scope(row["scope"]), row["expires_at"])
