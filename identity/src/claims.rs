//! From claims to an identity: the rules after the signature.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::{Identity, IssuerConfig, Principal, VerifyError, token::Object};

/// How far the issuer's clock may be behind ours when a token ends.
const EXPIRY_SKEW: Duration = Duration::from_secs(60);
/// How far it may be ahead of ours when a token begins.
const BEGIN_SKEW: Duration = Duration::from_secs(300);
/// More groups than any cluster binds; each becomes a header towards the apiserver.
const MAX_GROUPS: usize = 500;
/// Longest name of a user or group.
const MAX_NAME: usize = 1024;

/// The identity of a token whose signature holds.
pub(crate) fn identity(
    config: &IssuerConfig,
    claims: &Object,
    now: SystemTime,
) -> Result<Identity, VerifyError> {
    let text = |name: &'static str| claims.get(name).and_then(Value::as_str);
    if text("iss") != Some(&config.issuer) {
        return Err(VerifyError::Issuer);
    }
    if !is_for(claims.get("aud"), &config.audience) {
        return Err(VerifyError::Audience(config.audience.clone()));
    }
    let expires_at = time(claims, "exp")?.ok_or(VerifyError::Claim("exp", "is missing"))?;
    let begins = time(claims, "nbf")?;
    let issued_at = time(claims, "iat")?;
    check_time(expires_at, begins, now)?;
    if claims.get("cnf").is_some() {
        // It is bound to a key (RFC 7800): as a plain bearer it may be stolen.
        return Err(VerifyError::Claim("cnf", "binds the token to a key, and it was presented as a bearer"));
    }
    for (name, wanted) in &config.required_claims {
        if claims.get(name).and_then(Value::as_str) != Some(wanted) {
            return Err(VerifyError::Required(name.clone()));
        }
    }
    let subject = text("sub").ok_or(VerifyError::Claim("sub", "is missing or not a text"))?;
    check_name("sub", subject)?;
    Ok(Identity {
        username: username(config, claims)?,
        groups: groups(config, claims)?,
        uid: None,
        extra: BTreeMap::new(),
        principal: Principal { issuer: config.issuer.clone(), subject: subject.to_owned() },
        issued_at,
        expires_at,
    })
}

/// Whether a token's time has begun and is not over.
pub(crate) fn check_time(
    expires: SystemTime,
    begins: Option<SystemTime>,
    now: SystemTime,
) -> Result<(), VerifyError> {
    if now >= expires + EXPIRY_SKEW {
        return Err(VerifyError::Expired);
    }
    if begins.is_some_and(|begins| begins > now + BEGIN_SKEW) {
        return Err(VerifyError::NotYetValid);
    }
    Ok(())
}

fn is_for(claim: Option<&Value>, audience: &str) -> bool {
    match claim {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(several)) => {
            several.iter().all(Value::is_string) && several.iter().any(|one| one.as_str() == Some(audience))
        }
        _ => false,
    }
}

/// A NumericDate (RFC 7519), whole seconds only.
fn time(claims: &Object, name: &'static str) -> Result<Option<SystemTime>, VerifyError> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            // Beyond the year 9999 no clock is meant.
            .filter(|seconds| *seconds < 253_402_300_800)
            .map(|seconds| Some(UNIX_EPOCH + Duration::from_secs(seconds)))
            .ok_or(VerifyError::Claim(name, "is not a whole number of seconds")),
    }
}

fn username(config: &IssuerConfig, claims: &Object) -> Result<String, VerifyError> {
    let claim = claims.get(&config.username_claim).and_then(Value::as_str);
    let name = claim.ok_or(VerifyError::Claim("username", "is missing or not a text"))?;
    check_name("username", name)?;
    if config.username_claim == "email"
        && claims.get("email_verified").is_some_and(|verified| *verified != Value::Bool(true))
    {
        return Err(VerifyError::Claim("email", "is not verified"));
    }
    let username = format!("{}{name}", config.username_prefix);
    check_reserved(&username)?;
    Ok(username)
}

fn groups(config: &IssuerConfig, claims: &Object) -> Result<Vec<String>, VerifyError> {
    let Some(claim) = config.groups_claim.as_ref().and_then(|name| claims.get(name)) else {
        return Ok(Vec::new());
    };
    let wrong = || VerifyError::Claim("groups", "is neither a text nor a list of texts");
    let names: Vec<&str> = match claim {
        Value::String(one) => vec![one],
        Value::Array(several) => {
            several.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(wrong)?
        }
        _ => return Err(wrong()),
    };
    if names.len() > MAX_GROUPS {
        return Err(VerifyError::Claim("groups", "has more than 500 entries"));
    }
    names
        .into_iter()
        .map(|name| {
            check_name("groups", name)?;
            let group = format!("{}{name}", config.groups_prefix);
            check_reserved(&group)?;
            // A list in one text would become several groups in a careless reader.
            if group.split(',').count() > 1 && group.split(',').any(|part| check_reserved(part).is_err()) {
                return Err(VerifyError::Reserved(group));
            }
            Ok(group)
        })
        .collect()
}

/// A name becomes a header value: nothing in it may end the line, and it must name someone.
fn check_name(claim: &'static str, name: &str) -> Result<(), VerifyError> {
    if name.trim().is_empty() {
        return Err(VerifyError::Claim(claim, "is empty or blank"));
    }
    if name.len() > MAX_NAME {
        return Err(VerifyError::Claim(claim, "is longer than 1,024 bytes"));
    }
    if name.chars().any(char::is_control) {
        return Err(VerifyError::Claim(claim, "has a control character"));
    }
    Ok(())
}

/// Kubernetes' own names, and ours, are never a token's to give.
fn check_reserved(name: &str) -> Result<(), VerifyError> {
    let begin = name.trim_start().to_ascii_lowercase();
    if begin.starts_with("system:") || begin.starts_with("towline:") {
        return Err(VerifyError::Reserved(name.to_owned()));
    }
    Ok(())
}
