//! One line for each request: who, as whom, what, and what came of it. Never a body, a token, or a query.
//!
//! The words are kube-apiserver's (`k8s.io/apiserver`, `RequestInfoFactory`), so that its own audit log says the same of a request; the
//! `auditId` is in both, and the `channel` in the relay's audit.

use std::time::{Duration, SystemTime};

use http::{Method, Uri};
use serde::Serialize;

use crate::forward::Caller;

/// Who a request is of, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    /// The verified user, or the service account whose token was passed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The verified user's groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What was not as it should be, and cost them rights: groups that are not known, or left out, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Whom they act as (`kubectl --as`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acts_as: Option<String>,
    /// The role that the organisation gives them, where it counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// A role, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Role {
    /// `viewer`, `writer`, ….
    pub role: &'static str,
    /// Where the document that gives it holds.
    pub scope: String,
    /// Its id.
    pub document: String,
    /// What it says, where that is above the agent's ceiling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lowered_from: Option<&'static str>,
}

/// What a request asks for, in kube-apiserver's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// `get`, `list`, `watch`, `create`, …; of a path that is no resource the method, in lower case.
    pub verb: String,
    /// Its API group; empty for the core.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    /// `v1`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// `pods`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    /// The namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `exec`, `log`, `status`, ….
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
    /// The path, where it is no resource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// The code of a request whose caller left before there was an answer.
pub const NO_ANSWER: u16 = 0;

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// The answer's HTTP status, or [`NO_ANSWER`].
    pub code: u16,
    /// Ours, where the agent refused it.
    pub fault: Option<&'a str>,
    /// Until the answer's head.
    pub after: Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    at: String,
    audit_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    stream: String,
    principal: &'a str,
    #[serde(flatten)]
    named: &'a Named,
    #[serde(flatten)]
    target: &'a Target,
    code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'a str>,
    millis: u64,
}

/// The line, for [`towline_tunnel::audit::AuditLog::record`]. `at` is when the request came.
pub fn line<'a>(
    at: SystemTime,
    audit_id: &'a str,
    caller: &'a Caller,
    named: &'a Named,
    target: &'a Target,
    outcome: &Outcome<'a>,
) -> impl Serialize + use<'a> {
    Line {
        at: jiff::Timestamp::try_from(at).map(|at| at.to_string()).unwrap_or_default(),
        audit_id,
        channel: caller.channel.map(|channel| channel.to_string()),
        stream: caller.stream.to_string(),
        principal: &caller.principal,
        named,
        target,
        code: outcome.code,
        fault: outcome.fault,
        millis: u64::try_from(outcome.after.as_millis()).unwrap_or(u64::MAX),
    }
}

impl Target {
    /// Reads method and path as kube-apiserver does.
    pub fn of(method: &Method, uri: &Uri) -> Self {
        let no_resource = || Self {
            verb: method.as_str().to_ascii_lowercase(),
            path: uri.path().to_owned(),
            ..Self::default()
        };
        let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let (api_group, api_version, parts) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return no_resource(),
        };
        // `/api/v1/watch/pods` and `/api/v1/proxy/…`: older forms, of which the word is the verb.
        let (special, parts) = match parts {
            [verb @ ("watch" | "proxy"), rest @ ..] if !rest.is_empty() => (Some(*verb), rest),
            _ => (None, parts),
        };
        let (namespace, parts) = match parts {
            ["namespaces", namespace, rest @ ..] => match rest {
                [] | ["status" | "finalize"] => (*namespace, parts),
                _ => (*namespace, rest),
            },
            _ => ("", parts),
        };
        let part = |at: usize| parts.get(at).copied().unwrap_or_default().to_owned();
        let (resource, name, subresource) = (part(0), part(1), part(2));
        let is_watch = || uri.query().is_some_and(is_watch);
        let verb = match (special, method.as_str()) {
            (Some(verb), _) => verb,
            (None, "POST") => "create",
            (None, "GET" | "HEAD") if !name.is_empty() => "get",
            (None, "GET" | "HEAD") if is_watch() => "watch",
            (None, "GET" | "HEAD") => "list",
            (None, "PUT") => "update",
            (None, "PATCH") => "patch",
            (None, "DELETE") if name.is_empty() => "deletecollection",
            (None, "DELETE") => "delete",
            (None, _) => "",
        };
        Self {
            verb: verb.to_owned(),
            api_group: api_group.to_owned(),
            api_version: api_version.to_owned(),
            resource,
            namespace: namespace.to_owned(),
            name,
            subresource,
            path: String::new(),
        }
    }
}

/// Whether a list's query asks for a watch.
pub(crate) fn is_watch(query: &str) -> bool {
    let is_true = |value: &str| matches!(value, "1" | "t" | "T" | "true" | "True" | "TRUE");
    query.split('&').any(|pair| pair.strip_prefix("watch=").is_some_and(is_true))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verb, group, version, resource, namespace, name, subresource, path.
    fn told(method: &str, uri: &str) -> [String; 8] {
        let target = Target::of(&method.parse().unwrap(), &uri.parse().unwrap());
        let Target { verb, api_group, api_version, resource, namespace, name, subresource, path } = target;
        [verb, api_group, api_version, resource, namespace, name, subresource, path]
    }

    /// The cases of `TestGetAPIRequestInfo` in k8s.io/apiserver that have something of their own, and exec.
    #[test]
    fn requests_are_named_as_kube_apiserver_names_them() {
        for (method, uri, expected) in [
            ("GET", "/api/v1/namespaces", ["list", "", "v1", "namespaces", "", "", "", ""]),
            ("GET", "/api/v1/namespaces/other", ["get", "", "v1", "namespaces", "other", "other", "", ""]),
            (
                "PUT",
                "/api/v1/namespaces/a/status",
                ["update", "", "v1", "namespaces", "a", "a", "status", ""],
            ),
            ("GET", "/api/v1/namespaces/a/pods", ["list", "", "v1", "pods", "a", "", "", ""]),
            ("GET", "/api/v1/pods?watch=true&x=y", ["watch", "", "v1", "pods", "", "", "", ""]),
            ("GET", "/api/v1/pods?watch=false", ["list", "", "v1", "pods", "", "", "", ""]),
            ("GET", "/api/v1/watch/namespaces/a/pods", ["watch", "", "v1", "pods", "a", "", "", ""]),
            ("HEAD", "/api/v1/namespaces/a/pods/p", ["get", "", "v1", "pods", "a", "p", "", ""]),
            (
                "POST",
                "/api/v1/namespaces/a/pods/p/exec?command=sh&command=secret",
                ["create", "", "v1", "pods", "a", "p", "exec", ""],
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                ["patch", "apps", "v1", "deployments", "a", "d", "scale", ""],
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                ["deletecollection", "apps", "v1", "deployments", "a", "", "", ""],
            ),
            ("DELETE", "/api/v1/nodes/n", ["delete", "", "v1", "nodes", "", "n", "", ""]),
            (
                "GET",
                "/api/v1/namespaces/a/services/s:80/proxy/x/y",
                ["get", "", "v1", "services", "a", "s:80", "proxy", ""],
            ),
            ("GET", "/version", ["get", "", "", "", "", "", "", "/version"]),
            ("GET", "/apis/apps/v1", ["get", "", "", "", "", "", "", "/apis/apps/v1"]),
            ("POST", "/.towline/authority", ["post", "", "", "", "", "", "", "/.towline/authority"]),
        ] {
            assert_eq!(told(method, uri), expected, "{method} {uri}");
        }
    }
}
