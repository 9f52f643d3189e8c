-- The present schema at a glance. Nothing runs this file: the numbered migrations make the schema,
-- and a test holds the two equal. Who writes a migration changes this file too.
--
-- Keys are Matrix identifiers as the homeserver sent them: opaque, and compared byte by byte
-- (COLLATE "C"), never by a language's rules. None of them is checked by the grammar of its kind,
-- because an event with an odd field is kept all the same.

-- An event that carries media, a poll or a vote, a redaction, what is encrypted, or the name of a
-- room or a person. Ordinary text messages are not kept.
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
    received_at      timestamptz NOT NULL DEFAULT now(),
    sent_at          timestamptz NOT NULL DEFAULT now(),  -- origin_server_ts as far as it can be
                                                          -- true: never later than received_at
    original         text CHECK (original IN ('wanted', 'lost')),  -- it came emptied by a redaction
    has_media        boolean NOT NULL DEFAULT false -- some `reference` is its own: most of what is
                                                    -- kept of an encrypted room has none
);
-- Lists of media, newest first; and what a room has in all.
CREATE INDEX event_media ON event (sent_at, event_id) WHERE has_media;
CREATE INDEX event_room ON event (room_id, has_media, sent_at, event_id);
CREATE INDEX event_media_sender ON event (sender, sent_at, event_id) WHERE has_media;
-- A room's name, a person's face, a power level: as it was at a time, or as it is.
CREATE INDEX event_state ON event (room_id, type, state_key, sent_at)
    WHERE state_key IS NOT NULL;
CREATE INDEX event_member ON event (state_key, sent_at) WHERE type = 'm.room.member';
CREATE INDEX event_replaces ON event (replaces) WHERE replaces IS NOT NULL;
CREATE INDEX event_redacts ON event (redacts) WHERE redacts IS NOT NULL;
CREATE INDEX event_wanted ON event (event_id) WHERE original = 'wanted';
-- Redacted events whose words are still there.
CREATE INDEX event_redacted ON event (redacted_at)
    WHERE redacted_at IS NOT NULL AND (content <> '{}' OR raw IS NOT NULL);
CREATE INDEX event_poll ON event (sent_at, event_id)
    WHERE type IN ('m.poll.start', 'org.matrix.msc3381.poll.start');
-- Cut, because whoever sends a vote chooses its length, and an index refuses what is too long.
CREATE INDEX event_vote ON event (left(content #>> '{m.relates_to,event_id}', 255))
    WHERE type IN ('m.poll.response', 'org.matrix.msc3381.poll.response',
                   'm.poll.end', 'org.matrix.msc3381.poll.end');

-- Redactions whose effect is still to be worked out, or looked at once more.
CREATE TABLE redaction_due (
    redaction text COLLATE "C" PRIMARY KEY,         -- the redaction's own event_id
    due_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX redaction_due_at ON redaction_due (due_at);

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
    verified_at timestamptz,                        -- when the bytes were last hashed anew
    processing  text CHECK (processing IN ('pending', 'ready', 'failed')),  -- of thumbnails ahead of
                                                    -- readers; NULL: nothing is to be made of it
    processing_due      timestamptz,                -- schedule, back-off and lease in one
    processing_attempts integer NOT NULL DEFAULT 0, -- claims so far: the fencing token
    processing_reason   text,                       -- why no picture can be made of it
    damaged_at          timestamptz,                -- its bytes are not what its name says any
                                                    -- more, or are gone; NULL again once mended
    repaired_at         timestamptz,                -- when it was mended last
    repair_due          timestamptz NOT NULL DEFAULT '-infinity',  -- while it is damaged: schedule,
                                                    -- back-off and lease in one
    repair_attempts     integer NOT NULL DEFAULT 0, -- claims so far: the fencing token
    repair_reason       text,                       -- why it could not be mended
    scan          text CHECK (scan IN ('clean', 'infected', 'unscanned')),  -- a scanner's word
    scanned_at    timestamptz,                      -- when that was found
    scan_reason   text,                             -- the signature's name, or why it is unscanned
    scan_engine   text,                             -- the scanner and its signatures
    scan_due      timestamptz,                      -- schedule, back-off and lease in one; NULL:
                                                    -- it is not to be looked at
    scan_attempts integer NOT NULL DEFAULT 0,       -- claims so far, for the back-off
    CONSTRAINT blob_pending_is_due CHECK (processing <> 'pending' OR processing_due IS NOT NULL),
    CONSTRAINT blob_failed_has_reason CHECK (processing <> 'failed' OR processing_reason IS NOT NULL),
    CONSTRAINT blob_scan_is_dated CHECK (scan IS NULL OR scanned_at IS NOT NULL),
    CONSTRAINT blob_scan_has_reason
        CHECK (scan IS NULL OR scan = 'clean' OR scan_reason IS NOT NULL)
);
CREATE INDEX blob_processing_due ON blob (processing_due) WHERE processing = 'pending';
CREATE INDEX blob_damaged ON blob (damaged_at) WHERE damaged_at IS NOT NULL;
CREATE INDEX blob_repair_due ON blob (repair_due) WHERE damaged_at IS NOT NULL;
CREATE INDEX blob_verified ON blob (verified_at NULLS FIRST, sha256);  -- the next to be verified
CREATE INDEX blob_processing_failed ON blob (sha256) WHERE processing = 'failed';
CREATE INDEX blob_scan_due ON blob (scan_due) WHERE scan_due IS NOT NULL;
CREATE INDEX blob_infected ON blob (scanned_at) WHERE scan = 'infected';

-- One row while there is a scanner: what is newly archived is to be looked at.
CREATE TABLE scanning (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    since    timestamptz NOT NULL DEFAULT '-infinity',  -- what was looked at before is due again
    reached  bytea DEFAULT ''                       -- how far, by its SHA-256, that is scheduled;
                                                    -- NULL: all of it
);

-- A picture made of a blob, by a recipe: its bytes are a blob as well.
CREATE TABLE variant (
    blob_sha256 bytea NOT NULL REFERENCES blob,     -- what it is made of
    recipe      text COLLATE "C" NOT NULL,
    sha256      bytea NOT NULL REFERENCES blob,     -- what was made; may be shared, even be the former
    width       integer NOT NULL,                   -- pixels
    height      integer NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (blob_sha256, recipe)
);
CREATE INDEX variant_sha256 ON variant (sha256);    -- whose variant a blob is

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
    paced_at      timestamptz,                      -- the event's time, while old media of another
                                                    -- server waits for the budget; due_at is infinity
    charged       bigint,                           -- bytes that the budget was charged for it
    redacted_at   timestamptz,                      -- when the last event that names it was redacted;
                                                    -- a hint: an event that names it since wins
    PRIMARY KEY (server_name, media_id),
    CONSTRAINT media_pending_is_due CHECK (state <> 'pending' OR due_at IS NOT NULL),
    CONSTRAINT media_ready_has_blob CHECK (state <> 'ready' OR blob_sha256 IS NOT NULL),
    CONSTRAINT media_outcome_has_reason CHECK (state NOT IN ('failed', 'excluded') OR reason IS NOT NULL)
);
CREATE INDEX media_due ON media (due_at) WHERE state = 'pending';  -- the queue
CREATE INDEX media_paced ON media (paced_at) WHERE paced_at IS NOT NULL;
CREATE INDEX media_ended ON media (state)  -- what ended without bytes, to be counted
    WHERE state IN ('failed', 'excluded', 'quarantined', 'deleted');
CREATE INDEX media_blob ON media (blob_sha256) WHERE blob_sha256 IS NOT NULL;  -- who shares a blob
CREATE INDEX media_redacted ON media (redacted_at) WHERE redacted_at IS NOT NULL;

-- What may be spent over time: `spent_until` moves ahead of now by size / rate (GCRA).
CREATE TABLE budget (
    name        text PRIMARY KEY,
    spent_until timestamptz NOT NULL DEFAULT now()
);

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
    words         tsvector,                         -- of file name and caption, parted by
                                                    -- catalogue/lexemes.py
    PRIMARY KEY (event_id, server_name, media_id, role),
    FOREIGN KEY (server_name, media_id) REFERENCES media
);
CREATE INDEX reference_media ON reference (server_name, media_id);  -- the events of a media
CREATE INDEX reference_words ON reference USING gin (words)
    WITH (gin_pending_list_limit = 1024) WHERE words IS NOT NULL;

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

-- What is known of a room's history: it is complete from `complete_from` to `complete_until`. The
-- name and faces of a room are read from its state events.
CREATE TABLE room (
    room_id        text COLLATE "C" PRIMARY KEY,
    seen_at        timestamptz NOT NULL DEFAULT now(),
    active_at      timestamptz,                     -- the last event that came, of any type
    position       text,                            -- the homeserver's token of `complete_until`
    complete_from  timestamptz,                     -- '-infinity': from the room's beginning
    complete_until timestamptz,                     -- NULL: never compared
    looked_back_at timestamptz,                     -- for what federation delivered late
    due_at         timestamptz NOT NULL DEFAULT now(),  -- the next comparison; schedule and lease
    attempts       integer NOT NULL DEFAULT 0,      -- claims so far: the fencing token
    reason         text                             -- why its history cannot be read
);
CREATE INDEX room_due ON room (due_at);

-- Rooms whose old messages were asked for; a room's cursor is committed with what it found.
CREATE TABLE backfill (
    room_id      text COLLATE "C" PRIMARY KEY REFERENCES room,
    since        timestamptz,                       -- NULL: from the beginning
    until        timestamptz,                       -- NULL: up to now
    state        text NOT NULL CHECK (state IN ('pending', 'done', 'failed')),
    reason       text,
    due_at       timestamptz NOT NULL DEFAULT now(),  -- schedule, back-off and lease in one
    attempts     integer NOT NULL DEFAULT 0,        -- claims so far: the fencing token
    cursor       text,                              -- where to read on, backwards; NULL: the newest
    reached_at   timestamptz,                       -- how far back it is read: the middle of
                                                    -- the last page's times, any of which may lie
    events       bigint NOT NULL DEFAULT 0,         -- read, of any type
    kept         bigint NOT NULL DEFAULT 0,         -- of these new to the archive
    media        bigint NOT NULL DEFAULT 0,         -- queued by them
    requested_at timestamptz NOT NULL DEFAULT now(),
    settled_at   timestamptz,
    CONSTRAINT backfill_failed_has_reason CHECK (state <> 'failed' OR reason IS NOT NULL)
);
CREATE INDEX backfill_due ON backfill (due_at) WHERE state = 'pending';

-- When something last happened, for all processes: 'push', 'doubt' (since then pushes may be
-- missing until a room is compared), 'reconcile' (a pass over all rooms ended), 'retention' (its
-- rules were begun to be applied).
CREATE TABLE moment (
    name text PRIMARY KEY,
    at   timestamptz NOT NULL
);

-- What must stay, whatever rule says that it goes.
CREATE TABLE hold (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL
        CHECK (kind IN ('mxc', 'event', 'user', 'room', 'hash', 'span')),
    target      text COLLATE "C" NOT NULL,          -- of bytes 'sha256:' and hex; 'from..to'
    reason      text NOT NULL,
    holder      text NOT NULL,                      -- who said so
    created_at  timestamptz NOT NULL DEFAULT now(),
    released_at timestamptz,
    begins_at   timestamptz,                        -- of a span; the end is not in it
    ends_at     timestamptz,
    CONSTRAINT hold_span_has_times
        CHECK (kind <> 'span' OR (begins_at IS NOT NULL AND ends_at IS NOT NULL))
);
CREATE UNIQUE INDEX hold_live ON hold (kind, target) WHERE released_at IS NULL;
CREATE INDEX hold_span ON hold (begins_at) WHERE kind = 'span' AND released_at IS NULL;

-- Objects whose rows are gone; their bytes follow when no upload can be on its way any more.
CREATE TABLE garbage (
    sha256 bytea PRIMARY KEY,
    due_at timestamptz NOT NULL
);

-- Copies of blobs that rest elsewhere now. They go when nobody can be reading them any more.
CREATE TABLE leftover (
    sha256 bytea NOT NULL,
    store  text NOT NULL CHECK (store IN ('inline', 'filesystem', 's3')),
    due_at timestamptz NOT NULL,
    PRIMARY KEY (sha256, store)
);
CREATE INDEX leftover_due ON leftover (due_at);

-- Bytes that nobody but administrators may see, from whomever they come.
CREATE TABLE refused (
    sha256     bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    reason     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    tell       boolean NOT NULL DEFAULT false       -- the homeserver, of what comes with them
);

-- The homeserver may be told what is in quarantine, so that it hides it, too.
-- What it is to be told of a media, and what it was told last: a row goes when all is as before.
-- `due_at` is schedule, back-off and lease in one; while somebody is telling it (`claimed`), a
-- change of mind waits for them, lest the older word arrives last.
CREATE TABLE telling (
    server_name text COLLATE "C" NOT NULL,
    media_id    text COLLATE "C" NOT NULL,
    hidden      boolean NOT NULL,
    due_at      timestamptz,                        -- NULL: the homeserver was told
    claimed     boolean NOT NULL DEFAULT false,
    failures    integer NOT NULL DEFAULT 0,
    reason      text,                               -- why it was not told so far
    PRIMARY KEY (server_name, media_id)
);
CREATE INDEX telling_due ON telling (due_at) WHERE due_at IS NOT NULL;

-- Media that becomes ready with refused bytes is in quarantine instead. Who refuses bytes holds the
-- same lock alone, and looks for media afterwards: so it finds whatever became ready before, and
-- is seen by whatever becomes so later. One lock for all: a lock a hash would be too many for a
-- transaction that makes many ready.
CREATE FUNCTION refuse_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    why refused;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('refused', 0));
    SELECT * INTO why FROM refused AS r WHERE r.sha256 = NEW.blob_sha256;
    IF FOUND THEN
        NEW.state := 'quarantined';
        NEW.reason := why.reason;
        IF why.tell THEN
            INSERT INTO telling AS t (server_name, media_id, hidden, due_at)
            VALUES (NEW.server_name, NEW.media_id, true, now())
            ON CONFLICT (server_name, media_id) DO UPDATE
            SET hidden = true, failures = 0, reason = NULL,
                due_at = CASE WHEN t.claimed THEN t.due_at ELSE now() END
            WHERE NOT t.hidden;
        END IF;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER media_refused BEFORE INSERT OR UPDATE OF state, blob_sha256 ON media
    FOR EACH ROW WHEN (NEW.state = 'ready') EXECUTE FUNCTION refuse_bytes();

-- What signs URLs. The secret is kept as it is, because a signature is checked by making it again.
CREATE TABLE signing_key (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,                       -- 'archive': the archive's own, one a month
    secret     text NOT NULL,
    scope      text NOT NULL CHECK (scope IN ('read', 'admin')),  -- the most that it may sign for
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE UNIQUE INDEX signing_key_live_name ON signing_key (name)
    WHERE revoked_at IS NULL AND name <> 'archive';

-- Who read what: one row for all the reads of a media by one reader in a few seconds.
CREATE TABLE reading (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reader      text COLLATE "C" NOT NULL,          -- token:NAME, user:@ID or key:NAME
    via         text,                               -- the name of the key, for a signed URL
    server_name text COLLATE "C" NOT NULL,
    media_id    text COLLATE "C" NOT NULL,
    times       bigint NOT NULL,                    -- requests that were given bytes
    first_at    timestamptz NOT NULL,
    last_at     timestamptz NOT NULL
);
CREATE INDEX reading_last ON reading (last_at, id);
CREATE INDEX reading_reader ON reading (reader, last_at, id);
CREATE INDEX reading_media ON reading (server_name, media_id, last_at, id);

-- Whoever keeps media in memory hears of every change that a reader could see. What is not ready
-- is in no memory, and counting reads changes nothing, so neither costs anything here.
CREATE FUNCTION tell_media_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('media_changed', OLD.server_name || '/' || OLD.media_id);
    RETURN NULL;
END $$;
CREATE TRIGGER media_changed
    AFTER UPDATE OF state, blob_sha256, declared_type, upload_name, redacted_at ON media
    FOR EACH ROW WHEN (OLD.state = 'ready'
        AND (OLD.state, OLD.blob_sha256, OLD.declared_type, OLD.upload_name, OLD.redacted_at)
            IS DISTINCT FROM
            (NEW.state, NEW.blob_sha256, NEW.declared_type, NEW.upload_name, NEW.redacted_at))
    EXECUTE FUNCTION tell_media_changed();
CREATE TRIGGER media_gone AFTER DELETE ON media
    FOR EACH ROW WHEN (OLD.state = 'ready') EXECUTE FUNCTION tell_media_changed();

-- A file name is an event's word, which goes with the event though others still name the media.
CREATE TRIGGER reference_changed AFTER UPDATE OF filename ON reference
    FOR EACH ROW WHEN (OLD.filename IS DISTINCT FROM NEW.filename)
    EXECUTE FUNCTION tell_media_changed();
CREATE FUNCTION tell_event_redacted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('media_changed', server_name || '/' || media_id)
    FROM reference WHERE event_id = OLD.event_id;
    RETURN NULL;
END $$;
CREATE TRIGGER event_redacted AFTER UPDATE OF redacted_by ON event
    FOR EACH ROW WHEN (OLD.redacted_by IS DISTINCT FROM NEW.redacted_by)
    EXECUTE FUNCTION tell_event_redacted();

-- The control room: what came for the bot, what it asked, what it said by itself; and custody,
-- which tells for ever who changed what.

-- Messages, reactions and invitations that concern the bot, as they came. Who deals with one holds
-- a lease on it; what is dealt with stays for a while, because a homeserver repeats pushes.
CREATE TABLE inbox (
    event_id    text COLLATE "C" PRIMARY KEY,
    room_id     text COLLATE "C" NOT NULL,
    sender      text COLLATE "C" NOT NULL,
    raw         bytea NOT NULL,                     -- the event, JSON as the homeserver sent it
    received_at timestamptz NOT NULL DEFAULT now(),
    due_at      timestamptz DEFAULT now(),          -- schedule and lease in one; NULL: dealt with
    attempts    integer NOT NULL DEFAULT 0,         -- claims so far: the fencing token
    reply_id    text COLLATE "C",                   -- our message that tells how it goes on
    begun_at    timestamptz                         -- what must not be done twice was begun
);
CREATE INDEX inbox_due ON inbox (received_at, event_id) WHERE due_at IS NOT NULL;
CREATE INDEX inbox_received ON inbox (received_at);
CREATE INDEX inbox_reply ON inbox (reply_id) WHERE reply_id IS NOT NULL;

CREATE FUNCTION tell_inbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('inbox', '');
    RETURN NULL;
END $$;
CREATE TRIGGER inbox_filled AFTER INSERT ON inbox
    FOR EACH STATEMENT EXECUTE FUNCTION tell_inbox();

-- What destroys asks first; only who gave the command may answer.
CREATE TABLE question (
    event_id   text COLLATE "C" PRIMARY KEY,        -- our message that asks
    command_id text COLLATE "C" NOT NULL UNIQUE REFERENCES inbox ON DELETE CASCADE,
    asked_at   timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    answer     text CHECK (answer IN ('ok', 'cancel', 'expired')),
    answer_id  text COLLATE "C",                    -- the reaction that answered
    done_at    timestamptz                          -- when the command was carried out
);
CREATE INDEX question_open ON question (expires_at) WHERE answer IS NULL;

-- What the bot tells the control room by itself: once a cause, however many processes know it. The
-- row of a trouble goes when it is over; that of what is told from time to time stays.
CREATE TABLE notice (
    cause    text PRIMARY KEY,
    begun_at timestamptz NOT NULL DEFAULT now(),
    last_at  timestamptz NOT NULL DEFAULT now(),    -- when it was last seen; up to when it was told
    said_at  timestamptz                            -- NULL: still to be said
);

-- What was never pushed.
CREATE INDEX event_filled ON event (received_at) WHERE source = 'reconcile';

-- The copy on the homeserver of a picture that was shown in the control room: uploaded once.
CREATE TABLE preview (
    sha256      bytea PRIMARY KEY,
    server_name text COLLATE "C" NOT NULL,
    media_id    text COLLATE "C" NOT NULL,
    uploaded_at timestamptz NOT NULL DEFAULT now()
);

-- Who changed what, when and from where. Nobody changes that.
CREATE TABLE custody (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT now(),
    actor  text COLLATE "C" NOT NULL,               -- @user:server, shell:NAME, or 'archiver'
    place  text COLLATE "C" NOT NULL,               -- a room's id, or 'shell'; 'worker' or 'serve'
    action text NOT NULL,                           -- the command's name, 'refused', 'capture', ...
    target text,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX custody_at ON custody (at, id);
CREATE INDEX custody_target ON custody (target, id);
CREATE INDEX custody_actor ON custody (actor, at, id);
CREATE INDEX custody_place ON custody (place, at, id);

CREATE FUNCTION keep_custody() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what custody tells is never changed' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER custody_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON custody
    FOR EACH STATEMENT EXECUTE FUNCTION keep_custody();

-- Custody in sealed batches, each bound to the one before by its hash: whoever gets round the
-- trigger can change what is told, but not unseen. Identities commit out of order, so a seal names
-- the very ids that it saw, and those below its last that it did not see: such a row may still be
-- on its way, and a later seal takes it, whenever it commits. Bytes and hashes: keep/sealing.py.
CREATE TABLE custody_seal (
    id        bigint PRIMARY KEY CHECK (id > 0),    -- 1, 2, 3, ...: one that is gone leaves a hole
    ids       int8multirange NOT NULL,              -- the rows that it seals
    count     integer NOT NULL CHECK (count > 0),   -- of them
    digests   bytea NOT NULL,                       -- each row's SHA-256, by id, one after another
    last_id   bigint NOT NULL,                      -- the greatest id that is sealed so far
    missing   int8multirange NOT NULL,              -- those below it that no seal has so far
    sealed_at timestamptz NOT NULL,
    previous  bytea NOT NULL CHECK (octet_length(previous) = 32),  -- the hash of the one before
    hash      bytea NOT NULL CHECK (octet_length(hash) = 32),
    CONSTRAINT custody_seal_digests CHECK (octet_length(digests) = 32 * count)
);
CREATE INDEX custody_seal_at ON custody_seal (sealed_at);
CREATE TRIGGER custody_seal_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON custody_seal
    FOR EACH STATEMENT EXECUTE FUNCTION keep_custody();

-- What was captured and custody does not tell yet: noted in the commit that makes it so, and
-- gathered into custody, many in a line, beside everything else.
CREATE TABLE captured (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server_name text COLLATE "C" NOT NULL,
    media_id    text COLLATE "C" NOT NULL,
    sha256      bytea NOT NULL,
    size        bigint NOT NULL,
    quarantined boolean NOT NULL,                   -- at once: its bytes are refused
    at          timestamptz NOT NULL DEFAULT now()
);

-- The lines that name a media: four bytes of hash for each are a fraction of their names, and who
-- asks looks into the few lines that are found.
CREATE FUNCTION captured_media(detail jsonb) RETURNS integer[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg(hashtext(one ->> 0)) FROM jsonb_array_elements(detail -> 'media') AS one
$$;
CREATE INDEX custody_captured ON custody USING gin (captured_media(detail))
    WHERE target IS NULL AND action IN ('capture', 'import');

-- Reads are anchored in custody by the hash of their digests, which stay as long as the reads do.
-- Bytes: keep/anchoring.py.
CREATE TABLE reading_anchor (
    last_id bigint PRIMARY KEY,                     -- of its reads
    newest  timestamptz NOT NULL,                   -- the latest last_at of them
    entries bytea NOT NULL                          -- of each read: id, last_at, SHA-256
);
CREATE INDEX reading_anchor_newest ON reading_anchor (newest);
CREATE INDEX custody_read ON custody (id) WHERE actor = 'archiver' AND action = 'read';
CREATE INDEX custody_expired ON custody ((detail ->> 'before') COLLATE "C" DESC NULLS LAST)
    WHERE actor = 'archiver' AND action = 'reads expired';

-- Whoever anchors reads has to know that none with a lower id is still on its way: it holds the
-- same lock alone. Taken before the first row has its id.
CREATE FUNCTION begin_reading() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('reading', 0));
    RETURN NULL;
END $$;
CREATE TRIGGER reading_begins BEFORE INSERT ON reading
    FOR EACH STATEMENT EXECUTE FUNCTION begin_reading();

-- Reads are never changed. They are deleted when they are older than whoever deletes says that they
-- are kept (archiver.keep_reads, an interval), and custody tells so: whoever verifies it learns how
-- old the youngest was.
CREATE FUNCTION keep_reading() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what was read is never changed' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER reading_stays BEFORE UPDATE OR TRUNCATE ON reading
    FOR EACH STATEMENT EXECUTE FUNCTION keep_reading();
CREATE FUNCTION expire_reading() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    utc CONSTANT text := 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"';
    before timestamptz := now() - nullif(current_setting('archiver.keep_reads', true), '')::interval;
    told record;
BEGIN
    SELECT count(*) AS reads, min(last_at) AS oldest, max(last_at) AS newest INTO told FROM gone;
    IF told.reads = 0 THEN
        RETURN NULL;
    END IF;
    IF before IS NULL OR before > now() OR told.newest >= before THEN
        RAISE EXCEPTION 'what was read is deleted only when it is older than archiver.keep_reads'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO custody (actor, place, action, detail)
    VALUES ('archiver', 'serve', 'reads expired', jsonb_build_object(
        'count', told.reads,
        'oldest', to_char(told.oldest AT TIME ZONE 'UTC', utc),
        'newest', to_char(told.newest AT TIME ZONE 'UTC', utc),
        'before', to_char(before AT TIME ZONE 'UTC', utc)));
    DELETE FROM reading_anchor WHERE newest < before;
    RETURN NULL;
END $$;
CREATE TRIGGER reading_expires AFTER DELETE ON reading REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION expire_reading();

-- How often readers were given bytes, by day (UTC), and whence: the hot cache, a store, or only
-- after they had been fetched or made for that very request.
CREATE TABLE served (
    day    date NOT NULL,
    source text NOT NULL CHECK (source IN ('memory', 'store', 'missed')),
    reads  bigint NOT NULL,
    PRIMARY KEY (day, source)
);

-- Whoever mends blobs hears of damage at once.
CREATE FUNCTION tell_blob_damaged() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('blob_damaged', '');
    RETURN NULL;
END $$;
CREATE TRIGGER blob_damaged AFTER UPDATE OF damaged_at ON blob
    FOR EACH ROW WHEN (OLD.damaged_at IS NULL AND NEW.damaged_at IS NOT NULL)
    EXECUTE FUNCTION tell_blob_damaged();

-- Figures for which whole tables are read: counted now and then, and kept for whoever asks. `json`,
-- because it keeps the order of what was counted.
CREATE TABLE tally (
    key        text PRIMARY KEY,
    value      json NOT NULL,
    counted_at timestamptz NOT NULL,
    took       interval NOT NULL
);

-- Objects on which the archive puts, or may have put, a legal hold. A row outlives its blob, so
-- that whoever deletes the bytes knows whose lock that is.
CREATE TABLE object_lock (
    sha256    bytea PRIMARY KEY,
    locked_at timestamptz,                          -- NULL: still to be locked
    bucket    text,                                 -- where it was locked
    due_at    timestamptz NOT NULL DEFAULT now()    -- when to try that
);
CREATE INDEX object_lock_due ON object_lock (due_at) WHERE locked_at IS NULL;

-- What is stored anew is locked anew.
CREATE FUNCTION lock_anew() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE object_lock SET locked_at = NULL, due_at = now() WHERE sha256 = NEW.sha256;
    RETURN NULL;
END $$;
CREATE TRIGGER blob_stored_anew AFTER UPDATE OF place, repaired_at ON blob
    FOR EACH ROW WHEN ((OLD.place, OLD.repaired_at) IS DISTINCT FROM (NEW.place, NEW.repaired_at))
    EXECUTE FUNCTION lock_anew();

CREATE FUNCTION tell_hold_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('hold_changed', '');
    RETURN NULL;
END $$;
CREATE TRIGGER hold_changed AFTER INSERT OR UPDATE ON hold
    FOR EACH STATEMENT EXECUTE FUNCTION tell_hold_changed();
