-- What is held is locked in a bucket that has Object Lock.

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
