-- What people's sessions (channels) opened, or were refused: one row for each channel, cluster and verdict. The relay sees neither requests
-- nor names inside a cluster; agents log those, with the channel.

CREATE TABLE audit (
    id              INTEGER PRIMARY KEY,
    channel         TEXT    NOT NULL,
    cluster         TEXT    NOT NULL,              -- its id; empty for those beyond what one channel's rows are bounded to
    verdict         TEXT    NOT NULL,              -- 'allowed', or the reason of the refusal
    cluster_name    TEXT    NOT NULL,              -- as it was then
    why             TEXT    NOT NULL,
    user            TEXT    NOT NULL,
    principal       TEXT    NOT NULL,
    source          TEXT    NOT NULL,              -- address and port
    program         TEXT    NOT NULL,              -- as the client says
    began_at        INTEGER NOT NULL,
    noted_at        INTEGER NOT NULL,              -- when the numbers were true
    ended_at        INTEGER,
    ending          TEXT    NOT NULL DEFAULT '',
    streams         INTEGER NOT NULL,
    resumed         INTEGER NOT NULL,
    bytes_to_agent  INTEGER NOT NULL,
    bytes_to_client INTEGER NOT NULL,
    UNIQUE (channel, cluster, verdict)
) STRICT;

CREATE INDEX audit_by_time ON audit (began_at);
