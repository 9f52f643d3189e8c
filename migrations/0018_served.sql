-- How often readers were given bytes, by day (UTC), and whence: the hot cache, a store, or only
-- after they had been fetched or made for that very request.
CREATE TABLE served (
    day    date NOT NULL,
    source text NOT NULL CHECK (source IN ('memory', 'store', 'missed')),
    reads  bigint NOT NULL,
    PRIMARY KEY (day, source)
);
