-- A push has to wait for every index: words come parted, and a room's events have one index.

DROP INDEX reference_words;
ALTER TABLE reference ADD COLUMN words tsvector;
UPDATE reference SET words = strip(to_tsvector('simple', translate(
    left(coalesce(filename, ''), 1000) || ' ' || left(coalesce(caption, ''), 2000),
    '!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', '                                ')))
WHERE filename IS NOT NULL OR caption IS NOT NULL;
CREATE INDEX reference_words ON reference USING gin (words)
    WITH (gin_pending_list_limit = 1024) WHERE words IS NOT NULL;

DROP INDEX event_room;
DROP INDEX event_media_room;
CREATE INDEX event_room ON event (room_id, has_media, sent_at, event_id);
