-- Who may see, and who did.

CREATE TABLE signing_key (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    secret     text NOT NULL,
    scope      text NOT NULL CHECK (scope IN ('read', 'admin')),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE UNIQUE INDEX signing_key_live_name ON signing_key (name)
    WHERE revoked_at IS NULL AND name <> 'archive';

CREATE TABLE reading (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reader      text COLLATE "C" NOT NULL,
    via         text,
    server_name text COLLATE "C" NOT NULL,
    media_id    text COLLATE "C" NOT NULL,
    times       bigint NOT NULL,
    first_at    timestamptz NOT NULL,
    last_at     timestamptz NOT NULL
);
CREATE INDEX reading_last ON reading (last_at, id);
CREATE INDEX reading_reader ON reading (reader, last_at, id);
CREATE INDEX reading_media ON reading (server_name, media_id, last_at, id);
