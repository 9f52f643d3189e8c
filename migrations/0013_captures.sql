-- Custody tells of captures and of reads, too.
CREATE INDEX custody_actor ON custody (actor, at, id);
CREATE INDEX custody_place ON custody (place, at, id);

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
