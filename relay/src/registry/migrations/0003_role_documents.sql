-- What organisations sign about roles. The relay keeps and offers it; it can't make it. Ids stand as they are printed.

-- Whose documents are taken and offered: base64 of the SubjectPublicKeyInfo.
CREATE TABLE organisation_keys (
    key        TEXT    NOT NULL PRIMARY KEY,
    trusted_at INTEGER NOT NULL
) STRICT;

CREATE TABLE role_documents (
    id         TEXT    NOT NULL PRIMARY KEY,
    document   BLOB    NOT NULL,              -- signature and fields, as they travel
    signer     TEXT    NOT NULL,              -- whose signature it was found to be
    cluster    TEXT    NOT NULL DEFAULT '',   -- of a placement
    issued_at  INTEGER NOT NULL,
    expires_at INTEGER,
    stored_at  INTEGER NOT NULL,
    stored_by  TEXT    NOT NULL               -- the principal that brought it, or empty: the operator
) STRICT;

CREATE INDEX role_documents_by_cluster ON role_documents (cluster);

-- What was removed does not come back, whoever brings it again.
CREATE TABLE removed_documents (
    id         TEXT    NOT NULL PRIMARY KEY,
    removed_at INTEGER NOT NULL,
    removed_by TEXT    NOT NULL
) STRICT;

CREATE TRIGGER keys_inserted AFTER INSERT ON organisation_keys BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER keys_deleted AFTER DELETE ON organisation_keys BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER documents_inserted AFTER INSERT ON role_documents BEGIN UPDATE revision SET value = value + 1; END;
CREATE TRIGGER documents_deleted AFTER DELETE ON role_documents BEGIN UPDATE revision SET value = value + 1; END;
