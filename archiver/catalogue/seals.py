"""The seals of custody: which rows each has, and what is not sealed yet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from archiver.db.pool import Connection

LOCK = 0x6D6D61_11  # one of all processes seals
TRY_LOCK = "SELECT pg_try_advisory_xact_lock($1)"
LAST = """
SELECT id, ids::text, count, digests, last_id, missing::text, sealed_at, previous, hash
FROM custody_seal ORDER BY id DESC LIMIT 1
"""
AFTER = """
SELECT id, ids::text, count, digests, last_id, missing::text, sealed_at, previous, hash
FROM custody_seal WHERE id > $1 ORDER BY id LIMIT $2
"""
# Along the primary key: what is new, and what committed late.
UNSEALED = """
(SELECT id, at, actor, place, action, target, detail::text FROM custody
 WHERE id > $1 ORDER BY id LIMIT $3)
UNION ALL
SELECT c.id, c.at, c.actor, c.place, c.action, c.target, c.detail::text
FROM unnest($2::text::int8multirange) AS hole
JOIN custody AS c ON c.id >= lower(hole) AND c.id < upper(hole)
ORDER BY id LIMIT $3
"""
COUNT_UNSEALED = """
SELECT (SELECT count(*) FROM custody WHERE id > $1)
     + (SELECT count(*) FROM unnest($2::text::int8multirange) AS hole
        JOIN custody AS c ON c.id >= lower(hole) AND c.id < upper(hole))
"""
COVERED = """
SELECT clock_timestamp() AS sealed_at, mine.ids::text,
       ((int8multirange(int8range($2, $3, '(]')) + $4::text::int8multirange) - mine.ids)::text
           AS missing
FROM (SELECT range_agg(int8range(id, id, '[]')) AS ids FROM unnest($1::bigint[]) AS id) AS mine
"""
INSERT = """
INSERT INTO custody_seal (id, ids, count, digests, last_id, missing, sealed_at, previous, hash)
VALUES ($1, $2::text::int8multirange, $3, $4, $5, $6::text::int8multirange, $7, $8, $9)
"""
ROWS = """
SELECT s.id AS seal, c.id, c.at, c.actor, c.place, c.action, c.target, c.detail::text
FROM custody_seal AS s CROSS JOIN unnest(s.ids) AS span
JOIN custody AS c ON c.id >= lower(span) AND c.id < upper(span)
WHERE s.id = ANY($1::bigint[]) ORDER BY s.id, c.id
"""
IDS = """
SELECT id FROM unnest($1::text::int8multirange) AS span,
               generate_series(lower(span), upper(span) - 1) AS id ORDER BY id LIMIT $2
"""
# No identity is ever below 1, and no seal looks there.
OUTSIDE = "SELECT id FROM custody WHERE id < 1 ORDER BY id LIMIT $1"


class Line(NamedTuple):
    """A row of custody. `detail` is JSON as PostgreSQL writes a jsonb."""

    id: int
    at: datetime
    actor: str
    place: str
    action: str
    target: str | None
    detail: str


class Seal(NamedTuple):
    """A row of custody_seal. `size` is how many rows it has; `ids` and `missing` are as
    PostgreSQL writes multiranges."""

    id: int
    ids: str
    size: int
    digests: bytes
    last_id: int
    missing: str
    sealed_at: datetime
    previous: bytes
    hash: bytes


class Covered(NamedTuple):
    """What a seal of some rows is to say of its time and of ids."""

    sealed_at: datetime
    ids: str
    missing: str


async def lock(conn: Connection) -> bool:
    """False while another process seals; else nobody does until the transaction ends."""
    return bool(await conn.fetchval(TRY_LOCK, LOCK))


async def last(conn: Connection) -> Seal | None:
    """The newest seal, whose hash is the head of the chain."""
    row = await conn.fetchrow(LAST)
    return Seal(*row) if row else None


async def unsealed(conn: Connection, newest: Seal | None, limit: int) -> list[Line]:
    """Rows that no seal has so far, by id: the first of them."""
    last_id, missing = (newest.last_id, newest.missing) if newest else (0, "{}")
    return [Line(*row) for row in await conn.fetch(UNSEALED, last_id, missing, limit)]


async def count_unsealed(conn: Connection, newest: Seal | None) -> int:
    """How many rows no seal has so far."""
    last_id, missing = (newest.last_id, newest.missing) if newest else (0, "{}")
    number: int = await conn.fetchval(COUNT_UNSEALED, last_id, missing)
    return number


async def covered(
    conn: Connection, newest: Seal | None, ids: Sequence[int], last_id: int
) -> Covered:
    """What the seal behind the newest is to say, when it takes these rows."""
    before, missing = (newest.last_id, newest.missing) if newest else (0, "{}")
    [row] = await conn.fetch(COVERED, ids, before, last_id, missing)
    return Covered(*row)


async def put(conn: Connection, seal: Seal) -> None:
    """Writes it, for ever."""
    await conn.execute(INSERT, *seal)


async def after(conn: Connection, seal_id: int, limit: int) -> list[Seal]:
    """The seals behind this one, by id."""
    return [Seal(*row) for row in await conn.fetch(AFTER, seal_id, limit)]


async def lines(conn: Connection, seals: Sequence[Seal]) -> dict[int, list[Line]]:
    """The rows that some seals have, as they are now, by the seal's id."""
    found: dict[int, list[Line]] = {seal.id: [] for seal in seals}
    for row in await conn.fetch(ROWS, list(found)):
        found[row["seal"]].append(Line(*list(row)[1:]))
    return found


async def ids_of(conn: Connection, seal: Seal) -> list[int]:
    """The ids that a seal names, as many as it says."""
    return [row["id"] for row in await conn.fetch(IDS, seal.ids, seal.size)]


async def outside(conn: Connection, limit: int) -> list[int]:
    """The ids of rows that cannot have come as all others do."""
    return [row["id"] for row in await conn.fetch(OUTSIDE, limit)]
