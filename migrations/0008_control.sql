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
    actor  text COLLATE "C" NOT NULL,               -- @user:server, or shell:NAME
    place  text COLLATE "C" NOT NULL,               -- a room's id, or 'shell'
    action text NOT NULL,                           -- the command's name, or 'refused'
    target text,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX custody_at ON custody (at, id);
CREATE INDEX custody_target ON custody (target, id);

CREATE FUNCTION keep_custody() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what custody tells is never changed' USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER custody_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON custody
    FOR EACH STATEMENT EXECUTE FUNCTION keep_custody();

-- A blob whose bytes are not what its name says any more, or are gone; NULL again once mended.
ALTER TABLE blob ADD COLUMN damaged_at timestamptz;
CREATE INDEX blob_damaged ON blob (damaged_at) WHERE damaged_at IS NOT NULL;
CREATE INDEX blob_verified ON blob (verified_at NULLS FIRST, sha256);  -- the next to be verified
