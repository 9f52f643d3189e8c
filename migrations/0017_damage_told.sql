-- Whoever mends blobs hears of damage at once.
CREATE FUNCTION tell_blob_damaged() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('blob_damaged', '');
    RETURN NULL;
END $$;
CREATE TRIGGER blob_damaged AFTER UPDATE OF damaged_at ON blob
    FOR EACH ROW WHEN (OLD.damaged_at IS NULL AND NEW.damaged_at IS NOT NULL)
    EXECUTE FUNCTION tell_blob_damaged();
