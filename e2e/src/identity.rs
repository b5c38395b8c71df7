//! Every way to log in, every kind of token, each role, and every end of a right, with real kubectl: one relay and agent that trust a certified
//! provider (npm's oidc-provider) and an issuer of the tests' own, beside each other.
//!
//! [`run`] gives one row for each. What takes its time (a token that ends) runs beside the rest.

mod endings;
mod entra;
mod home;
mod logins;
mod modes;
mod provider;
mod rights;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use tokio::runtime::Handle;
use towline_identity::dev::{DevEntra, DevIssuer};
use towline_tunnel::ids::StreamKey;
use xtask::cluster::Cluster;

use crate::{
    audit_join,
    programs::Programs,
    stage::{CLUSTER_AUDIENCE, RELAY_AUDIENCE, Stage, Trust},
    table::{apply_with, make_namespace},
};
use provider::Provider;
use rights::Organisation;

/// The audience of both tokens where a provider has but one, and the name of the client that gets them.
const SHARED: &str = "shared";
/// What a machine's tokens are asked for with (RFC 8707), and their audiences.
const RELAY_RESOURCE: &str = "https://relay.example";
/// See [`RELAY_RESOURCE`].
const CLUSTER_RESOURCE: &str = "https://cluster.example";
/// The same for a cluster's token that lives for 15 s.
const BRIEF_RESOURCE: &str = "https://brief-cluster.example";
/// The clients whose tokens live for 15 s, and so their audiences.
const BRIEF: [&str; 2] = ["brief-relay", "brief-cluster"];
/// No token counts longer, at the agent.
const MAX_TOKEN_AGE: Duration = Duration::from_secs(3600);

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name, which begins with what it is about: `login`, `token`, `role`, `end`, `audit`.
    pub name: &'static str,
    /// What is done.
    pub what: &'static str,
    /// How long it took.
    pub took: Duration,
    /// What came of it, or what was not as it must be.
    pub result: Result<String, String>,
}

impl Row {
    /// The line as it is printed.
    pub fn print(&self) -> String {
        let (verdict, came) = match &self.result {
            Ok(came) => ("ok", came.as_str()),
            Err(fault) => ("FAILED", fault.as_str()),
        };
        format!("{:<26} {verdict:<14} {:>6.1} s   {}: {came}", self.name, self.took.as_secs_f64(), self.what)
    }
}

/// A row that is to be made: its name, what it does, and how.
type Planned = (&'static str, &'static str, fn(&Scene) -> anyhow::Result<String>);

/// Rows that can be made one after the other, in a second or two each.
const QUICK: &[Planned] = &[
    ("login-browser", "authorisation code with PKCE, one visit of a browser", logins::browser),
    ("login-device", "two codes, entered elsewhere", logins::device),
    ("login-client-credentials", "a machine's secret, two requests", logins::client_credentials),
    ("login-certificate", "an assertion that a certificate's key signs, two requests", logins::certificate),
    (
        "login-federated-env",
        "another issuer's token as Azure workload identity injects it, in place of a secret",
        logins::workload_identity,
    ),
    ("login-github", "two tokens that a job asks for by its runner's URL", logins::github),
    ("login-exec", "a client.authentication.k8s.io/v1 plugin", logins::exec),
    ("login-az", "a command that answers as the Azure CLI does", logins::az),
    ("login-gitlab", "tokens in two variables of a job", logins::gitlab),
    ("login-token-file", "tokens that something else wrote to files", logins::token_file),
    (
        "login-entra",
        "a user's tokens of Entra ID, versions 1 and 2, and whom the cluster takes them for",
        entra::user,
    ),
    ("token-entra-app", "an application's own token, only with a role that is allowed", entra::app),
    ("token-entra-overage", "groups that only Microsoft Graph knows", entra::overage),
    ("token-impersonated", "a verified token, impersonated with its groups", modes::impersonated),
    ("token-service-account", "a service account's token, passed on", modes::service_account),
    ("token-shared-audience", "one audience for both, only where that is allowed", modes::shared_audience),
    ("role-denied", "each layer that denies: relay, RBAC, role", rights::denied),
    ("role-admin", "what an admin may and may not do", rights::admin),
    ("role-cluster-admin", "what a cluster-admin may do", rights::cluster_admin),
    ("role-tree", "a role on a group of clusters, and one on another", rights::tree),
];

/// Rows that wait for an end.
const SLOW: &[Planned] = &[
    (
        "login-federated-file",
        "another issuer's token in a file, which is replaced while a proxy runs",
        logins::federated_file,
    ),
    ("end-expired", "exec and a watch, whose token ends and has no successor", endings::expired),
    ("end-renewed", "the same with a login, of tokens that live for 15 s", endings::renewed),
    ("end-max-token-age", "the same with --max-token-age, before the token's own end", endings::too_old),
    (
        "end-account-disabled",
        "the same while the provider is asked, and says no; enabled again",
        endings::disabled,
    ),
    (
        "end-entra-disabled",
        "the same while Microsoft Graph says that the account is disabled",
        entra::disabled,
    ),
    ("end-role-removed", "the same while the relay's role is taken away", endings::role_removed),
    ("end-signed-role-removed", "the same by a signed role, which is removed", rights::removed),
    ("end-signed-role-expired", "the same by a signed role whose time is over", rights::expired),
    ("end-revoked", "the same, revoked by an operator; taken back", rights::revoked),
    ("end-revoked-own", "the same, revoked by the person; a new token", rights::revoked_own),
];

const CEILING: &str = "role-ceiling";
const VIA_RELAY: &str = "token-issuer-via-relay";
const PASS_THROUGH: &str = "token-pass-through";
const AUDIT: &str = "audit-join";

/// What rows are made with.
struct Scene<'a> {
    stage: &'a Stage,
    provider: &'a Provider,
    runtime: &'a Handle,
    /// With a running pod `box`.
    namespace: String,
    organisation: &'a Organisation,
    entra: &'a DevEntra,
}

/// Whether rows of such a name are asked for. Of the logs there is one whenever there is another.
pub fn is_asked_for(only: Option<&str>) -> bool {
    names().any(|name| is_chosen(name, only))
}

fn names() -> impl Iterator<Item = &'static str> {
    QUICK.iter().chain(SLOW).map(|(name, ..)| *name).chain([CEILING, VIA_RELAY, PASS_THROUGH])
}

fn is_chosen(name: &str, only: Option<&str>) -> bool {
    only.is_none_or(|only| name.contains(only))
}

/// Makes the rows whose names contain `only`; `told` hears of each.
///
/// # Errors
/// If the stage can't be set. What a row finds is in the row.
pub fn run(
    cluster: &Cluster,
    programs: &Programs,
    runtime: &Handle,
    only: Option<&str>,
    mut told: impl FnMut(&Row),
) -> anyhow::Result<Vec<Row>> {
    let issuer = runtime.block_on(DevIssuer::start(0)).context("the issuer can't be started")?;
    let provider = Provider::start(&issuer)?;
    let trusted = [
        (provider.url.clone(), provider.ca_pem.clone(), "idp:"),
        (issuer.url(), issuer.ca_pem().to_owned(), "dev:"),
    ];
    let folder = tempfile::Builder::new().prefix("towline-identity-").tempdir()?;
    let entra = runtime.block_on(DevEntra::start()).context("Entra's stand-in can't be started")?;
    let mut trust = trust(folder.path(), &trusted, &issuer)?;
    entra::trust(&entra, folder.path(), &mut trust)?;
    let mut stage = Stage::with_trust(cluster.clone(), programs.clone(), issuer, Some(trust))?;
    let age = format!("{}s", MAX_TOKEN_AGE.as_secs());
    let flags = ["--max-token-age", &age, "--allow-service-account-tokens"];
    stage.agent_setup.flags.extend(flags.map(str::to_owned));
    let organisation = Organisation::found(&mut stage)?;
    stage.restart_agent()?;
    Organisation::bind(&stage)?;
    let namespace = format!("identity-{}", StreamKey::random());
    make_namespace(cluster, &namespace)?;
    allow(cluster)?;
    for user in [
        "idp:ada",
        "idp:bob",
        "idp:brief",
        "idp:robot",
        logins::CERTIFIED,
        logins::FEDERATED,
        logins::JOB,
        "dev:alice",
        "dev:carol",
        "dev:dora",
        "dev:erin",
        "dev:hank",
    ] {
        stage.let_in(user)?;
    }
    entra::let_in(&stage)?;

    let mut rows = Vec::new();
    let mut done = |row: Row| {
        told(&row);
        rows.push(row);
    };
    let chosen = |planned: &'static [Planned]| planned.iter().filter(|(name, ..)| is_chosen(name, only));
    let scene = Scene {
        stage: &stage,
        provider: &provider,
        runtime,
        namespace: namespace.clone(),
        organisation: &organisation,
        entra: &entra,
    };
    std::thread::scope(|scope| {
        let scene = &scene;
        let slow: Vec<_> = chosen(SLOW)
            .map(|(name, what, make)| scope.spawn(move || row(name, what, || make(scene))))
            .collect();
        for (name, what, make) in chosen(QUICK) {
            done(row(name, what, || make(scene)));
        }
        for slow in slow {
            if let Ok(row) = slow.join() {
                done(row);
            }
        }
    });
    if QUICK.iter().chain(SLOW).any(|(name, ..)| is_chosen(name, only)) {
        done(row(AUDIT, "kube-apiserver's events, the agent's lines, the relay's channels", || {
            let (joined, faults) = audit_join::joined(&stage)?.join();
            ensure!(faults.is_empty(), "{faults:?}");
            let audit_join::Joined { events, requests, channels } = joined;
            Ok(format!("{events} events of {requests} requests on {channels} channels, all of them"))
        }));
    }
    if is_chosen(CEILING, only) {
        done(row(
            CEILING,
            "a cluster-admin at agents with each lower --max-relay-role, and with none",
            || rights::ceiling(&mut stage, &provider, runtime, &namespace, (&organisation, &entra)),
        ));
    }
    if is_chosen(VIA_RELAY, only) {
        done(row(VIA_RELAY, "an agent that has its keys through the relay alone", || {
            modes::issuer_via_relay(&mut stage, &provider, runtime, &namespace, (&organisation, &entra))
        }));
    }
    if is_chosen(PASS_THROUGH, only) {
        done(row(PASS_THROUGH, "kube-apiserver judges the token itself", || {
            cluster.trust(&authentication(&trusted, &[CLUSTER_AUDIENCE]))?;
            modes::pass_through(&mut stage, &provider, runtime, &namespace, (&organisation, &entra))
        }));
    }
    cluster.kubectl_output(&["delete", "namespace", &namespace, "--wait=false"])?;
    Ok(rows)
}

/// Makes a row; a panic is a fault like any other.
fn row(name: &'static str, what: &'static str, make: impl FnOnce() -> anyhow::Result<String>) -> Row {
    let begun = Instant::now();
    let made = catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|_| bail!("it panicked"));
    Row { name, what, took: begun.elapsed(), result: made.map_err(|error| format!("{error:#}")) }
}

/// Both issuers, at relay and agent, each with names of its own.
fn trust(folder: &Path, issuers: &[(String, String, &str)], issuer: &DevIssuer) -> anyhow::Result<Trust> {
    let file = |name: &str, audiences: &[&str]| -> anyhow::Result<Vec<String>> {
        let path = folder.join(name);
        fs::write(&path, authentication(issuers, audiences))?;
        Ok(vec!["--authentication-config".to_owned(), path.display().to_string()])
    };
    let mut trust = Trust {
        relay: file("relay.yaml", &[RELAY_AUDIENCE, SHARED, BRIEF[0], RELAY_RESOURCE])?,
        agent: file("agent.yaml", &[CLUSTER_AUDIENCE, SHARED, BRIEF[1], CLUSTER_RESOURCE, BRIEF_RESOURCE])?,
    };
    trust.agent.extend(asked(folder, issuer)?);
    for (url, ..) in issuers {
        let host = url.trim_start_matches("https://").to_owned();
        trust.relay.extend(["--issuer-host".to_owned(), host]);
    }
    Ok(trust)
}

/// The tests' own issuer is asked whether its tokens are still good.
fn asked(folder: &Path, issuer: &DevIssuer) -> anyhow::Result<[String; 2]> {
    let (client, secret) = issuer.introspecting_client();
    let (secret_file, file) = (folder.join("introspection-secret"), folder.join("introspection.yaml"));
    fs::write(&secret_file, secret)?;
    let text = serde_json::json!({
        "apiVersion": "towline.dev/v1", "kind": "IntrospectionConfiguration",
        "issuers": [{ "url": issuer.url(), "clientId": client, "clientSecretFile": secret_file, "everySeconds": 10 }],
    });
    fs::write(&file, text.to_string())?;
    Ok(["--introspection-config".to_owned(), file.display().to_string()])
}

/// kube-apiserver's own file, for it and for ours.
fn authentication(issuers: &[(String, String, &str)], audiences: &[&str]) -> String {
    let jwt: Vec<_> = issuers
        .iter()
        .map(|(url, ca, prefix)| {
            serde_json::json!({
                "issuer": {
                    "url": url, "audiences": audiences, "audienceMatchPolicy": "MatchAny", "certificateAuthority": ca,
                },
                "claimMappings": {
                    "username": { "claim": "sub", "prefix": prefix }, "groups": { "claim": "groups", "prefix": prefix },
                },
            })
        })
        .collect();
    // JSON is YAML.
    serde_json::json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": jwt,
    })
    .to_string()
}

/// Whoever comes may do anything: who they are is what is looked at.
fn allow(cluster: &Cluster) -> anyhow::Result<()> {
    let subject = |kind: &str, name: &str| {
        format!("{{kind: {kind}, apiGroup: rbac.authorization.k8s.io, name: \"{name}\"}}")
    };
    let entra = entra::subjects();
    let entra: Vec<(&str, &str)> = entra.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
    let subjects = [
        ("Group", "idp:people"),
        ("User", "idp:robot"),
        ("User", logins::CERTIFIED),
        ("User", logins::FEDERATED),
        ("User", logins::JOB),
        ("Group", "dev:people"),
    ];
    let subjects = subjects.iter().chain(&entra);
    let subjects: Vec<String> = subjects.map(|(kind, name)| subject(kind, name)).collect();
    let binding = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: e2e-identity}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}\nsubjects: [{}]\n",
        subjects.join(", ")
    );
    apply_with(cluster, &["apply", "-f", "-"], &binding)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_are_chosen_by_their_names_which_differ() {
        assert_eq!(names().collect::<BTreeSet<_>>().len(), names().count());
        assert!(is_asked_for(None) && is_asked_for(Some("login")) && !is_asked_for(Some("010-get")));
    }

    #[test]
    fn a_panic_is_a_row_that_failed() {
        let row = row("name", "what", || panic!("canary"));
        assert!(row.print().contains("FAILED") && row.result.is_err());
    }
}
