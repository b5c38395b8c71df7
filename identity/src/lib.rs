//! Who a bearer token says is calling: OpenID Connect verification, without any tunnel code.
//!
//! A [`Verifier`] turns a token into an [`Identity`] or says why not. Its rules are kube-apiserver's (the same
//! settings mean the same), and stricter where tokens have fooled other software: see `docs/identity.md`.

mod cache;
mod claims;
mod config;
#[cfg(feature = "dev-issuer")]
pub mod dev;
mod fetch;
mod keys;
mod token;
mod verifier;

use std::{collections::BTreeMap, fmt, time::SystemTime};

pub use config::{ConfigError, IssuerConfig, IssuerSettings};
pub use fetch::{Fetch, FetchError, HttpsFetch};
pub use jsonwebtoken::Algorithm;
pub use verifier::{Verifier, VerifyError};

/// One person or program, wherever they appear: issuer and a claim that is never given to another. Never an email.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Principal {
    /// The issuer's URL.
    pub issuer: String,
    /// The stable claim: `sub`.
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
