-- Keys are Matrix identifiers: compared byte by byte, never by a language's rules.

CREATE TABLE event (
    event_id         text COLLATE "C" PRIMARY KEY,
    room_id          text COLLATE "C",
    sender           text COLLATE "C",
    type             text COLLATE "C",
    state_key        text COLLATE "C",
    origin_server_ts bigint,
    content          jsonb NOT NULL,
    raw              bytea,
    source           text NOT NULL CHECK (source IN ('push', 'backfill', 'reconcile')),
    replaces         text COLLATE "C",
    redacts          text COLLATE "C",
    redacted_by      text COLLATE "C",
    redacted_at      timestamptz,
    received_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE blob (
    sha256      bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    size        bigint NOT NULL CHECK (size >= 0),
    mimetype    text,
    width       integer,
    height      integer,
    duration_ms bigint,
    place       text NOT NULL CHECK (place IN ('inline', 'object')),
    created_at  timestamptz NOT NULL DEFAULT now(),
    verified_at timestamptz
);

-- The PostgreSQL store's own table: no foreign key, because a store knows bytes and nothing else.
CREATE TABLE blob_data (
    sha256 bytea PRIMARY KEY,
    data   bytea NOT NULL
);
ALTER TABLE blob_data ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE media (
    server_name   text COLLATE "C" NOT NULL,
    media_id      text COLLATE "C" NOT NULL,
    state         text NOT NULL CHECK
        (state IN ('pending', 'ready', 'failed', 'excluded', 'quarantined', 'deleted')),
    due_at        timestamptz,
    attempts      integer NOT NULL DEFAULT 0,
    unfinished    smallint NOT NULL DEFAULT 0,
    reason        text,
    blob_sha256   bytea REFERENCES blob,
    declared_type text,
    upload_name   text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    settled_at    timestamptz,
    last_accessed timestamptz,
    access_count  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (server_name, media_id),
    CONSTRAINT media_pending_is_due CHECK (state <> 'pending' OR due_at IS NOT NULL),
    CONSTRAINT media_ready_has_blob CHECK (state <> 'ready' OR blob_sha256 IS NOT NULL),
    CONSTRAINT media_outcome_has_reason CHECK (state NOT IN ('failed', 'excluded') OR reason IS NOT NULL)
);
CREATE INDEX media_due ON media (due_at) WHERE state = 'pending';
CREATE INDEX media_ended ON media (state)
    WHERE state IN ('failed', 'excluded', 'quarantined', 'deleted');
CREATE INDEX media_blob ON media (blob_sha256) WHERE blob_sha256 IS NOT NULL;

CREATE TABLE reference (
    event_id      text COLLATE "C" NOT NULL REFERENCES event,
    server_name   text COLLATE "C" NOT NULL,
    media_id      text COLLATE "C" NOT NULL,
    role          text NOT NULL CHECK (role IN
        ('content', 'thumbnail', 'avatar', 'sticker', 'emoticon', 'pack_image', 'preview', 'other')),
    item          smallint NOT NULL DEFAULT 0,
    filename      text,
    caption       text,
    declared_type text,
    declared_size bigint,
    encryption    jsonb,
    PRIMARY KEY (event_id, server_name, media_id, role),
    FOREIGN KEY (server_name, media_id) REFERENCES media
);
CREATE INDEX reference_media ON reference (server_name, media_id);

CREATE TABLE token (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL,
    hash         bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),
    scope        text NOT NULL CHECK (scope IN ('read', 'admin')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);
CREATE UNIQUE INDEX token_live_name ON token (name) WHERE revoked_at IS NULL;
