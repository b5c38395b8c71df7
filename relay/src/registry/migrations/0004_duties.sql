-- Who may look into this relay, or act on it: not by opening clusters, which is role_assignments'.
CREATE TABLE duties (
    id           INTEGER PRIMARY KEY,
    subject_kind TEXT    NOT NULL CHECK (subject_kind IN ('user', 'principal', 'group')),
    subject      TEXT    NOT NULL,
    duty         TEXT    NOT NULL,
    cluster      TEXT    REFERENCES clusters (id) ON DELETE CASCADE ON UPDATE CASCADE,  -- NULL: the whole relay
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER
) STRICT;

CREATE UNIQUE INDEX duties_once ON duties (subject_kind, subject, duty, coalesce(cluster, ''));

-- Whose tokens are refused that were issued until when.
CREATE TABLE revocations (
    id           INTEGER PRIMARY KEY,
    subject_kind TEXT    NOT NULL CHECK (subject_kind IN ('user', 'principal')),
    subject      TEXT    NOT NULL,
    cluster      TEXT    REFERENCES clusters (id) ON DELETE CASCADE ON UPDATE CASCADE,  -- NULL: the whole relay
    issued_until INTEGER NOT NULL,
    revoked_at   INTEGER NOT NULL,
    revoked_by   TEXT    NOT NULL
) STRICT;

CREATE UNIQUE INDEX revocations_once ON revocations (subject_kind, subject, coalesce(cluster, ''));

-- Everybody may look for their own.
CREATE INDEX audit_by_principal ON audit (principal, began_at);

-- When two live holders of one instance's identity were seen last.
ALTER TABLE instances ADD COLUMN duplicate_at INTEGER;

CREATE TRIGGER duties_inserted AFTER INSERT ON duties BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER duties_updated AFTER UPDATE ON duties BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER duties_deleted AFTER DELETE ON duties BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER revocations_inserted AFTER INSERT ON revocations BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER revocations_updated AFTER UPDATE ON revocations BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER revocations_deleted AFTER DELETE ON revocations BEGIN UPDATE revision SET value = value + 1; END;
