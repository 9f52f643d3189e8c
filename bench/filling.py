"""A database filled with media that were never posted: as many as wanted, and soon.

Everything follows from a number, so that nothing has to be looked up. Rooms, people and words are
of very different weight: the largest room has four events in ten, the smallest have a few.
"""

from __future__ import annotations

import asyncpg

from archiver.db.migrate import migrate

ROOMS = 1_000
WORDS = {"jpg": 2, "holiday": 20, "birthday": 1_000, "wedding": 10_000}  # one file name of so many

# While it is filled a crash may cost all of it: the tables are new, and so need no log.
RELAXED = {
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "8GB",
    "maintenance_work_mem": "1GB",
    "work_mem": "256MB",
}
NAMES = """
CREATE OR REPLACE FUNCTION pg_temp.event_of(n bigint) RETURNS text LANGUAGE sql
RETURN '$' || translate(encode(sha256(int8send(n)), 'base64'), '+/=', '-_');
CREATE OR REPLACE FUNCTION pg_temp.server_of(n bigint) RETURNS text LANGUAGE sql
RETURN CASE WHEN n % 5 < 3 THEN 'archive.test' ELSE 'server' || n % 97 || '.test' END;
CREATE OR REPLACE FUNCTION pg_temp.media_of(n bigint) RETURNS text LANGUAGE sql
RETURN left(md5(n::text), 24);
CREATE OR REPLACE FUNCTION pg_temp.bytes_of(n bigint) RETURNS bytea LANGUAGE sql
RETURN decode(repeat(md5(n::text), 8), 'hex');
"""
EVENTS = """
INSERT INTO event (event_id, room_id, sender, type, origin_server_ts, content, source, sent_at,
                   received_at, has_media)
SELECT event_id, '!room' || room || ':archive.test', '@person' || person || ':archive.test',
       'm.room.message', (extract(epoch FROM sent_at) * 1000)::bigint,
       jsonb_build_object('msgtype', 'm.image', 'body', 'IMG_' || n || '.jpg', 'url', mxc,
                          'info', '{"w": 1600, "h": 1200, "size": 102400}'::jsonb),
       'push', sent_at, sent_at, true
FROM (SELECT n, pg_temp.event_of(n) AS event_id, 'mxc://archive.test/' || n AS mxc,
             (power(random(), 8) * $2)::int AS room, (power(random(), 4) * 5000)::int AS person,
             '2023-01-01Z'::timestamptz + n * ('3 years'::interval / $1)
             + random() * interval '1 h' AS sent_at
      FROM generate_series(1, $1::bigint) AS n) AS made
"""
MEMBERS = """
INSERT INTO event (event_id, room_id, sender, type, state_key, content, source, sent_at)
SELECT '$' || md5(room_id || sender), room_id, sender, 'm.room.member', sender,
       jsonb_build_object('membership', 'join', 'displayname', sender), 'push',
       '2022-12-31Z'::timestamptz
FROM (SELECT DISTINCT room_id, sender FROM event) AS seen
"""
ROOM_NAMES = """
WITH new AS (
    INSERT INTO room (room_id, seen_at, active_at, due_at)
    SELECT DISTINCT room_id, '2022-12-31Z'::timestamptz, now(), now() + interval '1 year'
    FROM event WHERE type = 'm.room.member' RETURNING room_id
)
INSERT INTO event (event_id, room_id, sender, type, state_key, content, source, sent_at)
SELECT '$' || md5(room_id), room_id, '@person0:archive.test', 'm.room.name', '',
       jsonb_build_object('name', 'About ' || room_id), 'push', '2022-12-31Z'::timestamptz FROM new
"""
BLOBS = """
INSERT INTO blob (sha256, size, mimetype, width, height, place)
SELECT sha256(pg_temp.bytes_of(n)), 128,
       (array['image/jpeg', 'image/png', 'video/mp4', 'audio/ogg', 'application/pdf'])
       [greatest(1, n % 20 - 14)], 1600, 1200, 'inline'
FROM generate_series(1, $1::bigint) AS n
"""
DATA = """
INSERT INTO blob_data (sha256, data)
SELECT sha256(bytes), bytes
FROM (SELECT pg_temp.bytes_of(n) AS bytes FROM generate_series(1, $1::bigint) AS n) AS made
"""
# One in a hundred failed, and one in a thousand is still to come.
MEDIA = """
INSERT INTO media (server_name, media_id, state, due_at, reason, blob_sha256, settled_at)
SELECT pg_temp.server_of(n), pg_temp.media_of(n),
       CASE WHEN n % 100 = 1 THEN 'failed' WHEN n % 1000 = 2 THEN 'pending' ELSE 'ready' END,
       CASE WHEN n % 1000 = 2 THEN now() + interval '1 year' END,
       CASE WHEN n % 100 = 1 THEN 'the homeserver has lost it' END,
       CASE WHEN n % 100 <> 1 AND n % 1000 <> 2 THEN sha256(pg_temp.bytes_of(n)) END, now()
FROM generate_series(1, $1::bigint) AS n
"""
REFERENCES = """
INSERT INTO reference (event_id, server_name, media_id, role, filename, declared_type,
                       declared_size, words)
SELECT pg_temp.event_of(n), pg_temp.server_of(n), pg_temp.media_of(n), 'content',
       replace(initcap(words), ' ', '_'), 'image/jpeg', 102400, words::tsvector
FROM (SELECT n, 'img ' || n % 100000 || CASE WHEN n % 20 = 3 THEN ' holiday' ELSE '' END
             || CASE WHEN n % 1000 = 5 THEN ' birthday' ELSE '' END
             || CASE WHEN n % 10000 = 7 THEN ' wedding' ELSE '' END
             || CASE WHEN n % 2 = 0 THEN ' jpg' ELSE ' heic' END AS words
      FROM generate_series(1, $1::bigint) AS n) AS made
"""
TABLES = ["event", "blob", "blob_data", "media", "reference"]
CONSTRAINTS = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname),
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname,
              pg_get_constraintdef(oid))
FROM pg_constraint
WHERE contype IN ('p', 'f') AND (conrelid = ANY($1::text[]::regclass[])
                                 OR confrelid = ANY($1::text[]::regclass[]))
ORDER BY contype = 'f'
"""
INDEXES = """
SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index WHERE indrelid = ANY($1::text[]::regclass[]) AND NOT indisprimary
"""
CHOSEN = """
SELECT array_agg(pg_temp.server_of(n) || '/' || pg_temp.media_of(n))
FROM unnest($1::bigint[]) AS n WHERE n % 100 <> 1 AND n % 1000 <> 2
"""


async def fill(dsn: str, rows: int) -> None:
    """So many media, each with a blob, its bytes, an event and a reference, in a new schema."""
    conn = await asyncpg.connect(dsn)
    try:
        await migrate(conn)
        async with conn.transaction():
            await _fill(conn, rows)
        await conn.execute("VACUUM (ANALYZE)")
    finally:
        await conn.close()


async def _fill(conn: asyncpg.Connection[asyncpg.Record], rows: int) -> None:
    """Each index is made when its table is full, which takes a fraction of the time."""
    constraints = await conn.fetch(CONSTRAINTS, TABLES)
    indexes = await conn.fetch(INDEXES, TABLES)
    for drop, _ in [*indexes, *reversed(constraints)]:
        await conn.execute(drop)
    await conn.execute("TRUNCATE event, blob, blob_data, media, reference")
    await conn.execute(NAMES)
    await conn.execute("SELECT setseed(0.5)")
    await conn.execute(EVENTS, rows, ROOMS)
    for statement in (MEMBERS, ROOM_NAMES):
        await conn.execute(statement)
    for statement in (BLOBS, DATA, MEDIA, REFERENCES):
        await conn.execute(statement, rows)
    for _, add in [*constraints, *indexes]:
        await conn.execute(add)


async def relax(dsn: str, *, relaxed: bool) -> None:
    """How the server is to run from its next start on: for a fill, or as it always does."""
    conn = await asyncpg.connect(dsn)
    try:
        await conn.execute("ALTER SYSTEM RESET ALL")
        for name, value in RELAXED.items() if relaxed else ():
            await conn.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        if not relaxed:
            await conn.execute("CHECKPOINT")
    finally:
        await conn.close()


async def names(dsn: str, numbers: list[int]) -> list[str]:
    """`server/id` of those media among these numbers whose bytes are there."""
    conn = await asyncpg.connect(dsn)
    try:
        await conn.execute(NAMES)
        return list(await conn.fetchval(CHOSEN, numbers))
    finally:
        await conn.close()
