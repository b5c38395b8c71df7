-- Times are seconds since 1970, UTC. Ids stand as they are printed, so that sqlite3 shows what logs show.

CREATE TABLE clusters (
    id          TEXT    NOT NULL PRIMARY KEY,  -- base32 of SHA-256 of the key: checked on every load
    name        TEXT    NOT NULL UNIQUE,
    key         BLOB    NOT NULL,              -- the identity key's SubjectPublicKeyInfo, DER
    enrolled_at INTEGER NOT NULL,
    enabled     INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1))
) STRICT;

CREATE TABLE enrolment_tokens (
    secret_hash BLOB    NOT NULL PRIMARY KEY,  -- SHA-256; the secret itself is never stored
    name        TEXT    NOT NULL,
    replaces    INTEGER NOT NULL DEFAULT 0 CHECK (replaces IN (0, 1)),
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    used_at     INTEGER
) STRICT;

CREATE TABLE instances (
    id         TEXT    NOT NULL PRIMARY KEY,
    cluster    TEXT    NOT NULL REFERENCES clusters (id) ON DELETE CASCADE ON UPDATE CASCADE,
    key_hash   TEXT    NOT NULL,
    serial     TEXT    NOT NULL,               -- of the newest certificate, hexadecimal
    not_after  INTEGER NOT NULL,
    revoked_at INTEGER,
    last_seen  INTEGER,
    online     INTEGER NOT NULL DEFAULT 0 CHECK (online IN (0, 1)),
    program    TEXT    NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX instances_by_cluster ON instances (cluster);

CREATE TABLE role_assignments (
    id           INTEGER PRIMARY KEY,
    subject_kind TEXT    NOT NULL CHECK (subject_kind IN ('user', 'principal', 'group')),
    subject      TEXT    NOT NULL,
    role         TEXT    NOT NULL,
    cluster      TEXT    NOT NULL REFERENCES clusters (id) ON DELETE CASCADE ON UPDATE CASCADE,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    UNIQUE (subject_kind, subject, role, cluster)
) STRICT;

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

-- Rises with every change that a decision depends on. A serving relay compares it once a second and reads the tables
-- again only if it rose: its own notes of who is online don't count.
CREATE TABLE revision (
    one   INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    value INTEGER NOT NULL
) STRICT;

INSERT INTO revision VALUES (1, 1);

CREATE TRIGGER clusters_inserted AFTER INSERT ON clusters BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER clusters_updated AFTER UPDATE ON clusters BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER clusters_deleted AFTER DELETE ON clusters BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER roles_inserted AFTER INSERT ON role_assignments BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER roles_updated AFTER UPDATE ON role_assignments BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER roles_deleted AFTER DELETE ON role_assignments BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER instances_revoked AFTER UPDATE OF revoked_at ON instances BEGIN UPDATE revision SET value = value + 1; END;
