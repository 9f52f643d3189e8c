-- What was posted, listed newest first.

ALTER TABLE event ADD COLUMN has_media boolean NOT NULL DEFAULT false;
UPDATE event AS e SET has_media = true
WHERE EXISTS (SELECT FROM reference AS r WHERE r.event_id = e.event_id);

CREATE INDEX event_media ON event (sent_at, event_id) WHERE has_media;
CREATE INDEX event_media_room ON event (room_id, sent_at, event_id) WHERE has_media;
CREATE INDEX event_media_sender ON event (sender, sent_at, event_id) WHERE has_media;

CREATE INDEX reference_words ON reference USING gin (
    to_tsvector('simple', translate(
        left(coalesce(filename, ''), 1000) || ' ' || left(coalesce(caption, ''), 2000),
        '!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', '                                '))
) WITH (gin_pending_list_limit = 1024) WHERE filename IS NOT NULL OR caption IS NOT NULL;
