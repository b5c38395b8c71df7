//! A verified identity as the headers by which kube-apiserver takes a request for that user's.
//!
//! `identity` refuses reserved and malformed names already. They are judged here once more, because whatever stands in
//! these headers is who the request is for: nothing that was verified elsewhere is worth as much as this last look.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};
use towline_identity::Identity;
use towline_tunnel::fault::{Fault, Report};

use crate::as_user::Wanted;

pub(crate) const USER: HeaderName = HeaderName::from_static("impersonate-user");
pub(crate) const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
pub(crate) const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
pub(crate) const EXTRA: &str = "impersonate-extra-";
/// Who really asks, where a request is for somebody else: kube-apiserver's audit log has it beside that user. No token and
/// no caller may give it. kube-apiserver takes a key only with a domain before it (KEP-5284).
pub const ORIGINAL_USER: &str = "towline.dev/original-user";
/// Whoever was authenticated is in it; impersonation adds it only where no group is named at all.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";

/// The name of one request, by which the agent's log and the apiserver's audit log are joined. A random UUID (RFC 9562).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AuditId([u8; 16]);

impl AuditId {
    /// A new one.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers");
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for AuditId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = data_encoding::HEXLOWER.encode(&self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Debug for AuditId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditId({self})")
    }
}

/// Sets who the request is for; `role` is the group of their role, which only the agent can name. `headers` are the agent's own, in
/// which nothing of the caller's can stand for a user.
///
/// # Errors
/// If the identity holds a name that must never come from a token (THREATS T4, T6, T7): no request then.
pub fn impersonate(
    headers: &mut HeaderMap,
    identity: &Identity,
    role: Option<&str>,
    audit_id: AuditId,
) -> Result<(), Report> {
    headers.insert(USER, name(&identity.username)?);
    headers.remove(GROUP);
    for group in &identity.groups {
        headers.append(GROUP, name(group)?);
    }
    if let Some(role) = role {
        headers.append(GROUP, value(role)?);
    }
    headers.append(GROUP, HeaderValue::from_static(AUTHENTICATED));
    if let Some(uid) = &identity.uid {
        headers.insert(UID, value(uid)?);
    }
    for (key, values) in &identity.extra {
        let header = extra_header(key)?;
        for text in values {
            headers.append(header.clone(), value(text)?);
        }
    }
    name_request(headers, audit_id)
}

/// Sets only the request's name in the audit log: for a request that says by itself who it is for.
///
/// # Errors
/// None that can happen.
pub fn name_request(headers: &mut HeaderMap, audit_id: AuditId) -> Result<(), Report> {
    let id = HeaderValue::try_from(audit_id.to_string());
    headers.insert(AUDIT_ID, id.map_err(|error| Report::caused_by(Fault::Internal, "", error))?);
    Ok(())
}

/// Sets that the request is for `wanted`, whom `identity` was allowed to act as, and who really asks. Groups are exactly
/// those that were asked for: kube-apiserver adds what goes without saying, as it does where it is asked directly.
///
/// # Errors
/// If a name can't stand in a header: no request then.
pub fn act_as(
    headers: &mut HeaderMap,
    identity: &Identity,
    wanted: &Wanted,
    audit_id: AuditId,
) -> Result<(), Report> {
    // Judges the caller's own names, too; nothing of them stays.
    let mut own = HeaderMap::new();
    impersonate(&mut own, identity, None, audit_id)?;
    headers.insert(USER, value(&wanted.user)?);
    for group in &wanted.groups {
        headers.append(GROUP, value(group)?);
    }
    if let Some(uid) = &wanted.uid {
        headers.insert(UID, value(uid)?);
    }
    for (key, values) in &wanted.extra {
        let header = encode_key(key)?;
        for text in values {
            headers.append(header.clone(), value(text)?);
        }
    }
    headers.insert(encode_key(ORIGINAL_USER)?, value(&identity.username)?);
    name_request(headers, audit_id)
}

fn forbidden(what: &str, name: &str) -> Report {
    Report::new(Fault::IdentityForbidden, format!("{name:?} {what}"))
}

/// A user's or group's name.
fn name(text: &str) -> Result<HeaderValue, Report> {
    // In a list that a careless reader takes apart, each part is a name.
    for part in text.split(',') {
        let begin = part.trim_start().to_ascii_lowercase();
        if begin.starts_with("system:") || begin.starts_with("towline:") {
            return Err(forbidden("is reserved", text));
        }
    }
    value(text)
}

/// A text that reaches the apiserver as it is: HTTP takes white space off both ends of a value, so that two names
/// would be one.
fn value(text: &str) -> Result<HeaderValue, Report> {
    if text.is_empty() || text.trim() != text || text.chars().any(char::is_control) {
        return Err(forbidden("is blank, has white space around it, or a control character in it", text));
    }
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| forbidden("can't stand in a header", text))
}

/// `Impersonate-Extra-` and the key, lower case, percent-encoded where a header's name can't hold it, as client-go
/// writes it. Keys of Kubernetes' own are never a token's to give.
fn extra_header(key: &str) -> Result<HeaderName, Report> {
    let key = key.to_ascii_lowercase();
    let domain = key.split('/').next().filter(|_| key.contains('/')).unwrap_or_default();
    let is_of =
        |zone: &str| domain == zone || domain.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.'));
    if key.is_empty() || is_of("kubernetes.io") || is_of("k8s.io") || is_of("towline.dev") {
        return Err(forbidden("is an extra key that is reserved", &key));
    }
    encode_key(&key)
}

fn encode_key(key: &str) -> Result<HeaderName, Report> {
    let mut header = EXTRA.to_owned();
    for byte in key.bytes() {
        // RFC 9110, section 5.6.2, without the percent sign itself.
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            header.push(char::from(byte));
        } else {
            header.push_str(&format!("%{byte:02X}"));
        }
    }
    HeaderName::try_from(header).map_err(|_| forbidden("can't stand in a header's name", key))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::SystemTime};

    use proptest::prelude::*;
    use towline_identity::Principal;

    use super::*;

    fn identity(username: &str, groups: &[&str]) -> Identity {
        Identity {
            username: username.into(),
            groups: groups.iter().map(|group| (*group).into()).collect(),
            uid: None,
            extra: BTreeMap::new(),
            principal: Principal { issuer: "https://idp".into(), subject: "1".into() },
            issued_at: None,
            expires_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn set(identity: &Identity) -> Result<HeaderMap, Report> {
        let mut headers = HeaderMap::new();
        impersonate(&mut headers, identity, None, AuditId::random()).map(|()| headers)
    }

    fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
        headers.get_all(name).iter().map(|v| String::from_utf8(v.as_bytes().to_vec()).unwrap()).collect()
    }

    #[test]
    fn user_groups_uid_and_extra_are_set_and_everyone_is_authenticated() {
        let mut alice = identity("https://idp#älice", &["dev", "ops"]);
        alice.uid = Some("4711".into());
        alice.extra = BTreeMap::from([
            ("Example.org/Cost Center".to_owned(), vec!["7".to_owned(), "8".to_owned()]),
            ("scopes".to_owned(), vec!["all".to_owned()]),
        ]);
        let headers = set(&alice).unwrap();
        assert_eq!(values(&headers, "impersonate-user"), ["https://idp#älice"]);
        assert_eq!(values(&headers, "impersonate-group"), ["dev", "ops", "system:authenticated"]);
        assert_eq!(values(&headers, "impersonate-uid"), ["4711"]);
        assert_eq!(values(&headers, "impersonate-extra-example.org%2fcost%20center"), ["7", "8"]);
        assert_eq!(values(&headers, "impersonate-extra-scopes"), ["all"]);
        assert_eq!(values(&headers, "audit-id").len(), 1);
        assert_eq!(
            values(&set(&identity("bob", &[])).unwrap(), "impersonate-group"),
            ["system:authenticated"]
        );
    }

    #[test]
    fn t04_t06_t07_names_that_no_token_may_give_make_no_request() {
        for bad in [
            "",
            " ",
            "\t",
            "a\r\nImpersonate-Group: system:masters",
            "a\nb",
            "a\0b",
            "system:masters",
            " system:masters",
            "SYSTEM:masters",
            "dev,system:masters",
            "dev, system:node:a",
            "system:serviceaccount:kube-system:default",
            "towline:role:admin",
            "alice ",
            "\u{a0}alice",
        ] {
            for identity in [identity(bad, &[]), identity("alice", &["dev", bad])] {
                let report = set(&identity).unwrap_err();
                assert_eq!((report.fault, report.http_status()), (Fault::IdentityForbidden, 401), "{bad:?}");
            }
        }
        for key in ["", "authentication.kubernetes.io/pod-name", "k8s.io/x", "a.k8s.io/x", ORIGINAL_USER] {
            let mut alice = identity("alice", &[]);
            alice.extra.insert(key.into(), vec!["x".into()]);
            assert!(set(&alice).is_err(), "{key:?}");
        }
        assert!(set(&identity("notsystem:alice", &["my-system:x"])).is_ok());
    }

    #[test]
    fn t01_acting_as_somebody_leaves_nothing_of_the_callers_own_but_their_name_under_its_key() {
        let mut alice = identity("alice", &["dev"]);
        alice.uid = Some("1".into());
        let wanted = Wanted {
            user: "bob".into(),
            groups: vec!["ops".into(), "ops".into()],
            uid: None,
            extra: BTreeMap::from([("a b/c".to_owned(), vec!["7".to_owned()])]),
        };
        let mut headers = HeaderMap::new();
        act_as(&mut headers, &alice, &wanted, AuditId::random()).unwrap();
        headers.remove("audit-id").unwrap();
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        assert_eq!(
            lines,
            [
                "impersonate-extra-a%20b%2fc: 7",
                "impersonate-extra-towline.dev%2foriginal-user: alice",
                "impersonate-group: ops",
                "impersonate-group: ops",
                "impersonate-user: bob",
            ]
        );
        let masters = identity("alice", &["system:masters"]);
        assert!(act_as(&mut HeaderMap::new(), &masters, &wanted, AuditId::random()).is_err());
    }

    #[test]
    fn audit_ids_are_random_uuids_however_they_are_printed() {
        let id = AuditId::random();
        let (one, two) = (id.to_string(), AuditId::random().to_string());
        assert_eq!(format!("{id:?}"), format!("AuditId({one})"));
        assert_ne!(one, two);
        assert_eq!(one.len(), 36);
        assert_eq!(one.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&one.as_bytes()[19]));
    }

    proptest! {
        #[test]
        fn whatever_the_names_nothing_reserved_goes_out(user in "\\PC{0,20}", group in "(system:|towline:|[ ,]){0,3}\\PC{0,10}") {
            if let Ok(headers) = set(&identity(&user, &[&group])) {
                prop_assert_eq!(values(&headers, "impersonate-user"), [user]);
                prop_assert_eq!(values(&headers, "impersonate-group"), [group.clone(), AUTHENTICATED.to_owned()]);
                prop_assert!(!group.trim().starts_with("system:") && !group.trim().starts_with("towline:"));
            }
        }

        #[test]
        fn any_extra_key_gives_a_header_that_decodes_to_it(key in "\\PC{1,20}") {
            if let Ok(header) = extra_header(&key) {
                let text = header.as_str().strip_prefix(EXTRA).unwrap().as_bytes();
                let mut decoded = Vec::new();
                let mut at = 0;
                while at < text.len() {
                    if text[at] == b'%' {
                        decoded.push(u8::from_str_radix(std::str::from_utf8(&text[at + 1..at + 3]).unwrap(), 16).unwrap());
                        at += 3;
                    } else {
                        decoded.push(text[at]);
                        at += 1;
                    }
                }
                prop_assert_eq!(String::from_utf8(decoded).unwrap(), key.to_ascii_lowercase());
            }
        }
    }
}
