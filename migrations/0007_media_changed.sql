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
