//! Who a bearer token says is calling: OpenID Connect and Entra ID, without any tunnel code.
//!
//! A [`Verifier`] turns a token into an [`Identity`] or says why not. Its rules are kube-apiserver's (the same
//! settings, and the same file, mean the same), and stricter where tokens have fooled other software: see
//! `docs/identity.md`.

mod algorithm;
mod assertion;
mod cache;
mod cel;
mod claimed;
mod claims;
mod config;
#[cfg(feature = "dev-issuer")]
pub mod dev;
mod entra;
mod error;
mod explain;
mod fetch;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod introspection;
mod issuer;
mod key_set;
mod keys;
mod oidc;
mod shared;
mod standing;
mod structured;
mod token;
mod trace;
mod trust;
mod uses;
mod verifier;

use std::{collections::BTreeMap, fmt, time::SystemTime};

pub use algorithm::Algorithm;
pub use assertion::client_assertion;
pub use claimed::Claimed;
pub use config::{ConfigError, IssuerConfig, IssuerSettings};
pub use error::VerifyError;
pub use explain::Explanation;
pub use fetch::{ByteStream, Dial, Direct, Fetch, FetchError, HttpsFetch, Pending, Roots};
pub use standing::{Question, Standing};
pub use trace::Step;
pub use trust::{Trust, TrustSettings, TrustSource};
pub use verifier::Verifier;

/// One person or program, wherever they appear: issuer and a claim that is never given to another. Never an email.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal {
    /// The issuer's URL; of an Entra tenant, that of version 2.
    pub issuer: String,
    /// The stable claim: `sub`; at Entra, `oid`.
    pub subject: String,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.issuer, self.subject)
    }
}

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name, prefix included.
    pub username: String,
    /// The user's groups, prefixes included.
    pub groups: Vec<String>,
    /// A unique id, where the issuer gives one.
    pub uid: Option<String>,
    /// Further attributes.
    pub extra: BTreeMap<String, Vec<String>>,
    /// Who this is, whatever the name.
    pub principal: Principal,
    /// When the token was issued, if it says.
    pub issued_at: Option<SystemTime>,
    /// When the token ends.
    pub expires_at: SystemTime,
}

/// An identity, and what the audit should say beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Who is calling.
    pub identity: Identity,
    /// What was not as it should be, and cost rights rather than the request.
    pub notes: Vec<Note>,
}

impl From<Identity> for Accepted {
    fn from(identity: Identity) -> Self {
        Self { identity, notes: Vec::new() }
    }
}

/// A line for the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The user has groups, and none are known: why.
    NoGroups(String),
    /// Some of the user's groups are left out: which, and why.
    FewerGroups(String),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGroups(why) => write!(f, "no groups: {why}"),
            Self::FewerGroups(which) => write!(f, "groups left out: {which}"),
        }
    }
}
