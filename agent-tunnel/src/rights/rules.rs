//! Which rules an account is expected to have; every other is too much.

use super::{Duties, ask::Rule};

/// What an account is for.
pub(super) struct Expected<'a> {
    /// It impersonates.
    pub(super) impersonates: bool,
    /// It is the agent's own.
    pub(super) duties: Option<&'a Duties>,
}

impl Expected<'_> {
    /// What about a rule is too much, if anything.
    pub(super) fn excess(&self, rule: &Rule) -> Option<String> {
        if is_everybodys(rule) || self.duties.is_some_and(|duties| duties.covers(rule)) {
            return None;
        }
        if !self.impersonates || !rule.verbs.iter().all(|verb| verb.starts_with("impersonate")) {
            return Some(rule.to_string());
        }
        let plain = |rule: &Rule| {
            let of_mode = |verb: &String| verb.starts_with("impersonate-on:user-info:");
            rule.verbs.iter().all(|verb| of_mode(verb) || verb == "impersonate:user-info") || bounded(rule)
        };
        (!plain(rule)).then(|| rule.to_string())
    }
}

/// The verb before KEP-5284: anybody's name, but not any group, and only named service accounts.
fn bounded(rule: &Rule) -> bool {
    rule.verbs.iter().all(|verb| verb == "impersonate")
        && rule.resources.iter().all(|resource| match resource.as_str() {
            "users" | "uids" => true,
            "groups" => {
                !rule.resource_names.is_empty()
                    && !rule.resource_names.iter().any(|name| name == "system:masters")
            }
            "serviceaccounts" => !rule.resource_names.is_empty(),
            other => other.strip_prefix("userextras/").is_some_and(|key| key != "*"),
        })
}

impl Duties {
    fn covers(&self, rule: &Rule) -> bool {
        let is = |names: &[String], expected: &[&str]| {
            !names.is_empty() && names.iter().all(|name| expected.contains(&name.as_str()))
        };
        let named = |name: &Option<String>| {
            let name = name.as_deref().and_then(|name| name.split_once('/')).map(|(_, name)| name);
            name.is_some_and(|name| is(&rule.resource_names, &[name]))
        };
        let (verbs, resources) = (&rule.verbs, &rule.resources);
        (is(resources, &["secrets"]) && is(verbs, &["get", "patch"]) && named(&self.state_secret))
            || (is(resources, &["serviceaccounts/token"])
                && is(verbs, &["create"])
                && named(&self.impersonator))
            || (is(resources, &["subjectaccessreviews"])
                && is(&rule.api_groups, &["authorization.k8s.io"])
                && is(verbs, &["create"]))
    }
}

/// What Kubernetes gives everybody (`system:basic-user`, `system:discovery`, `system:public-info-viewer`) and every service
/// account: to ask about oneself, to read what the server is, and whom it trusts.
fn is_everybodys(rule: &Rule) -> bool {
    let all = |names: &[String], holds: &dyn Fn(&str) -> bool| names.iter().all(|name| holds(name));
    if !rule.paths.is_empty() {
        return all(&rule.verbs, &|verb| verb == "get" || verb == "head")
            && all(&rule.paths, &|path| path != "*" && path != "/*" && !path.starts_with("/metrics"));
    }
    if all(&rule.resources, &|resource| resource == "clustertrustbundles") {
        return all(&rule.verbs, &|verb| matches!(verb, "get" | "list" | "watch"));
    }
    all(&rule.verbs, &|verb| verb == "create")
        && all(&rule.resources, &|resource| resource.starts_with("selfsubject"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::Mode;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let list = |text: &str| text.split_ascii_whitespace().map(str::to_owned).collect();
        Rule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            resource_names: list(names),
            paths: Vec::new(),
        }
    }

    fn paths(verbs: &str, paths: &str) -> Rule {
        Rule { paths: vec![paths.to_owned()], ..rule(verbs, "", "", "") }
    }

    fn duties() -> Duties {
        Duties {
            mode: Mode::Impersonate,
            impersonator: Some("towline/deputy".into()),
            state_secret: Some("towline/state".into()),
            role_groups: Vec::new(),
        }
    }

    #[test]
    fn what_deploy_gives_each_account_is_expected_and_anything_else_is_too_much() {
        let duties = duties();
        let own = Expected { impersonates: false, duties: Some(&duties) };
        let deputy = Expected { impersonates: true, duties: None };
        let authentication = "authentication.k8s.io";
        for everybodys in [
            rule("create", "authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews", ""),
            rule("create", authentication, "selfsubjectreviews", ""),
            paths("get", "/api/*"),
            paths("get", "/.well-known/openid-configuration/"),
        ] {
            assert_eq!((own.excess(&everybodys), deputy.excess(&everybodys)), (None, None));
        }
        for mine in [
            rule("get patch", "", "secrets", "state"),
            rule("create", "", "serviceaccounts/token", "deputy"),
            rule("create", "authorization.k8s.io", "subjectaccessreviews", ""),
        ] {
            assert_eq!(own.excess(&mine), None, "{mine}");
            assert!(deputy.excess(&mine).is_some(), "{mine}");
        }
        for theirs in [
            rule("impersonate:user-info", authentication, "users groups uids", ""),
            rule("impersonate-on:user-info:get impersonate-on:user-info:list", "*", "*", ""),
            paths("impersonate-on:user-info:get", "*"),
            rule("impersonate", "", "users", ""),
            rule("impersonate", "", "groups", "system:authenticated dev"),
            rule("impersonate", "", "serviceaccounts", "builder"),
            rule("impersonate", authentication, "uids userextras/towline.dev/original-user", ""),
        ] {
            assert_eq!(deputy.excess(&theirs), None, "{theirs}");
            assert!(own.excess(&theirs).is_some(), "{theirs}");
        }
        for neither in [
            rule("*", "*", "*", ""),
            rule("get", "", "secrets", ""),
            rule("get", "", "secrets", "other"),
            rule("get delete", "", "secrets", "state"),
            rule("create", "", "serviceaccounts/token", ""),
            rule("get", "", "pods", ""),
            rule("impersonate", "", "groups", ""),
            rule("impersonate", "", "users groups", ""),
            rule("impersonate", "", "groups", "dev system:masters"),
            rule("impersonate", "", "serviceaccounts", ""),
            rule("impersonate", "", "*", ""),
            rule("impersonate", authentication, "userextras/*", ""),
            rule("impersonate:serviceaccount", authentication, "serviceaccounts", ""),
            rule("impersonate:arbitrary-node", authentication, "nodes", ""),
            paths("*", "*"),
            paths("get", "/metrics"),
        ] {
            assert!(own.excess(&neither).is_some(), "{neither}");
            assert!(deputy.excess(&neither).is_some(), "{neither}");
        }
        let alone = Duties { impersonator: None, ..duties.clone() };
        let alone = Expected { impersonates: true, duties: Some(&alone) };
        assert_eq!(alone.excess(&rule("impersonate:user-info", authentication, "users", "")), None);
        assert_eq!(alone.excess(&rule("*", "*", "*", "")), Some("* * of *".into()));
    }
}
