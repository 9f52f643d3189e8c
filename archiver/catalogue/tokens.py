"""Our own access tokens. The database has their SHA-256 alone; the secret is shown once."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from archiver.errors import OperationError
from archiver.model import Scope

if TYPE_CHECKING:
    from archiver.db.pool import Connection, Row

# Whoever keeps tokens in memory listens to this, and forgets them.
CHANGED = "token_changed"

# What tells a secret of ours from any Matrix access token.
PREFIX = "mma_"

CREATE = """
WITH created AS (
    INSERT INTO token (name, hash, scope, expires_at) VALUES ($1, $2, $3, $4) RETURNING id
)
SELECT pg_notify($5, '') FROM created
"""
LIST = """
SELECT name, scope, created_at, expires_at, revoked_at, last_used_at FROM token ORDER BY id
"""
REVOKE = """
WITH revoked AS (
    UPDATE token SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL RETURNING id
)
SELECT pg_notify($2, '') IS NOT NULL FROM revoked
"""
FIND = "SELECT id, name, scope, expires_at FROM token WHERE hash = $1 AND revoked_at IS NULL"
USED = """
UPDATE token SET last_used_at = greatest(last_used_at, used.at)
FROM unnest($1::bigint[], $2::timestamptz[]) AS used(id, at) WHERE token.id = used.id
"""


class Token(NamedTuple):
    """A token that was not revoked when it was looked up. It may have expired."""

    id: int
    name: str
    scope: Scope
    expires_at: datetime | None


def hash_of(secret: str) -> bytes:
    """What the database knows of a secret. It is 256 random bits, so no salt and no stretching."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


async def create(conn: Connection, name: str, scope: Scope, expires_at: datetime | None) -> str:
    """Makes a token and returns its secret. Raises OperationError when a live one has the name."""
    secret = f"{PREFIX}{secrets.token_urlsafe(32)}"
    try:
        await conn.execute(CREATE, name, hash_of(secret), scope, expires_at, CHANGED)
    except asyncpg.UniqueViolationError:
        raise OperationError(
            f"there is a live token called {name} already: revoke it, or choose another name"
        ) from None
    return secret


async def list_tokens(conn: Connection) -> list[Row]:
    """All tokens ever made, oldest first, without their secrets."""
    return await conn.fetch(LIST)


async def revoke(conn: Connection, name: str) -> bool:
    """Ends the live token of that name, at once in every process. False: there is none."""
    return bool(await conn.fetchval(REVOKE, name, CHANGED))


async def find(conn: Connection, digest: bytes) -> Token | None:
    """The token with this hash, unless it was revoked."""
    row = await conn.fetchrow(FIND, digest)
    return Token(row["id"], row["name"], Scope(row["scope"]), row["expires_at"]) if row else None


async def mark_used(conn: Connection, used: Mapping[int, datetime]) -> None:
    """Records when tokens were last used, by their ids."""
    await conn.execute(USED, list(used), list(used.values()))
