//! The file's own shape. kube-apiserver decodes it strictly, and so do we: a field with a typing error must not mean
//! that a rule is not there.

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct File {
    pub(super) api_version: String,
    pub(super) kind: String,
    #[serde(default)]
    pub(super) jwt: Vec<Authenticator>,
    pub(super) anonymous: Option<Anonymous>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Anonymous {
    #[serde(default)]
    pub(super) enabled: bool,
    #[serde(default, rename = "conditions")]
    _conditions: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Authenticator {
    pub(super) issuer: Issuer,
    #[serde(default)]
    pub(super) claim_validation_rules: Vec<ClaimValidationRule>,
    pub(super) claim_mappings: ClaimMappings,
    #[serde(default)]
    pub(super) user_validation_rules: Vec<UserValidationRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Issuer {
    pub(super) url: String,
    #[serde(rename = "discoveryURL")]
    pub(super) discovery_url: Option<String>,
    pub(super) certificate_authority: Option<String>,
    #[serde(default)]
    pub(super) audiences: Vec<String>,
    pub(super) audience_match_policy: Option<String>,
    pub(super) egress_selector_type: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ClaimValidationRule {
    pub(super) claim: Option<String>,
    pub(super) required_value: Option<String>,
    pub(super) expression: Option<String>,
    pub(super) message: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ClaimMappings {
    pub(super) username: Option<Mapping>,
    pub(super) groups: Option<Mapping>,
    pub(super) uid: Option<Uid>,
    #[serde(default)]
    pub(super) extra: Vec<Extra>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mapping {
    pub(super) claim: Option<String>,
    pub(super) prefix: Option<String>,
    pub(super) expression: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Uid {
    pub(super) claim: Option<String>,
    pub(super) expression: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Extra {
    pub(super) key: String,
    pub(super) value_expression: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UserValidationRule {
    pub(super) expression: String,
    pub(super) message: Option<String>,
}

/// What is wrong with the key of an extra attribute: a subdomain (RFC 1123), a slash, a path, in lower case, and not
/// Kubernetes' own.
pub(super) fn extra_key_fault(key: &str) -> Option<&'static str> {
    let Some((domain, path)) = key.split_once('/') else {
        return Some("its key is not a domain, a slash and a path");
    };
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let path_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&byte);
    if domain.is_empty() || domain.len() > 253 || !domain.split('.').all(label) {
        return Some("its key's domain is none (lower case)");
    }
    if path.is_empty() || !path.bytes().all(path_byte) || path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some("its key's path is none (lower case)");
    }
    let is_of =
        |zone: &str| domain == zone || domain.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.'));
    if is_of("k8s.io") || is_of("kubernetes.io") {
        return Some("k8s.io, kubernetes.io and their subdomains are Kubernetes' own");
    }
    if is_of("towline.dev") {
        return Some("towline.dev and its subdomains are the agent's own");
    }
    None
}
