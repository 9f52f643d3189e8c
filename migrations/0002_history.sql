-- What was there before us, what was lost on the way, and what was taken back.

-- The event's own time as far as it can be true: never later than when it came to us.
ALTER TABLE event ADD COLUMN sent_at timestamptz;
UPDATE event SET sent_at = least(received_at, to_timestamp(origin_server_ts / 1000.0));
ALTER TABLE event ALTER COLUMN sent_at SET DEFAULT now(), ALTER COLUMN sent_at SET NOT NULL;
ALTER TABLE event ADD COLUMN original text CHECK (original IN ('wanted', 'lost'));

CREATE INDEX event_room ON event (room_id, sent_at);
CREATE INDEX event_state ON event (room_id, type, state_key, sent_at)
    WHERE state_key IS NOT NULL;
CREATE INDEX event_member ON event (state_key, sent_at) WHERE type = 'm.room.member';
CREATE INDEX event_replaces ON event (replaces) WHERE replaces IS NOT NULL;
CREATE INDEX event_redacts ON event (redacts) WHERE redacts IS NOT NULL;
CREATE INDEX event_wanted ON event (event_id) WHERE original = 'wanted';
CREATE INDEX event_redacted ON event (redacted_at)
    WHERE redacted_at IS NOT NULL AND (content <> '{}' OR raw IS NOT NULL);
CREATE INDEX event_poll ON event (sent_at, event_id)
    WHERE type IN ('m.poll.start', 'org.matrix.msc3381.poll.start');
CREATE INDEX event_vote ON event (left(content #>> '{m.relates_to,event_id}', 255))
    WHERE type IN ('m.poll.response', 'org.matrix.msc3381.poll.response',
                   'm.poll.end', 'org.matrix.msc3381.poll.end');

CREATE TABLE redaction_due (
    redaction text COLLATE "C" PRIMARY KEY,
    due_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX redaction_due_at ON redaction_due (due_at);
INSERT INTO redaction_due (redaction)
SELECT event_id FROM event WHERE type = 'm.room.redaction' AND redacts IS NOT NULL;

ALTER TABLE media ADD COLUMN paced_at timestamptz;
ALTER TABLE media ADD COLUMN charged bigint;
ALTER TABLE media ADD COLUMN redacted_at timestamptz;
CREATE INDEX media_paced ON media (paced_at) WHERE paced_at IS NOT NULL;
CREATE INDEX media_redacted ON media (redacted_at) WHERE redacted_at IS NOT NULL;

CREATE TABLE budget (
    name        text PRIMARY KEY,
    spent_until timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE room (
    room_id        text COLLATE "C" PRIMARY KEY,
    seen_at        timestamptz NOT NULL DEFAULT now(),
    active_at      timestamptz,
    position       text,
    complete_from  timestamptz,
    complete_until timestamptz,
    looked_back_at timestamptz,
    due_at         timestamptz NOT NULL DEFAULT now(),
    attempts       integer NOT NULL DEFAULT 0,
    reason         text
);
CREATE INDEX room_due ON room (due_at);
INSERT INTO room (room_id, active_at)
SELECT room_id, max(sent_at) FROM event WHERE room_id IS NOT NULL GROUP BY room_id;

CREATE TABLE backfill (
    room_id      text COLLATE "C" PRIMARY KEY REFERENCES room,
    since        timestamptz,
    until        timestamptz,
    state        text NOT NULL CHECK (state IN ('pending', 'done', 'failed')),
    reason       text,
    due_at       timestamptz NOT NULL DEFAULT now(),
    attempts     integer NOT NULL DEFAULT 0,
    cursor       text,
    reached_at   timestamptz,
    events       bigint NOT NULL DEFAULT 0,
    kept         bigint NOT NULL DEFAULT 0,
    media        bigint NOT NULL DEFAULT 0,
    requested_at timestamptz NOT NULL DEFAULT now(),
    settled_at   timestamptz,
    CONSTRAINT backfill_failed_has_reason CHECK (state <> 'failed' OR reason IS NOT NULL)
);
CREATE INDEX backfill_due ON backfill (due_at) WHERE state = 'pending';

CREATE TABLE moment (
    name text PRIMARY KEY,
    at   timestamptz NOT NULL
);

CREATE TABLE hold (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('mxc', 'event', 'user', 'room')),
    target      text COLLATE "C" NOT NULL,
    reason      text NOT NULL,
    holder      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    released_at timestamptz
);
CREATE UNIQUE INDEX hold_live ON hold (kind, target) WHERE released_at IS NULL;

CREATE TABLE garbage (
    sha256 bytea PRIMARY KEY,
    due_at timestamptz NOT NULL
);
