//! `kubectl --as`: allowed by the cluster's own rules for the verified user, refused otherwise, and never dropped.

use anyhow::ensure;
use towline_tunnel::fault::Fault;

use crate::{
    bad_days::{fails_with, kubectl, until},
    stage::{Proxy, Stage},
    table::{GROUP, RESTRICTED, TOKEN_LIFETIME, USER, apply_with},
};

/// Who asks, and whom they may be, is a matter of the cluster's own roles.
///
/// # Errors
/// What was not as it must be.
pub fn as_somebody_else(stage: &Stage) -> anyhow::Result<()> {
    stage.let_in(USER)?;
    stage.let_in(RESTRICTED)?;
    let mighty = stage.proxy("as-mighty", &stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?)?;
    let restricted = stage.proxy("as-restricted", &stage.tokens(RESTRICTED, &[], TOKEN_LIFETIME)?)?;
    nobodys_to_be(stage, &mighty)?;
    as_roles_say(stage, &restricted)
}

/// Even who may be anybody is not system:masters, nor anybody of towline's, and asks for 32 parts at most.
fn nobodys_to_be(stage: &Stage, mighty: &Proxy) -> anyhow::Result<()> {
    for arguments in [
        &["get", "pods", "--as=carol", "--as-group=system:masters"][..],
        &["get", "pods", "--as=towline:role:admin"],
        &["get", "pods", "--as=carol", "--as-user-extra=towline.dev/original-user=carol"],
        &["exec", "box", "--as=carol", "--as-group=system:masters", "--", "true"],
    ] {
        fails_with(&kubectl(stage, mighty, arguments)?, Fault::ImpersonationUnsupported)?;
    }
    let groups: Vec<String> = (0..32).map(|n| format!("--as-group=g{n}")).collect();
    let with = |count: usize| {
        let mut arguments = vec!["auth", "whoami", "--as=carol", "-o", "json"];
        arguments.extend(groups.iter().take(count).map(String::as_str));
        kubectl(stage, mighty, &arguments)
    };
    let all = with(31)?;
    ensure!(all.ended == "exit 0" && all.stdout.contains("g30"), "32 parts: {}", all.stderr);
    fails_with(&with(32)?, Fault::ActingMalformed)
}

/// A role that is given counts at once; one that is taken away no more after five seconds.
fn as_roles_say(stage: &Stage, restricted: &Proxy) -> anyhow::Result<()> {
    // kubectl keeps to itself why `auth whoami` is refused.
    let (who, get) = (["auth", "whoami", "--as=carol", "-o", "json"], ["get", "pods", "--as=carol"]);
    fails_with(&kubectl(stage, restricted, &get)?, Fault::ActingDenied)?;
    let role = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: e2e-carol}}\n\
         rules: [{{apiGroups: [\"\"], resources: [users], resourceNames: [carol], verbs: [impersonate]}}]\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: e2e-carol}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: e2e-carol}}\n\
         subjects: [{{kind: User, apiGroup: rbac.authorization.k8s.io, name: {RESTRICTED}}}]\n"
    );
    apply_with(&stage.cluster, &["apply", "-f", "-"], &role)?;
    // kube-apiserver learns of the role a moment later.
    until(|| {
        let outcome = kubectl(stage, restricted, &who)?;
        ensure!(outcome.ended == "exit 0", "not allowed: {}", outcome.stderr);
        for expected in ["\"carol\"", "towline.dev/original-user", "\"bob\""] {
            ensure!(outcome.stdout.contains(expected), "{expected} is missing in {}", outcome.stdout);
        }
        Ok(())
    })?;
    for more in ["--as-group=dev", "--as-uid=7", "--as-user-extra=example.org/a=b"] {
        let outcome = kubectl(stage, restricted, &[&get[..], &[more]].concat())?;
        fails_with(&outcome, Fault::ActingDenied)?;
    }
    for user in ["--as=dave", "--as=system:serviceaccount:default:default", "--as=system:node:localhost"] {
        fails_with(&kubectl(stage, restricted, &["get", "pods", user])?, Fault::ActingDenied)?;
    }
    stage.cluster.kubectl_output(&["delete", "clusterrolebinding/e2e-carol", "clusterrole/e2e-carol"])?;
    until(|| fails_with(&kubectl(stage, restricted, &get)?, Fault::ActingDenied))
}
