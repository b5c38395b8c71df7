//! What a person is told beside kube-apiserver's own 403: which role they have, and what would give more.
//!
//! kube-apiserver's body stays as it is. `Warning` headers with code 299 (RFC 7234, section 5.5) are printed by kubectl.

use http::HeaderValue;
use towline_identity::Identity;

use super::{Granted, Roles};

/// Longer texts are cut by nobody but a proxy; names may be long.
const MAX_WARNING: usize = 1024;

/// The header's value.
pub(crate) fn warning(roles: &Roles, identity: &Identity, granted: Option<&Granted>) -> Option<HeaderValue> {
    let (cluster, principal) = (roles.cluster(), &identity.principal);
    let ceiling = roles.ceiling();
    let more = format!(
        "towline role assign --principal '{principal}' --role ROLE --scope cluster:{cluster}, or a binding in the cluster's RBAC"
    );
    let text = match granted {
        None => format!("denied by the cluster's RBAC; the organisation gives you no role here: {more}"),
        Some(granted) if granted.role < granted.given.role => format!(
            "denied by the cluster's RBAC; your role {} ({}) counts as {} here, the agent's --max-relay-role: raise that, or bind more in the cluster's RBAC",
            granted.given.role, granted.given.scope, granted.role
        ),
        Some(granted) if granted.role == ceiling => format!(
            "denied by the cluster's RBAC; your role is {} ({}), the agent's --max-relay-role: raise that and give a stronger role, or bind more in the cluster's RBAC",
            granted.role, granted.given.scope
        ),
        Some(granted) => format!(
            "denied by the cluster's RBAC; your role is {} ({}); for more: {more}",
            granted.role, granted.given.scope
        ),
    };
    HeaderValue::try_from(format!("299 - \"towline: {}\"", quoted(&text))).ok()
}

/// The inside of a quoted-string (RFC 9110, section 5.6.4), in ASCII: names come from tokens.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for c in text.chars() {
        if quoted.len() >= MAX_WARNING {
            break;
        }
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            _ => quoted.push('?'),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_no_header_and_no_quotation() {
        assert_eq!(quoted("a \"b\" \\ é\r\nX: y"), "a \\\"b\\\" \\\\ ???X: y");
        assert!(quoted(&"\"".repeat(5000)).len() <= MAX_WARNING + 2);
    }
}
