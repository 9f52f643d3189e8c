-- The present schema at a glance. Nothing runs this file: the numbered migrations make the schema,
-- and a test holds the two equal. Who writes a migration changes this file too.
--
-- Keys are Matrix identifiers as the homeserver sent them: opaque, and compared byte by byte
-- (COLLATE "C"), never by a language's rules. None of them is checked by the grammar of its kind,
-- because an event with an odd field is kept all the same.

-- An event that carries media, a poll or a vote, a redaction, or what is encrypted. Ordinary text
-- messages are not kept.
CREATE TABLE event (
    event_id         text COLLATE "C" PRIMARY KEY,  -- 'sha256:' and a hash where it came without
    room_id          text COLLATE "C",              -- NULL, here and below: no text of a legal length
    sender           text COLLATE "C",
    type             text COLLATE "C",
    state_key        text COLLATE "C",              -- NULL: no state event; often empty
    origin_server_ts bigint,                        -- milliseconds since 1970, the sender's own word
    content          jsonb NOT NULL,                -- '{}' where `raw` stands for it, and where the
                                                    -- room is left out: then no words are kept
    raw              bytea,                         -- the whole event as it came, where jsonb cannot
                                                    -- hold it (NUL, lone surrogates, great depth)
    source           text NOT NULL CHECK (source IN ('push', 'backfill', 'reconcile')),
    replaces         text COLLATE "C",              -- the event that this one edits
    redacts          text COLLATE "C",              -- the event that this redaction is about;
                                                    -- neither needs to be in the archive
    redacted_by      text COLLATE "C",              -- the redaction that was about this event
    redacted_at      timestamptz,
    received_at      timestamptz NOT NULL DEFAULT now()
);

-- Bytes, named by their SHA-256; durable in their store before a row here says so. Many media may
-- share one.
CREATE TABLE blob (
    sha256      bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    size        bigint NOT NULL CHECK (size >= 0),  -- bytes
    mimetype    text,                               -- by magic number, never the declared one
    width       integer,                            -- pixels
    height      integer,
    duration_ms bigint,
    place       text NOT NULL CHECK (place IN ('inline', 'object')),  -- blob_data, or object store
    created_at  timestamptz NOT NULL DEFAULT now(),
    verified_at timestamptz                         -- when the bytes were last hashed anew
);

-- The PostgreSQL store's own table, for blobs up to storage.inline_limit. No foreign key, because a
-- store knows bytes and nothing else.
CREATE TABLE blob_data (
    sha256 bytea PRIMARY KEY,
    data   bytea NOT NULL
);
-- Media is compressed already, and a range of it is read without the rest.
ALTER TABLE blob_data ALTER COLUMN data SET STORAGE EXTERNAL;

-- What an mxc names, and what became of it. Also the queue: pending media are the jobs.
CREATE TABLE media (
    server_name   text COLLATE "C" NOT NULL,
    media_id      text COLLATE "C" NOT NULL,
    state         text NOT NULL CHECK
        (state IN ('pending', 'ready', 'failed', 'excluded', 'quarantined', 'deleted')),
    due_at        timestamptz,                      -- schedule, back-off and lease in one
    attempts      integer NOT NULL DEFAULT 0,       -- claims so far: the fencing token
    unfinished    smallint NOT NULL DEFAULT 0,      -- claims in a row that ended without a word
    reason        text,                             -- why it is not ready, in words for lists; begins
                                                    -- with the key of the configuration that excludes it
    blob_sha256   bytea REFERENCES blob,
    declared_type text,                             -- what the homeserver's headers said of it
    upload_name   text,
    created_at    timestamptz NOT NULL DEFAULT now(),  -- when an event first named it to us
    settled_at    timestamptz,                      -- when it left `pending` last
    last_accessed timestamptz,                      -- both gathered, and written in batches
    access_count  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (server_name, media_id),
    CONSTRAINT media_pending_is_due CHECK (state <> 'pending' OR due_at IS NOT NULL),
    CONSTRAINT media_ready_has_blob CHECK (state <> 'ready' OR blob_sha256 IS NOT NULL),
    CONSTRAINT media_outcome_has_reason CHECK (state NOT IN ('failed', 'excluded') OR reason IS NOT NULL)
);
CREATE INDEX media_due ON media (due_at) WHERE state = 'pending';  -- the queue
CREATE INDEX media_ended ON media (state)  -- what ended without bytes, to be counted
    WHERE state IN ('failed', 'excluded', 'quarantined', 'deleted');
CREATE INDEX media_blob ON media (blob_sha256) WHERE blob_sha256 IS NOT NULL;  -- who shares a blob

-- An event names a media in a role.
CREATE TABLE reference (
    event_id      text COLLATE "C" NOT NULL REFERENCES event,
    server_name   text COLLATE "C" NOT NULL,
    media_id      text COLLATE "C" NOT NULL,
    role          text NOT NULL CHECK (role IN
        ('content', 'thumbnail', 'avatar', 'sticker', 'emoticon', 'pack_image', 'preview', 'other')),
    item          smallint NOT NULL DEFAULT 0,      -- which attachment of a gallery; its thumbnail too
    filename      text,                             -- the sender's own words, from here on
    caption       text,
    declared_type text,
    declared_size bigint,                           -- bytes
    encryption    jsonb,                            -- EncryptedFile without its url: key, iv, hashes
    PRIMARY KEY (event_id, server_name, media_id, role),
    FOREIGN KEY (server_name, media_id) REFERENCES media
);
CREATE INDEX reference_media ON reference (server_name, media_id);  -- the events of a media

-- Who may read the archive.
CREATE TABLE token (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL,
    hash         bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),  -- SHA-256; never the token
    scope        text NOT NULL CHECK (scope IN ('read', 'admin')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,                       -- NULL: never
    revoked_at   timestamptz,
    last_used_at timestamptz
);
CREATE UNIQUE INDEX token_live_name ON token (name) WHERE revoked_at IS NULL;  -- free again once revoked

-- Made by the runner itself: which migrations were applied, and of which content each was.
CREATE TABLE schema_migration (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    sha256     bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
