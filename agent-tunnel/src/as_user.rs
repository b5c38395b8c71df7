//! Whom a caller asks to act as: `kubectl --as`, `--as-group`, `--as-uid`, `--as-user-extra`.
//!
//! Nothing of it is ever dropped: without it the request would run with greater rights than asked for. It is read here,
//! allowed part by part by `review`, and written by [`crate::impersonate::act_as`].

mod review;

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use towline_tunnel::fault::{Fault, Report};

use crate::impersonate::{EXTRA, GROUP, UID, USER};
pub use review::Reviews;

/// What any such header's name begins with.
pub const PREFIX: &str = "impersonate-";
/// Each part costs a SubjectAccessReview (THREATS T53). Nobody types as many.
pub const MAX_PARTS: usize = 32;
/// As long as a name from a token may be.
const MAX_NAME: usize = 1024;
const MASTERS: &str = "system:masters";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Their name.
    pub user: String,
    /// Their groups, in order. kube-apiserver adds those that go without saying.
    pub groups: Vec<String>,
    /// Their unique id.
    pub uid: Option<String>,
    /// Further attributes, by key in lower case.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// One thing to be allowed: a resource of impersonation, as kube-apiserver's own check names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part<'a> {
    pub(crate) group: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

impl Wanted {
    /// Reads it from a request's headers; nothing where none of them asks for it.
    ///
    /// # Errors
    /// If it is malformed or too much (400), or nobody may be that (403). `masters` allows the group `system:masters`
    /// to be asked for.
    pub fn read(headers: &HeaderMap, masters: bool) -> Result<Option<Self>, Report> {
        let asked: Vec<&HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).collect();
        if asked.is_empty() {
            return Ok(None);
        }
        // Before anything that takes longer the longer it is.
        let parts: usize = asked.iter().map(|name| headers.get_all(*name).iter().count()).sum();
        if parts > MAX_PARTS {
            return Err(malformed(format!("{parts} parts are more than {MAX_PARTS}")));
        }
        let mut extra = BTreeMap::new();
        for name in asked {
            if *name == USER || *name == GROUP || *name == UID {
                continue;
            }
            let Some(key) = name.as_str().strip_prefix(EXTRA) else {
                return Err(Report::new(Fault::ImpersonationUnsupported, name.as_str()));
            };
            let values = texts(headers, name)?;
            // Two spellings of one key are one key to kube-apiserver, too.
            extra.entry(extra_key(key)?).or_insert_with(Vec::new).extend(values);
        }
        let user = one(headers, &USER)?
            .ok_or_else(|| malformed("a group, uid or extra is asked for without a user (--as)"))?;
        let wanted = Self { user, groups: texts(headers, &GROUP)?, uid: one(headers, &UID)?, extra };
        wanted.check(masters)?;
        Ok(Some(wanted))
    }

    /// Refuses whom nobody may be, whatever a SubjectAccessReview says.
    fn check(&self, masters: bool) -> Result<(), Report> {
        let refused = |what: String| Err(Report::new(Fault::ImpersonationUnsupported, what));
        for name in self.groups.iter().chain([&self.user]) {
            // In a list that a careless reader takes apart, each part is a name.
            for part in name.split(',').map(|part| part.trim().to_ascii_lowercase()) {
                if part.starts_with("towline:") {
                    return refused(format!("{name:?} is towline's own to give"));
                }
                if part == MASTERS && !masters {
                    return refused(format!("{MASTERS} needs the agent's --allow-system-masters"));
                }
            }
        }
        if let Some(key) = self.extra.keys().find(|key| is_own_key(key)) {
            return refused(format!("the extra key {key:?} is the agent's own to set"));
        }
        service_account(&self.user).map(|_| ())
    }

    /// Everything that must be allowed, the user first.
    pub(crate) fn parts(&self) -> Result<Vec<Part<'_>>, Report> {
        let of =
            |group, resource, subresource, name| Part { group, resource, subresource, namespace: "", name };
        let mut parts = vec![match service_account(&self.user)? {
            Some((namespace, name)) => Part { namespace, ..of("", "serviceaccounts", "", name) },
            None => of("", "users", "", &self.user),
        }];
        parts.extend(self.groups.iter().map(|group| of("", "groups", "", group)));
        let authentication = "authentication.k8s.io";
        parts.extend(self.uid.iter().map(|uid| of(authentication, "uids", "", uid)));
        let extra = self.extra.iter().flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
        parts.extend(extra.map(|(key, value)| of(authentication, "userextras", key, value)));
        Ok(parts)
    }
}

/// Of towline's domain, as [`crate::impersonate::ORIGINAL_USER`] is.
fn is_own_key(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    domain == "towline.dev" || domain.ends_with(".towline.dev")
}

fn malformed(what: impl Into<String>) -> Report {
    Report::new(Fault::ActingMalformed, what)
}

/// All values of a header, each a name that means the same to whoever reads it.
fn texts(headers: &HeaderMap, name: &HeaderName) -> Result<Vec<String>, Report> {
    headers.get_all(name).iter().map(|value| text(name, value)).collect()
}

/// The only value, if there is one: of two, two programs could take different ones.
fn one(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Report> {
    let mut values = texts(headers, name)?;
    if values.len() > 1 {
        return Err(malformed(format!("{name} stands twice")));
    }
    Ok(values.pop())
}

fn text(name: &HeaderName, value: &HeaderValue) -> Result<String, Report> {
    let text = str::from_utf8(value.as_bytes()).map_err(|_| malformed(format!("{name} is not UTF-8")))?;
    if text.is_empty() || text.trim() != text || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        return Err(malformed(format!(
            "{name} is blank, has white space around it or a control character in it, or is longer than {MAX_NAME} bytes"
        )));
    }
    Ok(text.to_owned())
}

/// The key of an extra, percent-decoded (RFC 3986, section 2.1) as kube-apiserver does it. What it would read
/// differently from how it is written is refused: sequences that are damaged, and capital letters.
fn extra_key(encoded: &str) -> Result<String, Report> {
    let wrong =
        || malformed(format!("{EXTRA}{encoded} has no key that is percent-encoded and in lower case"));
    let mut bytes = encoded.bytes();
    let mut key = Vec::with_capacity(encoded.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            key.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else { return Err(wrong()) };
        key.push(u8::try_from(high * 16 + low).map_err(|_| wrong())?);
    }
    let key = String::from_utf8(key).map_err(|_| wrong())?;
    let is_plain = key.to_lowercase() == key && key.trim() == key && !key.chars().any(char::is_control);
    if key.is_empty() || key.len() > MAX_NAME || !is_plain {
        return Err(wrong());
    }
    Ok(key)
}

/// Namespace and name, if the user is a service account. What only looks like one is refused: kube-apiserver would take
/// it for a user of that name.
fn service_account(user: &str) -> Result<Option<(&str, &str)>, Report> {
    let Some(rest) = user.strip_prefix(SERVICE_ACCOUNT) else { return Ok(None) };
    let found = rest.split_once(':').filter(|(namespace, name)| {
        // RFC 1123: a label and a subdomain.
        is_label(namespace) && name.len() <= 253 && name.split('.').all(|label| is_label_of(label, 253))
    });
    found.map(Some).ok_or_else(|| malformed(format!("{user:?} is no service account's name")))
}

fn is_label(text: &str) -> bool {
    is_label_of(text, 63)
}

fn is_label_of(text: &str, longest: usize) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= longest
        && ends.iter().all(|end| end.is_some_and(is_plain))
        && text.bytes().all(|byte| is_plain(byte) || byte == b'-')
}

#[cfg(test)]
mod tests;
