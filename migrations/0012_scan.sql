-- What a scanner says of bytes. Only what is to be looked at is in an index, so that an archive
-- without a scanner pays nothing; none of the columns rewrites the table.
ALTER TABLE blob
    ADD COLUMN scan          text CHECK (scan IN ('clean', 'infected', 'unscanned')),
    ADD COLUMN scanned_at    timestamptz,           -- when that was found
    ADD COLUMN scan_reason   text,                  -- the signature's name, or why it is unscanned
    ADD COLUMN scan_engine   text,                  -- the scanner and its signatures
    ADD COLUMN scan_due      timestamptz,           -- schedule, back-off and lease in one; NULL:
                                                    -- it is not to be looked at
    ADD COLUMN scan_attempts integer NOT NULL DEFAULT 0,  -- claims so far, for the back-off
    ADD CONSTRAINT blob_scan_is_dated CHECK (scan IS NULL OR scanned_at IS NOT NULL),
    ADD CONSTRAINT blob_scan_has_reason
        CHECK (scan IS NULL OR scan = 'clean' OR scan_reason IS NOT NULL);
CREATE INDEX blob_scan_due ON blob (scan_due) WHERE scan_due IS NOT NULL;
CREATE INDEX blob_infected ON blob (scanned_at) WHERE scan = 'infected';

-- One row while there is a scanner: what is newly archived is to be looked at.
CREATE TABLE scanning (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    since    timestamptz NOT NULL DEFAULT '-infinity',  -- what was looked at before is due again
    reached  bytea DEFAULT ''                       -- how far, by its SHA-256, that is scheduled;
                                                    -- NULL: all of it
);
