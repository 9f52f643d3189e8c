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

-- Whether the homeserver is told of what comes with these bytes later.
ALTER TABLE refused ADD COLUMN tell boolean NOT NULL DEFAULT false;

CREATE OR REPLACE FUNCTION refuse_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
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
