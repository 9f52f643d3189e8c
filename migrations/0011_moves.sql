-- Blobs move between stores, holds name bytes and spans of time, and bytes may be refused.

-- Copies of blobs that rest elsewhere now. They go when nobody can be reading them any more.
CREATE TABLE leftover (
    sha256 bytea NOT NULL,
    store  text NOT NULL CHECK (store IN ('inline', 'filesystem', 's3')),
    due_at timestamptz NOT NULL,
    PRIMARY KEY (sha256, store)
);
CREATE INDEX leftover_due ON leftover (due_at);

ALTER TABLE hold DROP CONSTRAINT hold_kind_check,
    ADD CONSTRAINT hold_kind_check
        CHECK (kind IN ('mxc', 'event', 'user', 'room', 'hash', 'span')),
    ADD COLUMN begins_at timestamptz,
    ADD COLUMN ends_at timestamptz,
    ADD CONSTRAINT hold_span_has_times
        CHECK (kind <> 'span' OR (begins_at IS NOT NULL AND ends_at IS NOT NULL));
CREATE INDEX hold_span ON hold (begins_at) WHERE kind = 'span' AND released_at IS NULL;

-- Bytes that nobody but administrators may see, from whomever they come.
CREATE TABLE refused (
    sha256     bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
    reason     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Media that becomes ready with refused bytes is in quarantine instead. Who refuses bytes holds the
-- same lock alone, and looks for media afterwards: so it finds whatever became ready before, and
-- is seen by whatever becomes so later. One lock for all: a lock a hash would be too many for a
-- transaction that makes many ready.
CREATE FUNCTION refuse_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    why text;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('refused', 0));
    SELECT r.reason INTO why FROM refused AS r WHERE r.sha256 = NEW.blob_sha256;
    IF FOUND THEN
        NEW.state := 'quarantined';
        NEW.reason := why;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER media_refused BEFORE INSERT OR UPDATE OF state, blob_sha256 ON media
    FOR EACH ROW WHEN (NEW.state = 'ready') EXECUTE FUNCTION refuse_bytes();
