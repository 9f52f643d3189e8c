-- Figures for which whole tables are read: counted now and then, and kept for whoever asks. `json`,
-- because it keeps the order of what was counted.
CREATE TABLE tally (
    key        text PRIMARY KEY,
    value      json NOT NULL,
    counted_at timestamptz NOT NULL,
    took       interval NOT NULL
);
