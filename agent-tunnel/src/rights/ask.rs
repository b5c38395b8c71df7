//! Asking kube-apiserver what an account may do: SelfSubjectAccessReview and SelfSubjectRulesReview
//! (authorization.k8s.io/v1).

use std::fmt;

use http::Method;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use towline_tunnel::fault::{Fault, Report};

use crate::dial::{Account, Apiserver, status_message};

/// One right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    namespace: String,
    name: String,
}

impl Attributes {
    /// To do this with all of a resource.
    pub(super) fn new(verb: &'static str, group: &'static str, resource: &'static str) -> Self {
        Self { verb, group, resource, subresource: "", namespace: String::new(), name: String::new() }
    }

    /// With a subresource.
    pub(super) fn of(self, subresource: &'static str) -> Self {
        Self { subresource, ..self }
    }

    /// With one of them.
    pub(super) fn named(self, namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), ..self }
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if self.namespace.is_empty() { Ok(()) } else { write!(f, " {}/{}", self.namespace, self.name) }
    }
}

/// One rule of an account, for resources or for paths.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Rule {
    pub(super) verbs: Vec<String>,
    pub(super) api_groups: Vec<String>,
    pub(super) resources: Vec<String>,
    pub(super) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub(super) paths: Vec<String>,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = if self.paths.is_empty() { &self.resources } else { &self.paths };
        write!(f, "{} {}", self.verbs.join(","), of.join(","))?;
        let groups: Vec<&str> =
            self.api_groups.iter().map(String::as_str).filter(|group| !group.is_empty()).collect();
        if !groups.is_empty() {
            write!(f, " of {}", groups.join(","))?;
        }
        if self.resource_names.is_empty() { Ok(()) } else { write!(f, " {}", self.resource_names.join(",")) }
    }
}

#[derive(Deserialize)]
struct Review<T> {
    status: T,
}

#[derive(Deserialize)]
struct Allowed {
    allowed: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Rules {
    resource_rules: Vec<Rule>,
    non_resource_rules: Vec<Rule>,
}

/// Whether an account has a right.
///
/// # Errors
/// If nobody says.
pub(super) async fn may(
    apiserver: &Apiserver,
    account: Account,
    attributes: &Attributes,
) -> Result<bool, Report> {
    let spec = json!({ "resourceAttributes": {
        "verb": attributes.verb,
        "group": attributes.group,
        "resource": attributes.resource,
        "subresource": attributes.subresource,
        "namespace": attributes.namespace,
        "name": attributes.name,
    }});
    let allowed: Allowed = review(apiserver, account, "SelfSubjectAccessReview", &spec).await?;
    Ok(allowed.allowed)
}

/// The rules that count for an account in a namespace; with authorizers other than RBAC maybe not all.
///
/// # Errors
/// If nobody says.
pub(super) async fn rules(
    apiserver: &Apiserver,
    account: Account,
    namespace: &str,
) -> Result<Vec<Rule>, Report> {
    let spec = json!({ "namespace": namespace });
    let rules: Rules = review(apiserver, account, "SelfSubjectRulesReview", &spec).await?;
    Ok([rules.resource_rules, rules.non_resource_rules].concat())
}

async fn review<T: DeserializeOwned>(
    apiserver: &Apiserver,
    account: Account,
    kind: &'static str,
    spec: &Value,
) -> Result<T, Report> {
    let path = format!("/apis/authorization.k8s.io/v1/{}s", kind.to_ascii_lowercase());
    let body = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec }).to_string();
    let (code, answer) =
        apiserver.call_as(account, Method::POST, &path, "application/json", body.into_bytes()).await?;
    let wrong = |what: String| Report::new(Fault::AgentCredential, format!("{kind}: {what}"));
    if !(200..300).contains(&code) {
        return Err(wrong(format!("kube-apiserver answered {code}: {}", status_message(&answer))));
    }
    let review: Review<T> =
        serde_json::from_slice(&answer).map_err(|_| wrong("the answer is none".to_owned()))?;
    Ok(review.status)
}
