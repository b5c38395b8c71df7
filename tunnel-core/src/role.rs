//! Roles inside clusters, as an organisation signs them and a relay only carries them.
//!
//! A [`Document`] says that a subject has a role on a scope (an assignment), which group of the organisation a cluster is in (a
//! placement), or that another document holds no longer (a removal). It is signed by a key
//! that no relay has: a relay keeps documents, offers those that concern a caller to the agent, and can leave some out. It can't
//! make one, change one, or have one count for another subject, scope or time. Nothing in here has IO or a clock.

mod document;
mod evaluate;
mod key;
mod name;
mod offer;
pub mod question;
mod scope;

pub use document::{
    Document, DocumentError, DocumentId, MAX_DOCUMENT, MAX_SUBJECT, SignedDocument, Statement, Subject,
};
pub use evaluate::{Evaluation, Finding, Given, Person, SKEW, evaluate};
pub use key::{MAX_KEYS, parse_key, print_key};
pub use name::{RoleName, UnknownRole};
pub use offer::{MAX_OFFER, MAX_OFFERED, hash_offer, read_offer, write_offer};
pub use scope::{GroupPath, MAX_DEPTH, MAX_PATH, Scope, ScopeError};
