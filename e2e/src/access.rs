//! What the agent may do at kube-apiserver, and what it passes on: on an apiserver of its own, without a node, that comes to
//! trust the people's issuer, too.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail, ensure};
use tokio::runtime::Runtime;
use towline_identity::dev::DevIssuer;
use towline_tunnel::fault::Fault;
use xtask::cluster::{Cluster, Options};

use crate::{
    bad_days::{fails_with, kubectl, until},
    case::Outcome,
    kill::{page, page_of},
    programs::Programs,
    stage::{AgentSetup, CLUSTER_AUDIENCE, Proxy, Stage},
    table::{self, GROUP, RESTRICTED, TOKEN_LIFETIME, USER, apply_with},
};

const OWN: &str = "towline-agent";
/// Without discovery, of whose refusal kubectl does not tell.
const AS_ALICE: [&str; 4] = ["get", "--raw", "/api/v1/namespaces/default/pods", "--as=alice"];

/// Two accounts with the rights of `deploy/agent.yaml`; what happens with more and with fewer; service accounts' tokens;
/// and people's tokens passed through.
///
/// # Errors
/// What was not as it must be.
pub fn run(runtime: &Runtime, programs: &Programs) -> anyhow::Result<()> {
    let issuer = runtime.block_on(DevIssuer::start(0)).context("the issuer can't be started")?;
    let name = format!("access-{}", std::process::id());
    let options = Options { name, node: false, apiserver_arguments: Vec::new() };
    let cluster = Cluster::up(&options)?;
    let stage = Stage::with_issuer(cluster.clone(), programs.clone(), issuer);
    let passed = stage.and_then(|stage| all(stage, &cluster));
    cluster.down()?;
    passed
}

fn all(mut stage: Stage, cluster: &Cluster) -> anyhow::Result<()> {
    table::grant(cluster)?;
    apply_with(cluster, &["create", "namespace", "towline"], "")?;
    deploy(cluster)?;
    stage.let_in(USER)?;
    stage.let_in(RESTRICTED)?;
    let least = AgentSetup {
        kubeconfig: kubeconfig(&stage, OWN)?,
        flags: [
            "--impersonator",
            "towline/towline-impersonator",
            "--state-secret",
            "towline/towline-agent-state",
        ]
        .map(str::to_owned)
        .to_vec(),
    };
    stage.agent_setup = least.clone();
    stage.restart_agent()?;
    let person = stage.proxy("access", &stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?)?;
    least_rights(&stage, &person)?;
    with_more_and_with_less(&mut stage, &person)?;
    service_accounts(&mut stage, &least)?;
    passed_through(&mut stage, &person)
}

/// Accounts and roles, as people get them. Without a node no pod runs.
fn deploy(cluster: &Cluster) -> anyhow::Result<()> {
    let manifest = xtask::root().join("deploy/agent.yaml");
    cluster.kubectl_output(&["apply", "-f", &manifest.display().to_string()]).map(|_| ())
}

/// A kubeconfig with a token of one of towline's accounts.
fn kubeconfig(stage: &Stage, account: &str) -> anyhow::Result<PathBuf> {
    let cluster = &stage.cluster;
    let token = cluster.kubectl_output(&["-n", "towline", "create", "token", account])?;
    let path = stage.folder().join(format!("{account}.kubeconfig"));
    let text = format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"{}\", certificate-authority: \"{}\"}}}}]\nusers: [{{name: u, user: {{token: {}}}}}]\n",
        cluster.server(),
        cluster.ca_file().display(),
        token.trim()
    );
    fs::write(&path, text)?;
    Ok(path)
}

/// The command ends well, and says all of this.
fn says(outcome: &Outcome, expected: &[&str]) -> anyhow::Result<()> {
    ensure!(outcome.ended == "exit 0", "{}: {}", outcome.ended, outcome.stderr);
    for word in expected {
        ensure!(outcome.stdout.contains(word), "{word} is missing in {}", outcome.stdout);
    }
    Ok(())
}

/// kube-apiserver itself refuses, in its own words.
fn refused_by_apiserver(outcome: &Outcome, words: &str) -> anyhow::Result<()> {
    ensure!(
        outcome.ended == "exit 1" && outcome.stderr.contains(words),
        "{}: {}",
        outcome.ended,
        outcome.stderr
    );
    ensure!(!outcome.stderr.contains("TL-"), "towline says it: {}", outcome.stderr);
    Ok(())
}

fn who_am_i(stage: &Stage, proxy: &Proxy, more: &[&str]) -> anyhow::Result<Outcome> {
    kubectl(stage, proxy, &[&["auth", "whoami", "-o", "json"], more].concat())
}

/// What was found about the accounts' rights, by metric and by `/readyz`.
fn rights_are(stage: &Stage, numbers: &[(&str, &str, bool)], told: &[&str]) -> anyhow::Result<()> {
    until(|| {
        let metrics = page(&stage.agent_metrics)?;
        for (account, verdict, some) in numbers {
            let name = format!("towline_agent_rights{{account=\"{account}\",verdict=\"{verdict}\"}} ");
            let number = metrics.lines().find_map(|line| line.strip_prefix(&name));
            ensure!(number.is_some_and(|number| (number != "0") == *some), "{name}is {number:?}");
        }
        let ready = page_of(&stage.agent_metrics, "/readyz")?;
        ensure!(ready.contains("TL-IDN-") != told.is_empty(), "{ready}");
        for word in told {
            ensure!(ready.contains(word), "{word} is missing in {ready}");
        }
        Ok(())
    })
}

/// With constrained impersonation (KEP-5284) alone, and no legacy verb.
fn least_rights(stage: &Stage, person: &Proxy) -> anyhow::Result<()> {
    rights_are(
        stage,
        &[
            ("own", "missing", false),
            ("own", "excessive", false),
            ("impersonator", "missing", false),
            ("impersonator", "excessive", false),
        ],
        &[],
    )?;
    let deputy = "--as=system:serviceaccount:towline:towline-impersonator";
    for (verb, resource) in [("impersonate", "users"), ("impersonate", "groups"), ("get", "pods")] {
        let mut can = stage.cluster.kubectl();
        let said = can.args(["auth", "can-i", verb, resource, deputy]).output()?;
        ensure!(String::from_utf8_lossy(&said.stdout).trim() == "no", "it may {verb} {resource}");
    }
    says(&who_am_i(stage, person, &[])?, &["\"alice\"", GROUP, "system:authenticated"])?;
    says(&kubectl(stage, person, &["get", "namespace", "default", "-o", "name"])?, &["namespace/default"])?;
    let carol = who_am_i(stage, person, &["--as=carol", "--as-group=dev", "--as-uid=7"])?;
    says(&carol, &["\"carol\"", "\"dev\"", "\"7\"", "towline.dev/original-user", "\"alice\""])?;
    ensure!(!carol.stdout.contains(GROUP), "something of the caller's own is left: {}", carol.stdout);
    let forbidden = kubectl(stage, person, &["get", "nodes", "--as=system:admin"])?;
    refused_by_apiserver(&forbidden, "User \"system:admin\" cannot list resource \"nodes\"")?;
    // The caller may be these; the agent may not.
    for (user, words) in [
        ("--as=system:serviceaccount:default:default", "cannot impersonate resource \"serviceaccounts\""),
        ("--as=system:node:a", "cannot impersonate resource \"users\""),
    ] {
        refused_by_apiserver(&kubectl(stage, person, &["get", "pods", user])?, words)?;
    }
    let masters = kubectl(stage, person, &["get", "pods", "--as=carol", "--as-group=system:masters"])?;
    fails_with(&masters, Fault::ImpersonationUnsupported)
}

/// Too much is told and ends nothing; too little is told, and requests fail with what kube-apiserver says.
fn with_more_and_with_less(stage: &mut Stage, person: &Proxy) -> anyhow::Result<()> {
    let cluster = stage.cluster.clone();
    let kubectl_ok = |arguments: &[&str]| cluster.kubectl_output(arguments).map(|_| ());
    let account = format!("--serviceaccount=towline:{OWN}");
    kubectl_ok(&["create", "clusterrolebinding", "too-much", "--clusterrole=cluster-admin", &account])?;
    stage.agent_setup.flags.push("--allow-system-masters".into());
    stage.restart_agent()?;
    rights_are(stage, &[("own", "excessive", true), ("own", "missing", false)], &["TL-IDN-024", "own: * *"])?;
    until(|| says(&who_am_i(stage, person, &[])?, &["\"alice\""]))?;
    // Allowed by the agent and by the caller's roles: kube-apiserver itself does not let such an account have it.
    let masters = kubectl(stage, person, &["get", "pods", "--as=carol", "--as-group=system:masters"])?;
    refused_by_apiserver(&masters, "system:masters")?;
    kubectl_ok(&["delete", "clusterrolebinding", "too-much", "towline-impersonator"])?;
    stage.agent_setup.flags.pop();
    stage.restart_agent()?;
    let missing = ["TL-IDN-023", "impersonator: impersonate:user-info users.authentication.k8s.io"];
    rights_are(stage, &[("impersonator", "missing", true), ("own", "excessive", false)], &missing)?;
    until(|| refused_by_apiserver(&kubectl(stage, person, &["get", "pods"])?, "cannot impersonate"))?;
    deploy(&cluster)?;
    until(|| says(&who_am_i(stage, person, &[])?, &["\"alice\""]))
}

/// A token of a service account's, where the cluster allows it; with the next one once the file changes.
fn service_accounts(stage: &mut Stage, least: &AgentSetup) -> anyhow::Result<()> {
    let tokens = stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    let account = stage.folder().join("account-token");
    let cluster = stage.cluster.clone();
    let write = |namespace: &str| -> anyhow::Result<()> {
        let token = cluster.kubectl_output(&["-n", namespace, "create", "token", "default"])?;
        let next = account.with_extension("next");
        fs::write(&next, token.trim())?;
        Ok(fs::rename(next, &account)?)
    };
    write("default")?;
    let tokens = crate::stage::Tokens { cluster: account.clone(), ..tokens };
    let code = Fault::AccountTokenRefused.code();
    match stage.proxy("account", &tokens) {
        Ok(_) => bail!("a service account's token is taken where nobody allowed it"),
        Err(error) => ensure!(error.to_string().contains(code), "{error:#}"),
    }
    stage.agent_setup = least.clone();
    stage.agent_setup.flags.push("--allow-service-account-tokens".into());
    stage.restart_agent()?;
    let proxy = stage.proxy("account", &tokens)?;
    says(&who_am_i(stage, &proxy, &[])?, &["system:serviceaccount:default:default"])?;
    let forbidden = kubectl(stage, &proxy, &["get", "namespaces"])?;
    refused_by_apiserver(&forbidden, "User \"system:serviceaccount:default:default\" cannot list")?;
    refused_by_apiserver(&kubectl(stage, &proxy, &AS_ALICE)?, "cannot impersonate")?;
    write("kube-public")?;
    until(|| says(&who_am_i(stage, &proxy, &[])?, &["system:serviceaccount:kube-public:default"]))
}

/// kube-apiserver's own file, by which it takes people's tokens as the agent does.
fn trusting(stage: &Stage) -> String {
    let authority = serde_json::Value::from(stage.issuer.ca_pem());
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n\
         - issuer: {{url: \"{}\", audiences: [{CLUSTER_AUDIENCE}], certificateAuthority: {authority}}}\n  \
         claimMappings: {{username: {{claim: sub, prefix: \"\"}}, groups: {{claim: groups, prefix: \"\"}}}}\n",
        stage.issuer.url()
    )
}

/// The agent has no right at all; kube-apiserver judges people's tokens itself, and what they ask to be.
fn passed_through(stage: &mut Stage, person: &Proxy) -> anyhow::Result<()> {
    stage.cluster.kubectl_output(&["-n", "towline", "create", "serviceaccount", "nobody"])?;
    stage.agent_setup = AgentSetup {
        kubeconfig: kubeconfig(stage, "nobody")?,
        flags: ["--mode", "passthrough"].map(str::to_owned).to_vec(),
    };
    stage.restart_agent()?;
    stage.cluster.trust(&trusting(stage))?;
    rights_are(stage, &[("own", "missing", false), ("own", "excessive", false)], &[])?;
    stage.tokens(USER, &[GROUP], TOKEN_LIFETIME)?;
    until(|| says(&who_am_i(stage, person, &[])?, &["\"alice\"", GROUP]))?;
    says(&kubectl(stage, person, &["create", "configmap", "passed", "--from-literal=a=b"])?, &["created"])?;
    let carol = who_am_i(stage, person, &["--as=carol", "--as-group=dev"])?;
    says(&carol, &["\"carol\"", "\"dev\""])?;
    ensure!(!carol.stdout.contains("towline.dev"), "the agent has a hand in it: {}", carol.stdout);
    let restricted = stage.proxy("passed", &stage.tokens(RESTRICTED, &[], TOKEN_LIFETIME)?)?;
    says(&who_am_i(stage, &restricted, &[])?, &["\"bob\""])?;
    let refused = kubectl(stage, &restricted, &AS_ALICE)?;
    refused_by_apiserver(&refused, "User \"bob\" cannot impersonate")?;
    stage.expired_tokens(RESTRICTED, &[])?;
    until(|| {
        let outcome = kubectl(stage, &restricted, &["get", "pods"])?;
        ensure!(outcome.ended == "exit 1" && outcome.stderr.contains("TL-"), "{}", outcome.stderr);
        Ok(())
    })
}
