-- Keys that all instances sign with, each for one purpose.
CREATE TABLE portway_signing_keys (
    purpose TEXT PRIMARY KEY,
    secret BYTEA NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);
