//! Rules for single claims, the same whoever issued the token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::{VerifyError, token::Object};

/// How far the issuer's clock may be behind ours when a token ends.
pub(crate) const EXPIRY_SKEW: Duration = Duration::from_secs(60);
/// How far it may be ahead of ours when a token begins.
const BEGIN_SKEW: Duration = Duration::from_secs(300);
/// More groups than any cluster binds; each becomes a header towards the apiserver.
pub(crate) const MAX_GROUPS: usize = 500;
/// Longest name of a user or group.
const MAX_NAME: usize = 1024;

/// When a token begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) issued_at: Option<SystemTime>,
    pub(crate) begins_at: Option<SystemTime>,
    pub(crate) expires_at: SystemTime,
}

impl Times {
    /// `exp`, `nbf` and `iat`, and that now is between.
    pub(crate) fn read(claims: &Object, now: SystemTime) -> Result<Self, VerifyError> {
        let times = Self {
            expires_at: time(claims, "exp")?.ok_or(VerifyError::Claim("exp", "is missing"))?,
            begins_at: time(claims, "nbf")?,
            issued_at: time(claims, "iat")?,
        };
        if now >= times.expires_at + EXPIRY_SKEW {
            return Err(VerifyError::Expired);
        }
        if times.begins_at.is_some_and(|begins| begins > now + BEGIN_SKEW) {
            return Err(VerifyError::NotYetValid);
        }
        Ok(times)
    }

    pub(crate) fn told(&self, now: SystemTime) -> String {
        match self.expires_at.duration_since(now) {
            Ok(left) => format!("ends in {} s", left.as_secs()),
            Err(_) => "ended less than 60 s ago".into(),
        }
    }
}

/// A NumericDate (RFC 7519), whole seconds only.
pub(crate) fn time(claims: &Object, name: &'static str) -> Result<Option<SystemTime>, VerifyError> {
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

/// Whether the token is for one of these.
pub(crate) fn check_audience(claims: &Object, audiences: &[String]) -> Result<(), VerifyError> {
    let wanted = |one: &str| audiences.iter().any(|audience| audience == one);
    let is_for = match claims.get("aud") {
        Some(Value::String(one)) => wanted(one),
        Some(Value::Array(several)) => {
            several.iter().all(Value::is_string) && several.iter().any(|one| one.as_str().is_some_and(wanted))
        }
        _ => false,
    };
    if is_for { Ok(()) } else { Err(VerifyError::Audience(audiences.join(", "))) }
}

/// A token that is bound to a key (RFC 7800) may be stolen where it is presented as a plain bearer.
pub(crate) fn check_unbound(claims: &Object) -> Result<(), VerifyError> {
    match claims.get("cnf") {
        None => Ok(()),
        Some(_) => {
            Err(VerifyError::Claim("cnf", "binds the token to a key, and it was presented as a bearer"))
        }
    }
}

/// A text, or a list of texts.
pub(crate) fn texts(claim: &Value) -> Option<Vec<&str>> {
    match claim {
        Value::String(one) => Some(vec![one]),
        Value::Array(several) => several.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// A name becomes a header value: nothing in it may end the line, and it must name someone.
pub(crate) fn check_name(claim: &'static str, name: &str) -> Result<(), VerifyError> {
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
pub(crate) fn check_reserved(name: &str) -> Result<(), VerifyError> {
    let reserved = |part: &str| {
        let begin = part.trim_start().to_ascii_lowercase();
        begin.starts_with("system:") || begin.starts_with("towline:")
    };
    // A list in one text would become several names in a careless reader.
    if name.split(',').any(reserved) { Err(VerifyError::Reserved(name.to_owned())) } else { Ok(()) }
}

/// Groups as they go out.
pub(crate) fn check_groups(groups: &[String]) -> Result<(), VerifyError> {
    if groups.len() > MAX_GROUPS {
        return Err(VerifyError::Claim("groups", "has more than 500 entries"));
    }
    for group in groups {
        check_name("groups", group)?;
        check_reserved(group)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(json: &str) -> Object {
        serde_json::from_str(json).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn t17_a_tokens_time_begins_and_ends_at_a_second() {
        let token = claims(r#"{"exp":10000,"nbf":5000,"iat":4000}"#);
        assert_eq!(Times::read(&token, at(4699)), Err(VerifyError::NotYetValid));
        let times = Times::read(&token, at(4700)).unwrap();
        assert_eq!(
            (times.issued_at, times.begins_at, times.expires_at),
            (Some(at(4000)), Some(at(5000)), at(10_000))
        );
        assert!(Times::read(&token, at(10_059)).is_ok());
        assert_eq!(Times::read(&token, at(10_060)), Err(VerifyError::Expired));
        assert_eq!(times.told(at(9_990)), "ends in 10 s");
        assert_eq!(times.told(at(10_001)), "ended less than 60 s ago");
        assert_eq!(Times::read(&claims("{}"), at(0)), Err(VerifyError::Claim("exp", "is missing")));
    }

    #[test]
    fn t17_times_are_whole_seconds_before_the_year_10000() {
        let read = |json| time(&claims(json), "exp");
        assert_eq!(read(r#"{"exp":253402300799}"#), Ok(Some(at(253_402_300_799))));
        assert_eq!(read("{}"), Ok(None));
        for wrong in [
            r#"{"exp":253402300800}"#,
            r#"{"exp":-1}"#,
            r#"{"exp":1.5}"#,
            r#"{"exp":"1"}"#,
            r#"{"exp":null}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn t18_an_audience_is_one_text_or_a_list_of_nothing_but_texts() {
        let wanted = ["towline-cluster".to_owned()];
        for right in [r#"{"aud":"towline-cluster"}"#, r#"{"aud":["a","towline-cluster"]}"#] {
            assert_eq!(check_audience(&claims(right), &wanted), Ok(()), "{right}");
        }
        for wrong in [
            "{}",
            r#"{"aud":"a"}"#,
            r#"{"aud":[]}"#,
            r#"{"aud":["a"]}"#,
            r#"{"aud":["towline-cluster",7]}"#,
            r#"{"aud":{"towline-cluster":true}}"#,
        ] {
            let refused = check_audience(&claims(wrong), &wanted);
            assert_eq!(refused, Err(VerifyError::Audience("towline-cluster".into())), "{wrong}");
        }
    }

    #[test]
    fn t49_a_bound_token_is_no_bearer() {
        assert_eq!(check_unbound(&claims("{}")), Ok(()));
        assert!(check_unbound(&claims(r#"{"cnf":{}}"#)).is_err());
    }

    #[test]
    fn texts_are_one_or_several() {
        assert_eq!(texts(&Value::from("a")), Some(vec!["a"]));
        assert_eq!(texts(&serde_json::json!(["a", "b"])), Some(vec!["a", "b"]));
        assert_eq!(texts(&serde_json::json!(["a", 1])), None);
        assert_eq!(texts(&Value::from(1)), None);
    }

    #[test]
    fn t04_a_name_is_no_longer_than_a_header_bears_and_names_someone() {
        assert_eq!(check_name("sub", &"a".repeat(1024)), Ok(()));
        for wrong in ["", " \u{a0}", "a\nb", "a\u{7f}", "a\u{85}", &"a".repeat(1025)] {
            assert!(check_name("sub", wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn t06_names_of_kubernetes_and_ours_are_reserved_also_within_a_list() {
        for reserved in [
            "system:masters",
            " System:nodes",
            "towline:role:admin",
            "TOWLINE:x",
            "dev, system:masters",
            "a,towline:b",
        ] {
            assert_eq!(check_reserved(reserved), Err(VerifyError::Reserved(reserved.into())), "{reserved:?}");
        }
        for free in ["dev", "system", "a:system:b", "ecosystem:masters", "towline", "a,b"] {
            assert_eq!(check_reserved(free), Ok(()), "{free:?}");
        }
    }

    #[test]
    fn groups_are_bounded_and_each_is_looked_at() {
        let groups = |count: usize| vec!["dev".to_owned(); count];
        assert_eq!(check_groups(&[]), Ok(()));
        assert_eq!(check_groups(&groups(1)), Ok(()));
        assert_eq!(check_groups(&groups(500)), Ok(()));
        assert!(check_groups(&groups(501)).is_err());
        assert!(check_groups(&["dev".into(), "a\nb".into()]).is_err());
        assert!(check_groups(&["dev".into(), "system:masters".into()]).is_err());
    }
}
