//! What fuzz targets feed: the insides, without signatures in the way.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{
    Accepted, IssuerConfig, Trust, VerifyError, claims,
    config::Rules,
    entra::{self, Membership},
    structured,
    token::{self, Object},
    trace::Trace,
};

/// Reads a text as a token; true where its form is right.
pub fn parse_token(text: &str) -> bool {
    token::parse(text).is_ok()
}

/// The time that the fuzzed issuers live in.
pub fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Issuers of each kind, whose rules use all that there is.
///
/// # Panics
/// If they are refused.
pub fn issuers() -> Vec<IssuerConfig> {
    let structured = structured::parse(include_str!("fuzzing/authentication.yaml"));
    let entra = entra::parse(include_str!("fuzzing/entra.yaml")).expect("the file is good");
    let mut issuers = structured.expect("the file is good");
    issuers.push(entra);
    Trust::new(issuers).expect("their names are distinct").issuers
}

/// The user that an issuer's rules make of claims.
///
/// # Errors
/// Why there is none.
pub fn user_of(issuer: &IssuerConfig, claims: &str) -> Result<Accepted, VerifyError> {
    let claims: Object =
        serde_json::from_str(claims).map_err(|_| VerifyError::Malformed("its claims are no object"))?;
    match &issuer.rules {
        Rules::Oidc { rules, .. } => rules.identity(&claims, now(), &mut Trace::off()),
        Rules::Entra(rules) => {
            let origin = rules.origin(1).ok_or(VerifyError::Issuer)?;
            let entrant = rules.entrant(&claims, &origin, now(), false, &mut Trace::off())?;
            let mut identity = entrant.identity;
            if let Membership::Told(ids) = entrant.membership {
                identity.groups = rules.prefixed(ids);
            }
            Ok(identity.into())
        }
    }
}

/// Whether a name is one that no token may give.
pub fn is_reserved(name: &str) -> bool {
    claims::check_reserved(name).is_err()
}
