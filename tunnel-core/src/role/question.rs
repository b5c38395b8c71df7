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

/// Which documents: those that name the caller, with all placements; or all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListQuestion {
    /// A document in base64 by which the organisation lets this session's run key read all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reader: Option<String>,
}
