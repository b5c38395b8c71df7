//! What people ask a relay about role documents: bodies of `session::question`, JSON (RFC 8259).

use serde::{Deserialize, Serialize};

/// Topic: take a document. The body is a [`PutQuestion`], the answer a [`PutAnswer`].
pub const PUT: u16 = 20;
/// Topic: which documents are there? The body is a [`ListQuestion`]; each part of the answer is a list of documents in base64.
pub const LIST: u16 = 21;

/// Takes a document: keeps it, or removes the one that it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutQuestion {
    /// The document, in base64.
    pub document: String,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PutAnswer {
    /// It is kept from now on.
    Stored,
    /// It was kept before.
    Known,
    /// The document that it names is no longer kept.
    Removed,
    /// The document that it names was not there.
    NothingToRemove,
}

/// Which documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListQuestion {
    /// Those that name the caller, and all placements; not those of others, which only auditors may see.
    pub own: bool,
}
