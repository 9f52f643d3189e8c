-- Custody in sealed batches, each bound to the one before by its hash: whoever gets round the
-- trigger can change what is told, but not unseen. Identities commit out of order, so a seal names
-- the very ids that it saw, and those below its last that it did not see: such a row may still be
-- on its way, and a later seal takes it, whenever it commits. Bytes and hashes: keep/sealing.py.
CREATE TABLE custody_seal (
    id        bigint PRIMARY KEY CHECK (id > 0),    -- 1, 2, 3, ...: one that is gone leaves a hole
    ids       int8multirange NOT NULL,              -- the rows that it seals
    count     integer NOT NULL CHECK (count > 0),   -- of them
    digests   bytea NOT NULL,                       -- each row's SHA-256, by id, one after another
    last_id   bigint NOT NULL,                      -- the greatest id that is sealed so far
    missing   int8multirange NOT NULL,              -- those below it that no seal has so far
    sealed_at timestamptz NOT NULL,
    previous  bytea NOT NULL CHECK (octet_length(previous) = 32),  -- the hash of the one before
    hash      bytea NOT NULL CHECK (octet_length(hash) = 32),
    CONSTRAINT custody_seal_digests CHECK (octet_length(digests) = 32 * count)
);
CREATE INDEX custody_seal_at ON custody_seal (sealed_at);
CREATE TRIGGER custody_seal_stays BEFORE UPDATE OR DELETE OR TRUNCATE ON custody_seal
    FOR EACH STATEMENT EXECUTE FUNCTION keep_custody();
