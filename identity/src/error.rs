//! Why a token is not accepted.

use crate::{FetchError, trace::quoted};

/// Why a token is not accepted. Never repeats the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// It is not a signed token as it should be.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Its algorithm is not among those that are configured, or not its key's.
    #[error("the token's algorithm is not allowed")]
    Algorithm,
    /// The issuer has no such key.
    #[error("the token is signed with a key that the issuer does not have")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// Another issuer's.
    #[error("the token is from another issuer")]
    Issuer,
    /// Another tenant's.
    #[error("the token is of another tenant: {0}")]
    Tenant(&'static str),
    /// For someone else.
    #[error("the token is not for the audience {0:?}")]
    Audience(String),
    /// Its time is over.
    #[error("the token is expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not yet valid")]
    NotYetValid,
    /// A claim is not as it must be.
    #[error("the token's {0} {1}")]
    Claim(&'static str, &'static str),
    /// A required claim is missing or has another value.
    #[error("the token does not have the required claim {0:?}, or another value in it")]
    Required(String),
    /// A configured rule does not hold: its own message.
    #[error("the token breaks a rule: {0}")]
    Rule(String),
    /// A configured expression, and why it gives nothing.
    #[error("the expression {0:?} {1}")]
    Expression(String, String),
    /// A name that no token may give.
    #[error("the token names {name}, which is reserved", name = quoted(.0))]
    Reserved(String),
    /// It is an application's own token, and this application is not let in.
    #[error(
        "the token is an application's own, and application {0} is not allowed (`apps` of the --entra-config)"
    )]
    AppToken(String),
    /// A proof of possession that proves nothing, or is missing.
    #[error("the proof of possession {0}")]
    Proof(&'static str),
    /// The issuer's keys can't be had.
    #[error("the issuer's keys can't be had: {0}")]
    IssuerUnreachable(#[from] FetchError),
}

impl VerifyError {
    /// The rule that the token broke, in the words of [`crate::Step::rule`].
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "form",
            Self::Algorithm => "algorithm",
            Self::UnknownKey | Self::IssuerUnreachable(_) => "key",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Tenant(_) => "tenant",
            Self::Audience(_) => "audience",
            Self::Expired | Self::NotYetValid => "time",
            Self::Claim(..) => "claim",
            Self::Required(_) | Self::Rule(_) => "claim rule",
            Self::Expression(..) => "expression",
            Self::Reserved(_) => "reserved name",
            Self::AppToken(_) => "kind",
            Self::Proof(_) => "proof",
        }
    }
}
