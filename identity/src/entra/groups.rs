//! Groups of a token, or that it has more than it can hold.

use serde_json::Value;

use crate::{
    VerifyError,
    claims::{check_groups, texts},
    token::Object,
};

use super::is_guid;

/// What a token says about groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    /// These, by their ids.
    Told(Vec<String>),
    /// Too many for a token: Graph knows.
    Overage,
}

/// Reads `groups`. `wids` are directory roles and no groups. Where `_claim_sources` says to ask is never looked at
/// (THREATS T22): it may be anywhere, and a token would go there.
pub(super) fn read(claims: &Object, prefix: &str) -> Result<Membership, VerifyError> {
    let named = claims.get("_claim_names").and_then(|names| names.get("groups")).is_some();
    let hinted = matches!(claims.get("hasgroups"), Some(Value::Bool(true)))
        || claims.text("hasgroups").is_some_and(|hint| hint == "true");
    if named || hinted {
        return Ok(Membership::Overage);
    }
    let Some(claim) = claims.get("groups") else { return Ok(Membership::Told(Vec::new())) };
    let ids = match claim {
        Value::Array(_) => texts(claim),
        _ => None,
    };
    let ids = ids.ok_or(VerifyError::Claim("groups", "is not a list of texts"))?;
    if !ids.iter().all(|id| is_guid(id)) {
        return Err(VerifyError::Claim("groups", "has one that is no id: let the application emit ids"));
    }
    let groups: Vec<String> = ids.iter().map(|id| format!("{prefix}{id}")).collect();
    check_groups(&groups)?;
    Ok(Membership::Told(ids.into_iter().map(str::to_owned).collect()))
}
