-- Damaged blobs are fetched again, with a back-off of their own.
ALTER TABLE blob
    ADD COLUMN repaired_at timestamptz,
    ADD COLUMN repair_due timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN repair_attempts integer NOT NULL DEFAULT 0,
    ADD COLUMN repair_reason text;
CREATE INDEX blob_repair_due ON blob (repair_due) WHERE damaged_at IS NOT NULL;
