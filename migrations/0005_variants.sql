-- Pictures made of pictures, films and sound.

-- What was archived before waits for its turn too. The default gives it to all the old rows
-- without writing one of them; of what no picture can be made, the first look at it finds out.
ALTER TABLE blob
    ADD COLUMN processing          text DEFAULT 'pending'
        CHECK (processing IN ('pending', 'ready', 'failed')),
    ADD COLUMN processing_due      timestamptz DEFAULT now(),
    ADD COLUMN processing_attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN processing_reason   text;
ALTER TABLE blob
    ALTER COLUMN processing DROP DEFAULT,
    ALTER COLUMN processing_due DROP DEFAULT,
    ADD CONSTRAINT blob_pending_is_due
        CHECK (processing <> 'pending' OR processing_due IS NOT NULL),
    ADD CONSTRAINT blob_failed_has_reason
        CHECK (processing <> 'failed' OR processing_reason IS NOT NULL);
CREATE INDEX blob_processing_due ON blob (processing_due) WHERE processing = 'pending';
CREATE INDEX blob_processing_failed ON blob (sha256) WHERE processing = 'failed';

CREATE TABLE variant (
    blob_sha256 bytea NOT NULL REFERENCES blob,
    recipe      text COLLATE "C" NOT NULL,
    sha256      bytea NOT NULL REFERENCES blob,
    width       integer NOT NULL,
    height      integer NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (blob_sha256, recipe)
);
CREATE INDEX variant_sha256 ON variant (sha256);
