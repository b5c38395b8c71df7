//! What a person is told beside kube-apiserver's own 403: which layer denied, which role they have, and the command that would give more.
//!
//! kube-apiserver's body stays as it is. `Warning` headers with code 299 (RFC 7234, section 5.5) are printed by kubectl.

use http::HeaderValue;
use towline_identity::Identity;

use super::{Granted, Roles};

/// Longer texts are cut by nobody but a proxy; names may be long.
const MAX_WARNING: usize = 1024;

/// The header's value for a user whom the cluster's RBAC denied something; `roles`, where the agent honours any.
pub(crate) fn warning(
    roles: Option<&Roles>,
    identity: &Identity,
    granted: Option<&Granted>,
) -> Option<HeaderValue> {
    let text = format!("denied by the cluster's RBAC; {}", more(roles, identity, granted));
    HeaderValue::try_from(format!("299 - \"towline: {}\"", quoted(&text))).ok()
}

/// What would give more.
fn more(roles: Option<&Roles>, identity: &Identity, granted: Option<&Granted>) -> String {
    let bind = format!(
        "kubectl create clusterrolebinding NAME --clusterrole=ROLE --user={}",
        in_shell(&identity.username)
    );
    let Some(roles) = roles else { return format!("an administrator of the cluster can give more: {bind}") };
    let (cluster, principal) = (roles.cluster(), in_shell(&identity.principal.to_string()));
    let assign = format!("towline role assign --principal {principal} --role ROLE --scope cluster:{cluster}");
    let raise = "restart the agent with a higher --max-relay-role (the chart's roles.max)";
    match granted {
        None => format!("the organisation gives you no role here: {assign}, or {bind}"),
        Some(granted) if granted.role < granted.given.role => format!(
            "your role {} ({}) counts as {} here, the agent's --max-relay-role: {raise}, or {bind}",
            granted.given.role, granted.given.scope, granted.role
        ),
        Some(granted) if granted.role == roles.ceiling() => format!(
            "your role is {} ({}), the agent's --max-relay-role: {raise} and {assign}, or {bind}",
            granted.role, granted.given.scope
        ),
        Some(granted) => {
            format!("your role is {} ({}); for more: {assign}, or {bind}", granted.role, granted.given.scope)
        }
    }
}

/// A word for a POSIX shell: whoever pastes the command runs nothing that a token's claim says.
fn in_shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
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
    fn a_name_stays_one_word_in_a_shell() {
        assert_eq!(in_shell("oidc:alice"), "'oidc:alice'");
        assert_eq!(in_shell("a'; rm -rf /"), r"'a'\''; rm -rf /'");
    }

    #[test]
    fn names_end_no_header_and_no_quotation() {
        assert_eq!(quoted("a \"b\" \\ é\r\nX: y"), "a \\\"b\\\" \\\\ ???X: y");
        assert!(quoted(&"\"".repeat(5000)).len() <= MAX_WARNING + 2);
    }
}
